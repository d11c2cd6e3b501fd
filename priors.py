"""The empirical prior: one deep factorized density per latent channel, fitted by maximum likelihood.

The density is that of Balle et al. 2018 ("Variational image compression with a scale hyperprior", appendix 6.1) as
`tfc.DeepFactorized` defines it: cdf(x) = sigmoid(u(x)), where u is a tiny monotone network of each channel's own.
VBQ (Yang, Bamler, Mandt, 2020) takes its code points from the quantiles, so the inverse is exact here and everything is
float64. The original ran a TensorFlow script of its own to train this density; with so few parameters (43 a channel)
a quasi-Newton method over all channels at once takes seconds.

Axis letters: C channels, F filters of a layer, M points of a channel, P parameters of a channel.
"""
from concurrent.futures import ThreadPoolExecutor
import os

import numpy as np

NUM_FILTERS = (3, 3, 3)
_WIDTHS = (1,) + NUM_FILTERS + (1,)
_CHANNELS_PER_TASK = 16  # fitted or inverted together; their arrays then stay near the processor's cache


class DeepFactorizedPrior:
    """Independent densities of C channels.

    Args:
      parameters: float array [C, P]: of every layer the raw matrix (softplus of it multiplies the layer's input), the
        bias, and, but for the last layer, the raw factor (tanh of it scales the layer's tanh), flattened one by one.
    """

    def __init__(self, parameters):
        self.parameters = np.asarray(parameters, np.float64)
        assert self.parameters.shape == (len(self.parameters), NUM_PARAMETERS), self.parameters.shape

    def logits_and_slope(self, x):
        """The logit of the cdf and its derivative, at x [C, M]: two float64 arrays [C, M]."""
        return _forward(_split(self.parameters), x)

    def cdf(self, x):
        """Cumulative probability at x [C, M]: float64 [C, M]."""
        return _sigmoid(self.logits_and_slope(x)[0])

    def log_prob(self, x):
        """Log density in nats at x [C, M]: float64 [C, M]."""
        logits, slope = self.logits_and_slope(x)
        return np.log(slope) - _softplus(logits) - _softplus(-logits)

    def inverse_cdf(self, probabilities, tolerance=1e-9):
        """Quantiles of every channel.

        Args:
          probabilities: float array [M], ascending, strictly between 0 and 1.
          tolerance: float, the largest error of the cdf at a returned quantile.
        Returns:
          float64 array [C, M], finite and ascending.
        """
        probabilities = np.asarray(probabilities, np.float64)
        targets = np.log(probabilities) - np.log1p(-probabilities)
        slack = tolerance / (probabilities * (1 - probabilities))  # the same tolerance, as one of the logit
        return np.concatenate(_in_blocks(lambda c: _invert(self.parameters[c], targets, slack), len(self.parameters)))

    @classmethod
    def fit(cls, samples, seed=0):
        """Maximum-likelihood densities.

        Args:
          samples: float array [B, C], finite: the posterior means of B latent positions.
          seed: int, for the initial biases (the units of a layer must differ).
        Returns:
          A `DeepFactorizedPrior`; the parameters are those for the samples as they are, not standardized.
        """
        initial = _initial_parameters(samples.shape[1], seed)
        return cls(np.concatenate(_in_blocks(lambda c: _fit(samples[:, c], initial[c]), samples.shape[1])))

    def arrays(self):
        """The weights under the names and with the shapes of tfc.DeepFactorized's variables: a dict of float64 arrays."""
        return {f"{kind}_{layer}": self.parameters[:, where].reshape(-1, *shape)
                for layer, kind, where, shape in _ENTRIES}

    @classmethod
    def from_arrays(cls, arrays):
        """The density that `arrays` described; KeyError or ValueError if something is missing or does not fit."""
        channels = len(arrays["matrix_0"])
        for layer, kind, _, shape in _ENTRIES:
            found = arrays[f"{kind}_{layer}"].shape
            if found != (channels, *shape):
                raise ValueError(f"{kind}_{layer} has shape {found}, expected {(channels, *shape)}")
        return cls(np.concatenate([arrays[f"{kind}_{layer}"].reshape(channels, -1)
                                   for layer, kind, _, _ in _ENTRIES], axis=1))


