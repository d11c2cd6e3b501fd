"""Code lengths that follow a latent's surroundings.

The counts of a channel tell how often each code point is chosen anywhere. But where an image has texture, the
latents of many channels are large at once; where it is flat, nearly all of them take the cheapest code point.
Contexts use that: a linear map, fitted to validation latents, predicts from the surroundings how many bits a
latent will take. The prediction falls into one of a few classes. A class has an exponent b, and its latents
are coded with the distribution p^b / Z, where p is the channel's distribution by counts: flatter than p for b
< 1, more certain for b > 1.

Encoder and decoder must agree to the last bit on every machine. So everything that both compute is computed
in integers, or in float64 that is exact because all values are integers below 2^53.

Axis letters: N images, h, w latent positions, C channels, K code points, L lambdas, Q classes (the first half
belong to the first phase), n channels of a group, p positions of a phase.
"""

import functools

import numpy as np

from vbq.code_points import look_up
from vbq.fixed_point import UNIT, WEIGHT_BITS, fixed_lengths, fixed_powers
from vbq.surroundings import PHASES, Surroundings, features_of, map_shapes, weight_count

CLASSES_OF_PHASE = 8
CLASSES = PHASES * CLASSES_OF_PHASE
EXPONENT_UNIT = 64  # exponents are integers, in 1/64
MOST_EXPONENT = 8
BLOCK_POSITIONS = 1 << 13  # positions whose predictions are computed at a time


class Contexts:
    """The fitted contexts of all lambdas.

    Attributes:
      order: int16 [L, C], the channels in the order of coding, those with the most bits first.
      weights: int16 [L, weight_count(C)], the linear maps one after the other, see `surroundings.map_shapes`.
      thresholds: int64 [L, C, 2, Q / 2 - 1] ascending, between the classes of a phase.
      exponents: uint16 [L, C, Q], in 1/64.
    """

    NAMES = "order", "weights", "thresholds", "exponents"

    def __init__(self, order, weights, thresholds, exponents):
        """Takes the arrays.

        Raises:
          ValueError: shapes, types or values are not those of contexts.
        """
        self.order, self.weights, self.thresholds, self.exponents = order, weights, thresholds, exponents
        lambs, channels = order.shape
        expected = [
            (lambs, weight_count(channels)),
            (lambs, channels, PHASES, CLASSES_OF_PHASE - 1),
            (lambs, channels, CLASSES),
        ]
        found = [x.shape for x in (weights, thresholds, exponents)]
        if found != expected:
            raise ValueError(f"arrays of contexts have shapes {found} instead of {expected}")
        types = [x.dtype for x in (order, weights, thresholds, exponents)]
        if types != [np.int16, np.int16, np.int64, np.uint16]:
            raise ValueError("arrays of contexts have wrong types")
        is_permutation = (np.sort(order, axis=1) == np.arange(channels)).all()
        most = MOST_EXPONENT * EXPONENT_UNIT
        if not is_permutation or not ((exponents >= 1) & (exponents <= most)).all():
            raise ValueError("arrays of contexts have values out of range")

    @classmethod
    def stack(cls, fits):
        """Puts the results of `context_fit.fit_arrays` for all lambdas together."""
        return cls(*(np.stack(arrays) for arrays in zip(*fits)))

    def arrays(self):
        """dict of the arrays by `NAMES`, for a file and a digest."""
        return {name: getattr(self, name) for name in self.NAMES}

    def model(self, lamb_index, counts):
        """The `ContextModel` of a lambda, whose counts are int [C, K]."""
        return ContextModel(counts, *(getattr(self, name)[lamb_index] for name in self.NAMES))


class Step:
    """A part of the latents that is coded at once: those of a group and phase.

    Attributes:
      channels: int [n].
      positions: int [p], numbers of positions.
      classes: uint8 [p, n].
      indices: int [p, n], the latents' code points. The caller of `ContextModel.walk` sets them.
    """

    def __init__(self, channels, positions, classes):
        self.channels, self.positions, self.classes = channels, positions, classes
        self.indices = None


