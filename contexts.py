"""Code lengths that follow the surroundings: every latent is coded by those that were coded before it.

The counts of a channel tell how often each of its code points is used, anywhere. But where an image has texture, latents of many
channels are large at once, and where it is flat, next to all take the cheapest code point. So channels are coded in groups, each
as large as all before it, and a group in two phases: first the positions of one colour of a checkerboard, then those of the other.
A linear map, fitted to validation latents, predicts how many bits a latent will take from the code lengths of those known: in the
groups before, at its position and its eight neighbours; and in the second phase, in its own group, at its four neighbours. The
prediction falls into one of a few classes, and a class has an exponent b: its distribution is p^b / Z, where p is that of the
channel's counts. With b < 1 it is flatter, with b > 1 more certain. All latents of a group and phase are coded at once.

Encoder and decoder have to agree to the last bit, on every machine. What they share is computed in integers, or in float64 that
is exact because all its values are integers below 2^53.

Axis letters: N images, h, w latent positions, P all positions of all images, C channels, K code points, L lambdas, Q classes, of
which the first half is that of the first phase.
"""

import functools

import numpy as np

PHASES = 2
OF_PHASE = 8        # classes
CLASSES = PHASES * OF_PHASE
FIRST_GROUP = 256   # of so many channels the first group has one
UNIT = 256          # code lengths are integers, in 1/256 bits
FEATURE_SHIFT = 5   # 32 of these, an eighth of a bit, are the unit of what predictions are made of
MOST_FEATURE = 255
EXPONENT_UNIT = 64
WEIGHT_BITS = 27    # of the most probable code point's weight; less where there are more than 2047 code points
BLOCK = 1 << 13     # positions whose predictions are made at a time

# Of fitting.
RIDGE = 1e-3        # of the features' mean variance, in the regression
LEAST_COUNT = 8     # latents that are thought to stand in every class as in the channel, beside those counted
MOST_EXPONENT = 8.
MOST_STEPS = 30     # of Newton's method, to find an exponent

_FRACTIONS = np.round(2.**(WEIGHT_BITS - np.arange(UNIT) / UNIT)).astype(np.int32)  # 2^27 down to 2^26, a test pins them