def _in_blocks(function, channels):
    blocks = [slice(c, min(c + _CHANNELS_PER_TASK, channels)) for c in range(0, channels, _CHANNELS_PER_TASK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, blocks))


# The network.

def _layout():
    """Layer, kind, slice and shape of every weight in the flat parameters, and their number."""
    entries, offset = [], 0
    for layer, (rows, columns) in enumerate(zip(_WIDTHS[1:], _WIDTHS[:-1])):
        shapes = {"matrix": (rows, columns), "bias": (rows, 1), "factor": (rows, 1)}
        if layer == len(NUM_FILTERS):
            del shapes["factor"]
        for kind, shape in shapes.items():
            entries.append((layer, kind, slice(offset, offset + shape[0] * shape[1]), shape))
            offset = entries[-1][2].stop
    return entries, offset


_ENTRIES, NUM_PARAMETERS = _layout()


def _split(parameters):
    """The flat parameters as views [C, rows, columns]: a list of layers, each matrix, bias[, factor]."""
    layers = [[] for _ in _WIDTHS[1:]]
    for layer, _, where, shape in _ENTRIES:
        layers[layer].append(parameters[:, where].reshape(-1, *shape))
    return layers


def _forward(layers, x):
    """The logits u at x [C, M], their slope there (both [C, M]): tfc.DeepFactorized._logits_cumulative."""
    value = np.asarray(x, np.float64)[:, None]  # (C, 1, M)
    slope = 1.
    for raw_matrix, bias, *raw_factor in layers:
        matrix = _softplus(raw_matrix)
        value = matrix @ value + bias  # (C, F, M)
        slope = matrix @ slope if np.ndim(slope) else matrix
        if raw_factor:
            factor, t = np.tanh(raw_factor[0]), np.tanh(value)
            value = value + factor * t
            slope = slope * (1 + factor * (1 - t * t))
    return value[:, 0], slope[:, 0]


def _value_and_tape(layers, x):
    """The logits alone, and what `_gradient` needs of every layer."""
    value = x[:, None]  # (C, 1, M)
    tape = []
    for raw_matrix, bias, *raw_factor in layers:
        matrix, inputs = _softplus(raw_matrix), value
        value = matrix @ value + bias  # (C, F, M)
        factor, t = None, None
        if raw_factor:
            factor, t = np.tanh(raw_factor[0]), np.tanh(value)
            value = value + factor * t
        tape.append((raw_matrix, matrix, inputs, factor, t))
    return value[:, 0], tape


def _gradient(tape, d_value):
    """Gradient [C, P] of a sum over points whose derivative by the logits is d_value [C, M]."""
    d_value = d_value[:, None]  # (C, 1, M)
    gradients = []
    for raw_matrix, matrix, inputs, factor, t in reversed(tape):
        if factor is not None:
            gradients.append(np.sum(d_value * t, axis=2, keepdims=True) * (1 - factor * factor))
            d_value = d_value * (1 + factor * (1 - t * t))
        gradients.append(np.sum(d_value, axis=2, keepdims=True))
        gradients.append(d_value @ inputs.transpose(0, 2, 1) * _sigmoid(raw_matrix))
        d_value = matrix.transpose(0, 2, 1) @ d_value
    return np.concatenate([g.reshape(len(g), -1) for g in reversed(gradients)], axis=1)


def _softplus(x):
    return np.logaddexp(0, x)


def _sigmoid(x):
    return .5 + .5 * np.tanh(.5 * x)


# The fit.

_POINTS = 400        # quantiles, and as many equal widths, into which the samples of a channel are grouped
_RESOLUTION = 1e-3   # of the scale of a channel
_MIN_SCALE = 1e-5    # of a constant channel, relative to max(1, |value|): what float32 latents can resolve
_RIDGE = 1e-7        # nats per squared parameter: flat directions of the likelihood have a minimum, too
_TOLERANCE = 1e-6    # a channel has converged when _PATIENCE steps together gain less, in nats a sample
_PATIENCE = 10
_MAX_STEPS = 1000


