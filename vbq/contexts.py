"""Code lengths that follow a latent's surroundings.

The counts of a channel tell how often each code point is chosen anywhere. But where an image has texture, the
latents of many channels are large at once; where it is flat, nearly all of them take the cheapest code point.
Contexts use that: a linear map, fitted to validation latents, predicts from the surroundings how many bits a
latent will take. The prediction falls into one of a few classes. A class has an exponent b, and its latents
are expected to follow the distribution p^b / Z, where p is the channel's distribution by counts: flatter than
p for b < 1, more certain for b > 1. What the validation latents of the class took is counted, too, and these
counts are mixed with the expectation: a class whose latents are many follows its own counts.

Encoder and decoder must agree to the last bit on every machine. So everything that both compute is computed
in integers, or in floats that are exact because all values are integers below 2^24 (float32) or 2^53
(float64).

Axis letters: N images, h, w latent positions, P = N h w all positions, C channels, K code points, S symbols
of all channels, L lambdas, Q classes (the first half belong to the first phase), n channels of a group, p
positions of a phase.
"""

import functools
import itertools

import numpy as np

from vbq.code_points import look_up
from vbq.fixed_point import fixed_lengths, fixed_powers
from vbq.surroundings import (
    PHASES,
    Surroundings,
    features_of,
    group_bounds,
    map_shapes,
    positions_of_phases,
    weight_count,
)
from vbq.symbols import Symbols, number_of_symbols

CLASSES_OF_PHASE = 8
CLASSES = PHASES * CLASSES_OF_PHASE
EXPONENT_UNIT = 64  # exponents are integers, in 1/64
MOST_EXPONENT = 8
BLOCK_POSITIONS = 1 << 13  # positions whose predictions are computed at a time
# Up to here, a float holds all integers.
LARGEST_INTEGER = {np.float32: 1 << 24, np.float64: 1 << 53}
# The expectation p^b / Z has the weight of so many latents beside the counts of a class. On six Kodak images,
# 10 to 300 give the same rate within 0.1 %, and counts save 3.4 % of it.
PRIOR_LATENTS = 128
WEIGHT_UNIT = 1 << 16  # the weight of one latent
MOST_LATENTS = 1 << 21  # that a class may count, so that the sum of its weights stays below 2^38