def group_bounds(channels):
    """Where groups start and end in the order of coding: [0, .., channels], the sizes double."""
    bounds, end = [0], max(1, channels // FIRST_GROUP)
    while end < channels:
        bounds.append(end)
        end *= 2
    return bounds + [channels]


def map_shapes(channels):
    """Shapes of the maps from what is known to predictions: a list of (group, phase, known, predicted), ints, in their order."""
    bounds = group_bounds(channels)
    return [(group, phase, 3 * start + phase * (end - start), end - start)
            for group, (start, end) in enumerate(zip(bounds, bounds[1:])) for phase in range(PHASES)]


def weight_count(channels):
    """How many weights the maps have for so many channels."""
    return sum(known * predicted for *_, known, predicted in map_shapes(channels))


def fixed_log2(x):
    """256 log2(x), rounded down but for errors of at most 1, of int64 0 < x < 2^53: int64, by integer arithmetic alone."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))  # exact
    mantissa = (mantissa * 2.**32).astype(np.uint64)
    result = np.asarray(exponent, np.int64) - 1
    for _ in range(UNIT.bit_length() - 1):  # the square of a number has twice its logarithm: a digit each time
        mantissa = mantissa * mantissa >> np.uint64(31)
        digit = mantissa >> np.uint64(32)
        mantissa >>= digit
        result = 2 * result + digit.astype(np.int64)
    return result


def fixed_lengths(counts):
    """Code lengths by add-one smoothed counts [C, K]: int32 [C, K], in 1/256 bits."""
    counts = np.asarray(counts, np.int64) + 1
    return (fixed_log2(counts.sum(axis=1, keepdims=True)) - fixed_log2(counts)).astype(np.int32)


class Contexts:
    """The contexts of all tables.

    Attributes:
      order: int16 [L, C], the channels as they are coded, those with the most bits first.
      weights: int16 [L, weight_count(C)], the maps one after the other, see `map_shapes`.
      thresholds: int64 [L, C, 2, Q / 2 - 1] ascending, between the classes of a phase.
      exponents: uint16 [L, C, Q], in 1/64.
    """

    NAMES = "order", "weights", "thresholds", "exponents"

    def __init__(self, order, weights, thresholds, exponents):
        self.order, self.weights, self.thresholds, self.exponents = order, weights, thresholds, exponents
        lambs, channels = order.shape
        expected = [(lambs, weight_count(channels)), (lambs, channels, PHASES, OF_PHASE - 1), (lambs, channels, CLASSES)]
        found = [x.shape for x in (weights, thresholds, exponents)]
        if found != expected:
            raise ValueError(f"shapes of contexts do not fit: {found} where {expected} are expected")
        if [x.dtype for x in (order, weights, thresholds, exponents)] != [np.int16, np.int16, np.int64, np.uint16]:
            raise ValueError("types of contexts do not fit")
        most = MOST_EXPONENT * EXPONENT_UNIT
        if (np.sort(order, axis=1) != np.arange(channels)).any() or not (1 <= exponents).all() or (exponents > most).any():
            raise ValueError("contexts have other values than expected")

    @classmethod
    def of_tables(cls, tables):
        """Puts the results of `fit_table` together."""
        return cls(*(np.stack(arrays) for arrays in zip(*tables)))

    def arrays(self):
        """dict of the arrays, for a file and a fingerprint."""
        return {name: getattr(self, name) for name in self.NAMES}

    def at(self, table, counts):
        """`TableContexts` of a table, an int, whose counts are int [C, K]."""
        return TableContexts(counts, *(getattr(self, name)[table] for name in self.NAMES))


class TableContexts:
    """The contexts of one table.

    Args:
      counts: int [C, K], how often each code point was chosen.
      order, weights, thresholds, exponents: see `Contexts`, without their first axis.
    """

    def __init__(self, counts, order, weights, thresholds, exponents):
        self.lengths = fixed_lengths(counts)
        self.features = features_of(self.lengths)
        self.order, self.thresholds, self.exponents = order, thresholds, exponents
        self._weight_bits = WEIGHT_BITS - max(self.lengths.shape[1].bit_length() - 11, 0)  # all weights together stay below 2^38
        self._maps, first = {}, 0
        for group, phase, known, predicted in map_shapes(len(order)):
            last = first + known * predicted
            self._maps[group, phase] = weights[first:last].reshape(known, predicted).astype(np.float64)
            first = last

    @functools.cached_property
    def log_sums(self):
        """log2 of the sums Z, float64 [C, Q]."""
        return np.stack([np.log2(self.symbol_weights(c).sum(axis=1)) - self._weight_bits - self._least(c)[:, 0] / UNIT
                         for c in range(len(self.order))])

    def _least(self, channel):
        return (self.exponents[channel, :, None].astype(np.int32) * self.lengths[channel].min()) // EXPONENT_UNIT

    def symbol_weights(self, channel):
        """Numbers that the probabilities of a channel's code points are proportional to: int32 [Q, K], at most 2^27."""
        lengths, place = np.unique(self.lengths[channel], return_inverse=True)  # most are those of code points never chosen
        power = self.exponents[channel, :, None].astype(np.int32) * lengths // EXPONENT_UNIT
        power -= self._least(channel)
        shift = power // UNIT + (WEIGHT_BITS - self._weight_bits)
        return (_FRACTIONS[power % UNIT] >> np.minimum(shift, 31)).take(place, axis=1)

    def walk(self, shape, code):
        """Goes through latents of a shape (N, h, w) as they are coded.

        Args:
          shape: ints (N, h, w).
          code: function of (channels int [n], positions int [p] of P, classes uint8 [p, n]) that returns indices int [p, n].
        """
        surroundings = Surroundings(shape, len(self.order))
        for group, channels in surroundings.groups(self.order):
            for phase, where in enumerate(surroundings.phases):
                classes = np.empty((len(where), len(channels)), np.uint8)
                for first in range(0, len(where), BLOCK):
                    some = slice(first, first + BLOCK)
                    predicted = surroundings.known(where[some], phase).astype(np.float64) @ self._maps[group, phase]
                    classes[some] = classify(predicted, self.thresholds[channels, phase])
                classes += np.uint8(phase * OF_PHASE)
                surroundings.put(where, look_up(self.features[channels], code(channels, where, classes)))

    def classes(self, indices):
        """Classes of all latents: uint8 [N, h, w, C], of int indices [N, h, w, C]."""
        flat = indices.reshape(-1, indices.shape[-1])
        result = np.empty(flat.shape, np.uint8)

        def code(channels, where, classes):
            here = np.ix_(where, channels)
            result[here] = classes
            return flat[here]

        self.walk(indices.shape[:-1], code)
        return result.reshape(indices.shape)

    def scale(self, classes):
        """The exponents b of latents of classes uint8 [.., C]: float32 [.., C]. Lengths are b times those by counts, + log2 Z."""
        return look_up(self.exponents / np.float32(EXPONENT_UNIT), classes)

    def bits(self, indices, classes):
        """Bits spent on every latent, float64 [.., C]."""
        power = look_up(self.exponents, classes).astype(np.int64) * look_up(self.lengths, indices) // EXPONENT_UNIT
        return power / UNIT + look_up(self.log_sums, classes)


def look_up(table, indices):
    """table[c, indices[.., c]] for table [C, K] and int indices [.., C]."""
    return table.ravel().take(indices + np.arange(len(table)) * table.shape[1])


def features_of(lengths):
    """What the predictions are made of: uint8, of code lengths in 1/256 bits."""
    return np.minimum(lengths >> FEATURE_SHIFT, MOST_FEATURE).astype(np.uint8)


class Surroundings:
    """What is known of latents of a shape (N, h, w) while they are coded, group after group.

    Attributes:
      phases: two arrays of positions, int [p] of P.
    """

    def __init__(self, shape, channels):
        self._shape, self._start = shape, 0
        self._bounds = group_bounds(channels)
        colour = np.indices(shape).reshape(len(shape), -1)[1:].sum(axis=0) % PHASES
        self.phases = [np.flatnonzero(colour == phase) for phase in range(PHASES)]
        # Features, their sums over 4 neighbours and over the 4 diagonal ones; of the last group nothing follows.
        self._before = np.empty((len(colour), 3, self._bounds[-2]), np.uint16)
        self._group = self._sums = None

    def groups(self, order):
        """Yields the number of every group and its channels, of an order int [C]; between them, the group has to be `put`."""
        for group, (start, end) in enumerate(zip(self._bounds, self._bounds[1:])):
            self._start, self._group = start, np.zeros((len(self._before), end - start), np.uint8)
            yield group, order[start:end]
            if end < len(order):
                self._before[:, 0, start:end] = self._group
                for diagonal in (False, True):
                    self._before[:, 1 + diagonal, start:end] = self._neighbours(diagonal)

    def _neighbours(self, diagonal):
        """Sums over four neighbours of the group's features, uint16 [P, n]. Beyond its edges, an image is reflected."""
        x = self._group.reshape(*self._shape, -1)
        rows, columns = (np.pad(np.arange(side), 1, mode="reflect" if side > 1 else "edge") for side in self._shape[1:])
        vertical = x[:, rows[:-2]].astype(np.uint16) + x[:, rows[2:]]
        if diagonal:
            result = vertical[:, :, columns[:-2]] + vertical[:, :, columns[2:]]
        else:
            result = vertical + x[:, :, columns[:-2]] + x[:, :, columns[2:]]
        return result.reshape(self._group.shape)

    def known(self, where, phase):
        """What the maps of the group and phase take: uint16 [p, known] of positions int [p]."""
        before = self._before[where, :, :self._start].reshape(len(where), 3 * self._start)
        if not phase:
            return before
        if self._sums is None:
            self._sums = self._neighbours(False)
        return np.concatenate([before, self._sums[where]], axis=1)

    def put(self, where, features):
        """Tells features uint8 [p, n] of the group at positions int [p]."""
        self._group[where] = features
        self._sums = None


def classify(predicted, thresholds):
    """How many of the thresholds [n, T] each of the predictions [p, n] reaches: uint8 [p, n]."""
    classes = np.zeros(predicted.shape, np.uint8)
    for threshold in thresholds.T:
        classes += predicted >= threshold
    return classes


# Fitting.


def fit_table(counts, indices):
    """Fits the contexts of one table.

    Args:
      counts: int [C, K], of the table.
      indices: int [N, h, w, C], validation latents as they were quantized for it.

    Returns:
      order, weights, thresholds, exponents: see `Contexts`, without their first axis.
    """
    lengths = fixed_lengths(counts)
    used = look_up(lengths, indices).reshape(-1, len(lengths))  # (P, C)
    features = features_of(used)
    order = np.argsort(-used.sum(axis=0, dtype=np.int64), kind="stable").astype(np.int16)
    weights, thresholds = [], np.zeros((len(order), PHASES, OF_PHASE - 1), np.int64)
    exponents = np.full((len(order), CLASSES), EXPONENT_UNIT, np.uint16)
    surroundings = Surroundings(indices.shape[:-1], len(order))
    for _, channels in surroundings.groups(order):
        for phase, where in enumerate(surroundings.phases):
            here = np.ix_(where, channels)
            known = surroundings.known(where, phase)
            map_ = regression(known, used[here])
            weights.append(map_.astype(np.int16).ravel())
            predicted = known.astype(np.float64) @ map_
            if len(where):
                levels = np.quantile(predicted, np.arange(1, OF_PHASE) / OF_PHASE, axis=0)
                thresholds[channels, phase] = np.ceil(levels.T)
            classes = classify(predicted, thresholds[channels, phase])
            exponents[channels, phase * OF_PHASE:(phase + 1) * OF_PHASE] = best_exponents(lengths[channels], used[here], classes)
            surroundings.put(where, features[here])
    return order, np.concatenate(weights), thresholds, exponents


def regression(known, used):
    """The map from known [p, m] to lengths [p, n] with the least squared error.

    Returns:
      float64 [m, n], integers of up to 15 bits: each column is as large as that allows. Only the order of what it gives counts.
    """
    x, y = known.astype(np.float32), used.astype(np.float32)
    if not x.size:
        return np.zeros((x.shape[1], y.shape[1]))
    x -= x.mean(axis=0, dtype=np.float64)
    y -= y.mean(axis=0, dtype=np.float64)
    square = (x.T @ x).astype(np.float64)
    square[np.diag_indices(len(square))] += RIDGE * np.trace(square) / len(square) + 1
    map_ = np.linalg.solve(square, (x.T @ y).astype(np.float64))
    return np.round(map_ * (32767 / np.maximum(np.abs(map_).max(axis=0), 1e-30)))


def best_exponents(lengths, used, classes):
    """The exponents, in 1/64, that code latents in the fewest bits.

    The bits of p^b / Z are convex in b, and least where the mean length by counts is that expected: Newton's method.

    Args:
      lengths: int [n, K], in 1/256 bits.
      used: int [p, n], those of the latents.
      classes: uint8 [p, n], of a phase.

    Returns:
      uint16 [n, Q / 2].
    """
    result = np.empty((len(lengths), OF_PHASE), np.uint16)
    for c, row in enumerate(lengths):
        row, times = np.unique(row, return_counts=True)  # most code points have the length of those that were never chosen
        row = row / UNIT
        number = np.bincount(classes[:, c], minlength=OF_PHASE)
        total = np.bincount(classes[:, c], used[:, c] / UNIT, OF_PHASE)
        p = times * 2.**-row
        mean = (total + LEAST_COUNT * (p @ row) / p.sum()) / (number + LEAST_COUNT)
        b = np.ones(OF_PHASE)
        for _ in range(MOST_STEPS):
            p = times * 2.**(-b[:, None] * (row - row[0]))
            p /= p.sum(axis=1, keepdims=True)
            expected = p @ row
            variance = p @ (row * row) - expected**2
            before = b
            b = np.clip(b + np.clip((expected - mean) / (np.log(2) * variance + 1e-9), -.5, .5), 1 / EXPONENT_UNIT, MOST_EXPONENT)
            if np.abs(b - before).max() < 1e-6:
                break
        result[c] = np.round(b * EXPONENT_UNIT)
    return result
