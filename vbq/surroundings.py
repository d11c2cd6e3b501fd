"""The order in which latents are coded with contexts, and what is known of a latent's surroundings when its
turn comes.

Channels are coded in groups. The first groups are small; each later one is as large as all before it. A group
is coded in two phases: first the positions of one colour of a checkerboard, then those of the other. When a
latent's turn comes, the code lengths of these latents are known: those of earlier groups at its position and
at its eight neighbours; and in the second phase also those of its own group at its four direct neighbours.

Axis letters: N images, h, w latent positions, P = N h w all positions, C channels, n channels of a group, p
positions of a phase.
"""

import numpy as np

PHASES = 2
FIRST_GROUP = 256  # the first group has 1/256 of the channels, at least one
FEATURE_SHIFT = 5  # a feature is a code length in units of 32/256 = 1/8 bit
MOST_FEATURE = 255


def group_bounds(channels):
    """Where the groups start and end in the order of coding: a list of ints, [0, .., channels]."""
    bounds, end = [0], max(1, channels // FIRST_GROUP)
    while end < channels:
        bounds.append(end)
        end *= 2
    return bounds + [channels]


def map_shapes(channels):
    """Shapes of the linear maps from what is known to predictions.

    Returns:
      List of ints (group, phase, known, predicted), in the order in which the maps are stored.
    """
    bounds = group_bounds(channels)
    return [
        (group, phase, 3 * start + phase * (end - start), end - start)
        for group, (start, end) in enumerate(zip(bounds, bounds[1:]))
        for phase in range(PHASES)
    ]


def weight_count(channels):
    """Number of weights that all maps have together."""
    return sum(known * predicted for *_, known, predicted in map_shapes(channels))


def features_of(lengths):
    """The features of code lengths, int in 1/256 bits: uint8, same shape. Predictions are made from them."""
    return np.minimum(lengths >> FEATURE_SHIFT, MOST_FEATURE).astype(np.uint8)


class Surroundings:
    """What is known of latents while they are coded, group after group.

    For every group, call `open_group`; for every phase, `known` and then `put`; then `close_group`.

    Attributes:
      phases: two arrays of positions, int [p], numbers below P.
      groups: number of groups.
    """

    def __init__(self, shape, channels):
        """Starts with nothing known.

        Args:
          shape: ints (N, h, w).
          channels: int C.
        """
        self._shape, self._bounds = shape, group_bounds(channels)
        self.groups = len(self._bounds) - 1
        colour = np.indices(shape).reshape(len(shape), -1)[1:].sum(axis=0) % PHASES
        self.phases = [np.flatnonzero(colour == phase) for phase in range(PHASES)]
        # Of the closed groups: features, their sums over 4 direct and over 4 diagonal neighbours. The last
        # group is left out, because no group follows it.
        self._closed = np.empty((len(colour), 3, self._bounds[-2]), np.uint16)
        self._start = self._end = 0
        self._features = self._sums = None  # of the open group

    def open_group(self, group):
        """Begins a group; returns the slice of the coding order that is its channels."""
        self._start, self._end = self._bounds[group], self._bounds[group + 1]
        self._features = np.zeros((len(self._closed), self._end - self._start), np.uint8)
        self._sums = None
        return slice(self._start, self._end)

    def known(self, positions, phase):
        """What is known at positions of the open group: uint16 [p, known], see `map_shapes`."""
        before = self._closed[positions, :, : self._start].reshape(len(positions), 3 * self._start)
        if not phase:
            return before
        if self._sums is None:
            self._sums = self._neighbour_sums(diagonal=False)
        return np.concatenate([before, self._sums[positions]], axis=1)

    def put(self, positions, features):
        """Makes features uint8 [p, n] of the open group known at positions int [p]."""
        self._features[positions] = features
        self._sums = None

    def close_group(self):
        """Ends a group: later groups know its features."""
        if self._end <= self._closed.shape[2]:
            self._closed[:, 0, self._start : self._end] = self._features
            self._closed[:, 1, self._start : self._end] = self._neighbour_sums(diagonal=False)
            self._closed[:, 2, self._start : self._end] = self._neighbour_sums(diagonal=True)

    def _neighbour_sums(self, diagonal):
        """Sums of the open group's features over four neighbours: uint16 [P, n].

        Images are reflected at their edges.
        """
        x = self._features.reshape(*self._shape, -1)
        rows, columns = (
            np.pad(np.arange(side), 1, mode="reflect" if side > 1 else "edge") for side in self._shape[1:]
        )
        vertical = x[:, rows[:-2]].astype(np.uint16) + x[:, rows[2:]]
        if diagonal:
            result = vertical[:, :, columns[:-2]] + vertical[:, :, columns[2:]]
        else:
            result = vertical + x[:, :, columns[:-2]] + x[:, :, columns[2:]]
        return result.reshape(self._features.shape)