class ContextModel:
    """The distributions of latents at one lambda, given their surroundings."""

    def __init__(self, counts, order, weights, thresholds, exponents):
        """Takes the arrays of one lambda.

        Args:
          counts: int [C, K], how often each code point was chosen.
          order, weights, thresholds, exponents: as in `Contexts`, without the first axis.
        """
        self.lengths = fixed_lengths(counts)
        self.features = features_of(self.lengths)
        self.order, self.thresholds, self.exponents = order, thresholds, exponents
        # With more than 2047 code points, weights are smaller, so that their sum stays below 2^38.
        self._shift = max(self.lengths.shape[1].bit_length() - 11, 0)
        self._maps, first = {}, 0
        for group, phase, known, predicted in map_shapes(len(order)):
            last = first + known * predicted
            self._maps[group, phase] = weights[first:last].reshape(known, predicted).astype(np.float64)
            first = last

    @functools.cached_property
    def log_sums(self):
        """log2 of the sums Z, float64 [C, Q]."""
        channels = range(len(self.order))
        sums = np.stack([np.log2(self.symbol_weights(c).sum(axis=1)) for c in channels])
        least = np.stack([self._least_power(c)[:, 0] for c in channels])
        return sums - (WEIGHT_BITS - self._shift) - least / UNIT

    def _least_power(self, channel):
        """b times the channel's shortest length, int32 [Q, 1], in 1/256 bits."""
        exponents = self.exponents[channel, :, None].astype(np.int32)
        return exponents * self.lengths[channel].min() // EXPONENT_UNIT

    def symbol_weights(self, channel):
        """Weights proportional to the probabilities of a channel's code points: int32 [Q, K], up to 2^27."""
        # There are few different lengths: most points were never chosen and have the same.
        lengths, place = np.unique(self.lengths[channel], return_inverse=True)
        power = self.exponents[channel, :, None].astype(np.int32) * lengths // EXPONENT_UNIT
        power -= self._least_power(channel)
        return fixed_powers(power, self._shift).take(place, axis=1)

    def walk(self, shape):
        """Goes through latents in the order of coding.

        Args:
          shape: ints (N, h, w).

        Yields:
          Step. Its `indices` must be set before the next one is requested.

        Raises:
          RuntimeError: a step was left without indices.
        """
        surroundings = Surroundings(shape, len(self.order))
        for group in range(surroundings.groups):
            channels = self.order[surroundings.open_group(group)]
            for phase, positions in enumerate(surroundings.phases):
                step = Step(channels, positions, self._classify(surroundings, group, phase, channels))
                yield step
                if step.indices is None:
                    raise RuntimeError("a step got no indices: set `step.indices` before the next step")
                surroundings.put(positions, look_up(self.features[channels], step.indices))
            surroundings.close_group()

    def _classify(self, surroundings, group, phase, channels):
        """Classes of the latents of a group and phase: uint8 [p, n]."""
        positions, map_ = surroundings.phases[phase], self._maps[group, phase]
        classes = np.empty((len(positions), len(channels)), np.uint8)
        for first in range(0, len(positions), BLOCK_POSITIONS):
            some = slice(first, first + BLOCK_POSITIONS)
            predicted = surroundings.known(positions[some], phase).astype(np.float64) @ map_
            classes[some] = classify(predicted, self.thresholds[channels, phase])
        classes += np.uint8(phase * CLASSES_OF_PHASE)
        return classes

    def classes(self, indices):
        """Classes of all latents: uint8 [N, h, w, C], from their code points int [N, h, w, C]."""
        flat = indices.reshape(-1, indices.shape[-1])
        result = np.empty(flat.shape, np.uint8)
        for step in self.walk(indices.shape[:-1]):
            here = np.ix_(step.positions, step.channels)
            result[here] = step.classes
            step.indices = flat[here]
        return result.reshape(indices.shape)

    def scale(self, classes):
        """The exponents b of classes uint8 [..., C]: float32 [..., C].

        The code length of a latent is b times its length by counts, plus log2 Z.
        """
        return look_up(self.exponents / np.float32(EXPONENT_UNIT), classes)

    def bits(self, indices, classes):
        """Bits spent on every latent, float64 [..., C], of code points int and classes uint8 [..., C]."""
        exponents = look_up(self.exponents, classes).astype(np.int64)
        power = exponents * look_up(self.lengths, indices) // EXPONENT_UNIT
        return power / UNIT + look_up(self.log_sums, classes)


def classify(predicted, thresholds):
    """How many of the thresholds [n, T] each prediction [p, n] reaches: uint8 [p, n]."""
    classes = np.zeros(predicted.shape, np.uint8)
    for threshold in thresholds.T:
        classes += predicted >= threshold
    return classes