def _fit(samples, parameters):
    """Parameters [C, P] of largest likelihood for samples [B, C], from the given initial ones.

    The likelihood is that of a sample in an interval of width _RESOLUTION around it, over the width: that of the density,
    but bounded where values repeat (black borders, channels that say nothing), where the density could grow for ever.
    """
    x, weight = _group(samples)
    center, scale = _location_and_scale(x, weight)
    x = (x - center[:, None]) / scale[:, None]
    ends = np.concatenate([x - _RESOLUTION / 2, x + _RESOLUTION / 2], axis=1)

    def objective(parameters, channels):
        logits, tape = _value_and_tape(_split(parameters), ends[channels])
        low, high = np.split(logits, 2, axis=1)
        width = high - low
        # sigmoid(high) - sigmoid(low) = sigmoid(high) * sigmoid(-low) * (1 - exp(low - high)), accurate in both tails
        nats = _softplus(-high) + _softplus(low) - np.log(-np.expm1(-width) / _RESOLUTION)
        bend = 1 / np.expm1(width)
        d_logits = np.concatenate([weight[channels] * (_sigmoid(low) + bend),
                                   weight[channels] * (-_sigmoid(-high) - bend)], axis=1)
        return (np.sum(weight[channels] * nats, axis=1) + _RIDGE * np.sum(parameters ** 2, axis=1),
                _gradient(tape, d_logits) + 2 * _RIDGE * parameters)

    return _unstandardize(_minimize(objective, parameters), center, scale)


def _group(samples):
    """Weighted means [C, M] and weights [C, M] that stand for samples [B, C]: as many points as matter, not B."""
    x = np.sort(samples.T.astype(np.float64), axis=1)
    positions = x.shape[1]
    ranks = np.linspace(0, positions, _POINTS + 1).astype(np.int64)[:-1]
    points, weights = [], []
    for row in x:
        starts = np.sort(np.concatenate([ranks, np.searchsorted(row, np.linspace(row[0], row[-1], _POINTS))]))
        starts[0] = 0
        counts = np.diff(starts, append=positions)
        sums = np.diff(np.concatenate([[0], np.cumsum(row)])[np.append(starts, positions)])
        points.append(np.where(counts > 0, sums / np.maximum(counts, 1), row[np.minimum(starts, positions - 1)]))
        weights.append(counts / positions)
    return np.stack(points), np.stack(weights)


def _location_and_scale(x, weight):
    """Median and spread [C] of weighted points [C, M]; the spread is of the bulk where there is one, and never 0."""
    total = np.cumsum(weight, axis=1)
    low, center, high = (np.take_along_axis(x, np.argmax(total >= p, axis=1)[:, None], axis=1)[:, 0]
                         for p in (.05, .5, .95))
    mean = np.sum(weight * x, axis=1, keepdims=True)
    deviation = np.sqrt(np.sum(weight * (x - mean) ** 2, axis=1))
    scale = np.where(high > low, (high - low) / 3, deviation / 10)
    return center, np.maximum(scale, _MIN_SCALE * np.maximum(1, np.abs(center)))


def _minimize(objective, start, max_steps=_MAX_STEPS, tolerance=_TOLERANCE):
    """BFGS with backtracking for many independent problems at once; those that have converged drop out.

    Args:
      objective: function of (parameters [A, P], channels [A]) that returns losses [A] and gradients [A, P].
      start: float64 array [C, P].
    Returns:
      float64 array [C, P].
    """
    result = start.copy()
    active, x = np.arange(len(start)), start.copy()
    loss, gradient = objective(x, active)
    inverse = np.eye(x.shape[1]) / np.maximum(1, np.linalg.norm(gradient, axis=1))[:, None, None]  # (A, P, P)
    reference = loss
    for step in range(1, max_steps + 1):
        direction = -np.einsum("cij,cj->ci", inverse, gradient)
        new_x, new_loss, new_gradient = _backtrack(objective, active, x, loss, gradient, direction)
        _update_inverse(inverse, new_x - x, new_gradient - gradient)
        x, loss, gradient = new_x, new_loss, new_gradient
        result[active] = x
        if step % _PATIENCE == 0:
            going = reference - loss > tolerance
            if not going.any():
                break
            active, x, loss, gradient, inverse = (a[going] for a in (active, x, loss, gradient, inverse))
            reference = loss
    return result


