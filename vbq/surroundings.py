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


def positions_of_phases(shape):
    """The positions of each phase: a list of two arrays, int [p], for latents of shape (N, h, w)."""
    colour = np.indices(shape).reshape(len(shape), -1)[1:].sum(axis=0) % PHASES
    return [np.flatnonzero(colour == phase) for phase in range(PHASES)]


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

    For every group, call `open_group`; for every phase, `known` and then `put`; then `close_group`. All
    arrays have an axis of channels before that of positions.

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
        self.phases = positions_of_phases(shape)
        self._in_order = np.concatenate(self.phases)
        # Of the closed groups: features, their sums over 4 direct and over 4 diagonal neighbours, at the
        # positions of the first phase and then of the second. The last group is left out, because no group
        # follows it.
        self._closed = np.empty((3, self._bounds[-2], len(self._in_order)), np.uint16)
        self._start = self._end = 0
        self._features = None  # of the open group, uint8 [n, P], at positions from 0 to P - 1

    def open_group(self, group):
        """Begins a group; returns the slice of the coding order that is its channels."""
        self._start, self._end = self._bounds[group], self._bounds[group + 1]
        self._features = np.zeros((self._end - self._start, len(self._in_order)), np.uint8)
        return slice(self._start, self._end)

    def known(self, phase, dtype, most=None):
        """Goes through what is known at the positions of a phase.

        Args:
          phase: int.
          dtype: type of the arrays. The values are integers up to 4 * 255.
          most: int, number of positions at a time; None for all at once.

        Yields:
          slice of the phase's positions, and array [known, positions of the slice], see `map_shapes`.
        """
        positions = self.phases[phase]
        own = self._direct_sums() if phase else np.empty((0, len(self._in_order)), np.uint16)
        most, begin = most or len(positions), phase * len(self.phases[0])
        for first in range(0, max(len(positions), 1), max(most, 1)):  # at least once
            last = min(first + most, len(positions))
            before = self._closed[:, : self._start, begin + first : begin + last]
            known = np.empty((3 * self._start + len(own), last - first), dtype)
            known[: 3 * self._start].reshape(before.shape)[...] = before
            known[3 * self._start :] = own.take(positions[first:last], axis=1)
            yield slice(first, last), known

    def put(self, phase, features):
        """Makes features uint8 [n, p] of the open group known at the positions of a phase."""
        self._features[:, self.phases[phase]] = features

    def close_group(self):
        """Ends a group: later groups know its features."""
        if self._end <= self._closed.shape[1]:
            parts = self._features, self._direct_sums(), self._diagonal_sums()
            for closed, part in zip(self._closed, parts):
                closed[self._start : self._end] = part.take(self._in_order, axis=1)

    def _direct_sums(self):
        """Sums of the open group's features over the 4 direct neighbours: uint16 [n, P].

        Images are reflected at their edges.
        """
        x = _reflected(self._features.reshape(-1, *self._shape))
        sums = x[..., :-2, 1:-1] + x[..., 2:, 1:-1]
        sums += x[..., 1:-1, :-2]
        sums += x[..., 1:-1, 2:]
        return sums.reshape(self._features.shape)

    def _diagonal_sums(self):
        """The same over the 4 diagonal neighbours."""
        x = _reflected(self._features.reshape(-1, *self._shape))
        vertical = x[..., :-2, :] + x[..., 2:, :]
        return (vertical[..., :-2] + vertical[..., 2:]).reshape(self._features.shape)


def _reflected(x):
    """Adds a row and a column on each side of [..., h, w] by reflection: uint16 [..., h + 2, w + 2].

    A side of one latent is repeated instead.
    """
    height, width = x.shape[-2:]
    result = np.empty((*x.shape[:-2], height + 2, width + 2), np.uint16)
    result[..., 1:-1, 1:-1] = x
    for rows in (result, result.swapaxes(-1, -2)):
        last = rows.shape[-2] - 1
        rows[..., 0, :] = rows[..., min(2, last - 1), :]
        rows[..., last, :] = rows[..., max(last - 2, 1), :]
    return result