class Contexts:
    """The fitted contexts of all lambdas.

    Attributes:
      order: int16 [L, C], the channels in the order of coding, those with the most bits first.
      weights: int8 [L, weight_count(C)], the linear maps one after the other, see `surroundings.map_shapes`;
        int16 in fits of before 2026-11-27.
      thresholds: int64 [L, C, 2, Q / 2 - 1] ascending, between the classes of a phase.
      exponents: uint16 [L, C, Q], in 1/64.
      symbol_starts: int64 [L + 1], where the symbols of each lambda begin in `class_counts`; or None.
      class_counts: unsigned int [Q, S of all lambdas], how often the validation latents of a class took each
        symbol; or None, as in fits of before 2026-11-26: their classes have the distributions p^b / Z.
    """

    NAMES = "order", "weights", "thresholds", "exponents"
    COUNT_NAMES = "symbol_starts", "class_counts"

    def __init__(self, order, weights, thresholds, exponents, symbol_starts=None, class_counts=None):
        """Takes the arrays.

        Raises:
          ValueError: shapes, types or values are not those of contexts.
        """
        self.order, self.weights, self.thresholds, self.exponents = order, weights, thresholds, exponents
        self.symbol_starts, self.class_counts = symbol_starts, class_counts
        lambs, channels = order.shape
        expected = [
            (lambs, weight_count(channels)),
            (lambs, channels, PHASES, CLASSES_OF_PHASE - 1),
            (lambs, channels, CLASSES),
        ]
        found = [x.shape for x in (weights, thresholds, exponents)]
        if found != expected:
            raise ValueError(f"arrays of contexts have shapes {found} instead of {expected}")
        types = [x.dtype for x in (order, thresholds, exponents)]
        if types != [np.int16, np.int64, np.uint16] or weights.dtype not in (np.int8, np.int16):
            raise ValueError("arrays of contexts have wrong types")
        is_permutation = (np.sort(order, axis=1) == np.arange(channels)).all()
        most = MOST_EXPONENT * EXPONENT_UNIT
        if not is_permutation or not ((exponents >= 1) & (exponents <= most)).all():
            raise ValueError("arrays of contexts have values out of range")
        if class_counts is not None or symbol_starts is not None:
            _check_class_counts(class_counts, symbol_starts, lambs)

    @classmethod
    def stack(cls, fits, class_counts):
        """Puts the fits of all lambdas together.

        Args:
          fits: list by lambda of what `context_fit.fit_arrays` returns.
          class_counts: list by lambda of int [Q, S].
        """
        starts = np.cumsum([0] + [counts.shape[1] for counts in class_counts])
        class_counts = np.concatenate(class_counts, axis=1)
        class_counts = class_counts.astype(np.min_scalar_type(int(class_counts.max(initial=0))))
        return cls(*(np.stack(arrays) for arrays in zip(*fits)), starts, class_counts)

    def arrays(self):
        """dict of the arrays by their names, for a file and a digest."""
        names = self.NAMES if self.class_counts is None else self.NAMES + self.COUNT_NAMES
        return {name: getattr(self, name) for name in names}

    def check(self, index_counts):
        """Raises a ValueError if there are class counts, but not for these counts: int [L, C, K]."""
        if self.class_counts is not None:
            sizes = number_of_symbols(index_counts)
            if not np.array_equal(np.diff(self.symbol_starts), sizes):
                raise ValueError(f"class counts do not belong to counts with {sizes} symbols")

    def model(self, lamb_index, counts):
        """The `ContextModel` of a lambda, whose counts are int [C, K]."""
        class_counts = None
        if self.class_counts is not None:
            class_counts = self.class_counts[:, slice(*self.symbol_starts[lamb_index : lamb_index + 2])]
        return ContextModel(counts, *(getattr(self, name)[lamb_index] for name in self.NAMES), class_counts)


def _check_class_counts(class_counts, starts, lambs):
    """Raises a ValueError if these are not arrays of `Contexts`."""
    if class_counts is None or starts is None:
        raise ValueError("either class counts or the places where they begin are missing")
    if not np.issubdtype(class_counts.dtype, np.unsignedinteger) or class_counts.shape[:1] != (CLASSES,):
        raise ValueError(f"class counts are not unsigned integers with {CLASSES} rows")
    if starts.dtype != np.int64 or starts.shape != (lambs + 1,):
        raise ValueError(
            f"class counts lack the {lambs + 1} places where those of {lambs} lambdas begin and end"
        )
    if class_counts.ndim != 2 or (starts[0], starts[-1]) != (0, class_counts.shape[1]):
        raise ValueError(f"class counts {class_counts.shape} do not fit the places {starts}")


class Step:
    """A part of the latents that is coded at once: those of a group and phase.

    Attributes:
      channels: int [n].
      here: two slices, where the part is in the rows of `CodingOrder`.
      classes: uint8 [n, p].
      features: uint8 [n, p], `ContextModel.features` of the latents. The caller of `ContextModel.walk` sets
        them.
    """

    def __init__(self, channels, here, classes):
        self.channels, self.here, self.classes = channels, here, classes
        self.features = None


class CodingOrder:
    """The order in which latents are coded: group by group, phase by phase.

    Attributes:
      shape: ints (N, h, w).
      channels: int [C], in the order of coding.
      positions: int [P], those of the first phase and then those of the second.
    """

    def __init__(self, shape, channels):
        self.shape, self.channels = shape, channels
        phases = positions_of_phases(shape)
        self.positions = np.concatenate(phases)
        self._first_phase = len(phases[0])

    def parts(self):
        """Slices of the rows and of their columns that are coded at once: a list of pairs."""
        columns = slice(self._first_phase), slice(self._first_phase, len(self.positions))
        bounds = itertools.pairwise(group_bounds(len(self.channels)))
        return [(slice(*bound), phase) for bound in bounds for phase in columns]

    def rows(self, x):
        """Rearranges [N, h, w, C] to rows [C, P] in the order of coding."""
        flat = x.reshape(len(self.positions), len(self.channels))
        return flat.take(self.positions, axis=0).T.take(self.channels, axis=0)

    def image(self, rows):
        """Inverts `rows`."""
        flat = rows.take(np.argsort(self.channels), axis=0).T.take(np.argsort(self.positions), axis=0)
        return flat.reshape(*self.shape, len(self.channels))