def _backtrack(objective, active, x, loss, gradient, direction):
    """The first of the steps 1, 1/3, 1/9, ... that lowers each loss enough; channels without one stay where they are."""
    x, loss, gradient = x.copy(), loss.copy(), gradient.copy()
    start, base = x.copy(), loss.copy()
    descent = np.sum(direction * gradient, axis=1)
    pending, length = np.arange(len(x)), 1.
    for _ in range(15):
        trial = start[pending] + length * direction[pending]
        with np.errstate(all="ignore"):  # a step may leave the range of floats: it is then not accepted
            trial_loss, trial_gradient = objective(trial, active[pending])
        good = trial_loss <= base[pending] + 1e-4 * length * descent[pending]
        good &= np.isfinite(trial_gradient).all(axis=1)
        done = pending[good]
        x[done], loss[done], gradient[done] = trial[good], trial_loss[good], trial_gradient[good]
        pending = pending[~good]
        if not len(pending):
            break
        length /= 3
    return x, loss, gradient


def _update_inverse(inverse, s, y):
    """The BFGS update of the inverse Hessians [C, P, P] by steps s and gradient changes y [C, P], in place."""
    sy = np.sum(s * y, axis=1)
    good = sy > 1e-12 * np.linalg.norm(s, axis=1) * np.linalg.norm(y, axis=1)
    good &= sy > 0
    h, s, y, sy = inverse[good], s[good], y[good], sy[good, None, None]
    hy = np.einsum("cij,cj->ci", h, y)
    yhy = np.sum(y * hy, axis=1)[:, None, None]
    outer = hy[:, :, None] * s[:, None, :]
    inverse[good] = h + (1 + yhy / sy) / sy * s[:, :, None] * s[:, None, :] - (outer + outer.transpose(0, 2, 1)) / sy


def _unstandardize(parameters, center, scale):
    """The parameters that take x where the given ones take (x - center) / scale."""
    parameters = parameters.copy()
    matrix, bias = (parameters[:, where] for _, _, where, _ in _ENTRIES[:2])  # views (C, F) of the first layer
    slope = _softplus(matrix) / scale[:, None]
    matrix[:] = _inverse_softplus(slope)
    bias -= slope * center[:, None]
    return parameters


def _inverse_softplus(x):
    return x + np.log(-np.expm1(-x))


def _initial_parameters(channels, seed):
    """As tfc.DeepFactorized with an init_scale of 1: a logistic density and random biases."""
    random = np.random.default_rng(seed)
    parameters = np.zeros((channels, NUM_PARAMETERS))
    for _, kind, where, (rows, columns) in _ENTRIES:
        if kind == "matrix":
            parameters[:, where] = _inverse_softplus(1 / rows)
        elif kind == "bias":
            parameters[:, where] = random.uniform(-.5, .5, (channels, rows))
    return parameters


# The inverse.

def _invert(parameters, targets, slack):
    """x [C, M] where the logits are within slack [M] of targets [M]: Newton's method inside a shrinking bracket."""
    layers = _split(parameters)
    low, high = (_bracket(layers, targets[i], side) for i, side in ((0, -1.), (-1, 1.)))
    low, high = (np.repeat(x, len(targets), axis=1) for x in (low, high))
    x = .5 * (low + high)
    for _ in range(2000):  # halving alone needs at most the bits of a float64
        value, slope = _forward(layers, x)
        error = value - targets
        if np.all((np.abs(error) <= slack) | (high - low <= 4 * np.spacing(np.abs(x)))):
            return x
        low, high = np.where(error < 0, x, low), np.where(error > 0, x, high)
        x = x - error / slope
        x = np.where((low < x) & (x < high), x, .5 * (low + high))
    raise FloatingPointError("the inverse of the prior did not converge")


def _bracket(layers, target, side):
    """A point [C, 1] beyond the quantile of the logit target, on the given side (-1. or 1.)."""
    x = np.full((len(layers[0][0]), 1), side)
    while True:
        short = side * (_forward(layers, x)[0] - target) < 0
        if not short.any():
            return x
        x = np.where(short, 2 * x, x)
