"""Fits the contexts of `vbq/contexts.py` to validation latents.

Axis letters: N images, h, w latent positions, P = N h w all positions, C channels, K code points, L lambdas,
Q classes, n channels of a group, p positions of a phase, m known features.
"""

import math

import numpy as np

from vbq.code_points import look_up
from vbq.codebook import CONTEXT_ROUNDS
from vbq.command import progress
from vbq.contexts import (
    CLASSES,
    CLASSES_OF_PHASE,
    EXPONENT_UNIT,
    MOST_EXPONENT,
    ContextModel,
    Contexts,
    classify,
)
from vbq.fixed_point import UNIT, fixed_lengths
from vbq.surroundings import PHASES, Surroundings, features_of

RIDGE = 1e-3  # added to the diagonal in the regression, relative to the features' mean variance
PSEUDO_COUNT = 8  # latents with the channel's distribution, added to each class to smooth it
# The most latent positions that contexts are fitted to. They are those of an even sample of the images.
MOST_POSITIONS = 1 << 17
NEWTON_STEPS = 30  # the most that are taken to find an exponent


def fit_contexts(codebook_of, counts, lambs, mean, std):
    """Fits contexts at every lambda, to the latents as they are quantized with these contexts.

    Args:
      codebook_of: function from the number of a lambda to its `Codebook` without contexts.
      counts: int [L, C, K].
      lambs: float64 [L].
      mean, std: float32 [N, h, w, C], the validation latents' posterior. Of many images, every second, third
        and so on is taken, see `MOST_POSITIONS`.

    Returns:
      contexts.Contexts.
    """
    step = -(-math.prod(mean.shape[:3]) // MOST_POSITIONS)
    mean, std = mean[::step], std[::step]
    fits, class_counts = [], []
    for index in progress(range(len(lambs)), desc="contexts", unit="lambda"):
        plain, lamb = codebook_of(index), lambs[index]
        indices = plain.choose(mean, std, lamb)
        for _ in range(CONTEXT_ROUNDS):
            model = ContextModel(counts[index], *fit_arrays(counts[index], indices))
            codebook = plain.with_contexts(model)
            indices = codebook.choose_in_classes(mean, std, lamb, codebook.classes(indices))
        fits.append(fit_arrays(counts[index], indices))
        class_counts.append(count_in_classes(ContextModel(counts[index], *fits[-1]), indices))
    return Contexts.stack(fits, class_counts)


def count_in_classes(model, indices):
    """Counts how often the latents of each class take each symbol.

    A symbol that stands for several code points is not counted: its points keep the distribution p^b / Z.

    Args:
      model: contexts.ContextModel without class counts.
      indices: int [N, h, w, C], the quantized validation latents.

    Returns:
      int64 [Q, S].
    """
    sizes = model.symbols.sizes
    numbers = model.numbers(indices, model.classes(indices)).ravel()
    return np.bincount(numbers, minlength=CLASSES * len(sizes)).reshape(CLASSES, -1) * (sizes == 1)


def fit_arrays(counts, indices):
    """Fits the contexts of one lambda.

    Args:
      counts: int [C, K].
      indices: int [N, h, w, C], the quantized validation latents.

    Returns:
      order, weights, thresholds, exponents: as in `Contexts`, without the first axis.
    """
    lengths = fixed_lengths(counts)
    used = look_up(lengths, indices).reshape(-1, len(lengths))  # (P, C)
    features = features_of(used)
    order = np.argsort(-used.sum(axis=0, dtype=np.int64), kind="stable").astype(np.int16)
    weights, thresholds = [], np.zeros((len(order), PHASES, CLASSES_OF_PHASE - 1), np.int64)
    exponents = np.full((len(order), CLASSES), EXPONENT_UNIT, np.uint16)
    surroundings = Surroundings(indices.shape[:-1], len(order))
    for group in range(surroundings.groups):
        channels = order[surroundings.open_group(group)]
        for phase, positions in enumerate(surroundings.phases):
            here = np.ix_(positions, channels)
            _, known = next(surroundings.known(phase, np.uint16))
            known = np.ascontiguousarray(known.T)
            map_ = regression(known, used[here])
            weights.append(map_.astype(np.int8).ravel())
            predicted = known.astype(np.float64) @ map_
            if len(positions):
                levels = np.quantile(predicted, np.arange(1, CLASSES_OF_PHASE) / CLASSES_OF_PHASE, axis=0)
                thresholds[channels, phase] = np.ceil(levels.T)
            classes = classify(predicted.T, thresholds[channels, phase].astype(np.float64))
            of_phase = slice(phase * CLASSES_OF_PHASE, (phase + 1) * CLASSES_OF_PHASE)
            exponents[channels, of_phase] = best_exponents(lengths[channels], used[here], classes.T)
            surroundings.put(phase, features[here].T)
        surroundings.close_group()
    return order, np.concatenate(weights), thresholds, exponents


def regression(known, used):
    """Least-squares linear map from known features [p, m] to code lengths [p, n], with a ridge.

    Returns:
      float64 [m, n], integers from -127 to 127. Each column is scaled to the largest that fits: only the
      order of a channel's predictions matters. With up to 32767, the maps take 2.6 times as much of the file,
      and the rate is the same within 0.01 % (lambda 1, six Kodak images).
    """
    x, y = known.astype(np.float32), used.astype(np.float32)
    if not x.size:
        return np.zeros((x.shape[1], y.shape[1]))
    x -= x.mean(axis=0, dtype=np.float64)
    y -= y.mean(axis=0, dtype=np.float64)
    square = (x.T @ x).astype(np.float64)
    square[np.diag_indices(len(square))] += RIDGE * np.trace(square) / len(square) + 1
    map_ = np.linalg.solve(square, (x.T @ y).astype(np.float64))
    return np.round(map_ * (127 / np.maximum(np.abs(map_).max(axis=0), 1e-30)))


def best_exponents(lengths, used, classes):
    """Finds the exponents with which the latents of each class take the fewest bits.

    The bits under p^b / Z are convex in b. They are fewest where the mean of the lengths by counts equals its
    expectation under p^b / Z, which Newton's method finds.

    Args:
      lengths: int [n, K], code lengths by counts, in 1/256 bits.
      used: int [p, n], the lengths of the latents' code points, in 1/256 bits.
      classes: uint8 [p, n], within a phase.

    Returns:
      uint16 [n, Q / 2], in 1/64.
    """
    result = np.empty((len(lengths), CLASSES_OF_PHASE), np.uint16)
    for c, row in enumerate(lengths):
        # There are few different lengths: most points were never chosen and have the same.
        row, times = np.unique(row, return_counts=True)
        row = row / UNIT
        number = np.bincount(classes[:, c], minlength=CLASSES_OF_PHASE)
        total = np.bincount(classes[:, c], used[:, c] / UNIT, CLASSES_OF_PHASE)
        p = times * 2.0**-row
        mean = (total + PSEUDO_COUNT * (p @ row) / p.sum()) / (number + PSEUDO_COUNT)
        b = np.ones(CLASSES_OF_PHASE)
        for _ in range(NEWTON_STEPS):
            p = times * 2.0 ** (-b[:, None] * (row - row[0]))
            p /= p.sum(axis=1, keepdims=True)
            expected = p @ row
            variance = p @ (row * row) - expected**2
            before = b
            step = np.clip((expected - mean) / (np.log(2) * variance + 1e-9), -0.5, 0.5)
            b = np.clip(b + step, 1 / EXPONENT_UNIT, MOST_EXPONENT)
            if np.abs(b - before).max() < 1e-6:
                break
        result[c] = np.round(b * EXPONENT_UNIT)
    return result