class ContextModel:
    """The distributions of latents at one lambda, given their surroundings."""

    def __init__(self, counts, order, weights, thresholds, exponents, class_counts=None):
        """Takes the arrays of one lambda.

        Args:
          counts: int [C, K], how often each code point was chosen.
          order, weights, thresholds, exponents: as in `Contexts`, without the first axis.
          class_counts: unsigned int [Q, S], or None, see `Contexts`.

        Raises:
          ValueError: the class counts are too large.
        """
        self.lengths, self.symbols = fixed_lengths(counts), Symbols(counts)
        self._class_counts = class_counts
        if class_counts is not None and self._sums(class_counts).max() > MOST_LATENTS:
            raise ValueError(f"a class counts more than {MOST_LATENTS} latents")
        self.features = features_of(self.lengths)
        self.order, self.thresholds, self.exponents = order, thresholds, exponents
        # With more than 2047 code points, weights are smaller, so that their sum stays below 2^38.
        self._shift = max(self.lengths.shape[1].bit_length() - 11, 0)
        self._maps, first, most = {}, 0, int(self.features.max())
        for group, phase, known, predicted in map_shapes(len(order)):
            last = first + known * predicted
            map_ = weights[first:last].reshape(known, predicted)
            self._maps[group, phase] = map_.T.astype(exact_float(map_, most))
            first = last

    @functools.cached_property
    def powers(self):
        """p^b up to a factor for every class and channel.

        int32 [Q, S], up to 2^27: those of all points that a symbol stands for are equal.
        """
        symbols = self.symbols
        power = self.exponents.T.take(symbols.channels, axis=1) * self.lengths.ravel()[symbols.firsts]
        power //= EXPONENT_UNIT
        least = self.exponents * self.lengths.min(axis=1, keepdims=True) // EXPONENT_UNIT
        power -= least.T.take(symbols.channels, axis=1)
        return fixed_powers(power, self._shift)

    @functools.cached_property
    def weights(self):
        """Weights proportional to the probabilities of a channel's code points.

        int [Q, S]: those of all points that a symbol stands for are equal. Their sum over the points of a
        channel is below 2^39.
        """
        if self._class_counts is None:
            return self.powers
        expected = self.powers.astype(np.int64) * (PRIOR_LATENTS * WEIGHT_UNIT)  # below 2^51
        expected //= self._sums(self.powers).take(self.symbols.channels, axis=1)
        return expected + self._class_counts.astype(np.int64) * WEIGHT_UNIT

    def _sums(self, weights):
        """Sums of weights int [Q, S] over the code points of each channel: int64 [Q, C]."""
        return np.add.reduceat(weights * self.symbols.sizes, self.symbols.starts[:-1], axis=1)

    @functools.cached_property
    def _bits(self):
        """The code length of a code point of every symbol, in bits: float64 [Q, S].

        As in the range coder, 1 is added to every weight.
        """
        sums = self._sums(self.weights.astype(np.int64) + 1).take(self.symbols.channels, axis=1)
        return np.log2(sums) - np.log2(self.weights + 1.0)

    @property
    def run_keys(self):
        """int [C, Q]: neighbouring classes of a channel with equal keys have the same distribution."""
        if self._class_counts is None:
            return self.exponents
        return np.broadcast_to(np.arange(CLASSES), self.exponents.shape)

    @functools.cached_property
    def _roots(self):
        """Square roots of the exponents b, float32 [C, Q]."""
        return np.sqrt(self.exponents / np.float32(EXPONENT_UNIT))

    def coding_order(self, shape):
        """The `CodingOrder` of latents of shape (N, h, w)."""
        return CodingOrder(shape, self.order)

    def walk(self, coding_order):
        """Goes through latents in the order of coding, and classifies them.

        Args:
          coding_order: CodingOrder.

        Yields:
          Step. Its `features` must be set before the next one is requested.

        Raises:
          RuntimeError: a step was left without features.
        """
        surroundings, parts = Surroundings(coding_order.shape, len(self.order)), iter(coding_order.parts())
        for group in range(surroundings.groups):
            channels = self.order[surroundings.open_group(group)]
            for phase in range(PHASES):
                step = Step(channels, next(parts), self._classify(surroundings, group, phase, channels))
                yield step
                if step.features is None:
                    raise RuntimeError("a step got no features: set `step.features` before the next step")
                surroundings.put(phase, step.features)
            surroundings.close_group()

    def _classify(self, surroundings, group, phase, channels):
        """Classes of the latents of a group and phase: uint8 [n, p]."""
        map_ = self._maps[group, phase]
        # No prediction is as large as the limit, so nothing changes where a threshold is beyond it.
        limit = LARGEST_INTEGER[map_.dtype.type]
        thresholds = self.thresholds[channels, phase].clip(-limit, limit).astype(map_.dtype)
        classes = np.empty((len(channels), len(surroundings.phases[phase])), np.uint8)
        for some, known in surroundings.known(phase, map_.dtype, BLOCK_POSITIONS):
            classes[:, some] = classify(map_ @ known, thresholds)
        classes += np.uint8(phase * CLASSES_OF_PHASE)
        return classes

    def classes_in_rows(self, indices, coding_order):
        """Classes, uint8 [C, P] in the order of coding, of latents with code points int [N, h, w, C]."""
        features = coding_order.rows(look_up(self.features, indices))
        classes = np.empty(features.shape, np.uint8)
        for step in self.walk(coding_order):
            classes[step.here] = step.classes
            step.features = features[step.here]
        return classes

    def classes(self, indices):
        """Classes of all latents: uint8 [N, h, w, C], from their code points int [N, h, w, C]."""
        coding_order = self.coding_order(indices.shape[:-1])
        return coding_order.image(self.classes_in_rows(indices, coding_order))

    def std_factors(self, classes):
        """Factors on the std that choose code points for classes uint8 [..., C]: float32 [..., C].

        Under p^b / Z, the code length of a latent is b times its length by counts, plus log2 Z. A factor b on
        all lengths has the same effect as a factor sqrt(b) on std. log2 Z is the same for all code points, so
        it does not affect the choice. The counts of the class are left out here, so that one search tree
        serves all classes.
        """
        return look_up(self._roots, classes)

    def bits(self, indices, classes):
        """Bits spent on every latent, float64 [..., C], of code points int and classes uint8 [..., C]."""
        return self._bits.ravel().take(self.numbers(indices, classes))

    def numbers(self, indices, classes):
        """Where latents are in a flat table [Q, S]: int64 [..., C], of code points int and classes uint8."""
        symbols = look_up(self.symbols.of_points, indices)
        return classes.astype(np.int64) * len(self.symbols.firsts) + symbols


def exact_float(map_, most):
    """The smaller of float32 and float64 in which all predictions of a map are exact, as are their parts.

    Args:
      map_: int [known, predicted].
      most: int, the largest feature. What is known are features and sums of four features.
    """
    largest = 4 * most * int(np.abs(map_.astype(np.int64)).sum(axis=0).max(initial=0))
    return np.float32 if largest < LARGEST_INTEGER[np.float32] else np.float64


def classify(predicted, thresholds):
    """How many of the thresholds float [n, T] each prediction [n, p] reaches: uint8 [n, p]."""
    classes = np.zeros(predicted.shape, np.uint8)
    for threshold in thresholds.T:
        classes += (predicted >= threshold[:, None]).view(np.uint8)
    return classes
