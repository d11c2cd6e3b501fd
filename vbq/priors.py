"""The empirical prior: one deep factorized density per latent channel, fitted by maximum likelihood.

The density is that of Balle et al. 2018 ("Variational image compression with a scale hyperprior", appendix
6.1), in the form of `tfc.DeepFactorized`: cdf(x) = sigmoid(u(x)), where u is a small monotone network, one
per channel. VBQ (Yang, Bamler, Mandt, 2020) takes its code points from the quantiles. Everything is therefore
float64, and the inverse of the cdf is exact. The original trained the density with a TensorFlow script. A
channel has only 43 parameters, so a quasi-Newton method that fits all channels at once takes seconds.

The learned prior of training is a density of the same family, in float32. `initial` and `fit` start it.

Axis letters: B latent positions, C channels, F filters of a layer, M points of a channel, P parameters of a
channel.
"""

import numpy as np

from vbq.bfgs import minimize
from vbq.threads import parallel

NUM_FILTERS = (3, 3, 3)
PRIOR_CROPS = 256  # training crops to whose latents a prior is fitted that --init_run does not find
_WIDTHS = (1, *NUM_FILTERS, 1)
_CHANNELS_PER_TASK = 16  # fitted or inverted together, so that their arrays fit into the processor's cache

# The fit.
_POINTS = 400  # the samples of a channel are grouped at this many quantiles and at this many equal widths
_RESOLUTION = 1e-3  # width of a sample's interval, relative to the scale of the channel
_MIN_SCALE = 1e-5  # of a constant channel, relative to max(1, |value|): float32 latents can resolve it
_RIDGE = 1e-7  # nats per squared parameter; gives flat directions of the likelihood a minimum
_TOLERANCE = 1e-6  # nats per sample; a channel has converged when its fit gains less than that
_MAX_STEPS = 1000


class DeepFactorizedPrior:
    """Independent densities of C channels.

    Args:
      parameters: float array [C, P], the flattened weights of one layer after the other: the raw matrix (its
        softplus multiplies the layer's input), the bias, and, in every layer except the last, the raw factor
        (its tanh scales the layer's tanh).
    """

    def __init__(self, parameters):
        self.parameters = np.asarray(parameters, np.float64)
        assert self.parameters.shape == (len(self.parameters), NUM_PARAMETERS), self.parameters.shape

    def logits_and_slope(self, x):
        """Returns the logit of the cdf and its derivative at x [C, M]: two float64 arrays [C, M]."""
        return _forward(_split(self.parameters), x)

    def cdf(self, x):
        """Returns the cumulative probability at x [C, M]: float64 [C, M]."""
        return _sigmoid(self.logits_and_slope(x)[0])

    def log_prob(self, x):
        """Returns the log density in nats at x [C, M]: float64 [C, M]."""
        logits, slope = self.logits_and_slope(x)
        return np.log(slope) - _softplus(logits) - _softplus(-logits)

    def inverse_cdf(self, probabilities, tolerance=1e-9):
        """Returns the quantiles of every channel.

        Args:
          probabilities: float array [M], ascending, strictly between 0 and 1.
          tolerance: float, the largest error of the cdf at a returned quantile.

        Returns:
          float64 array [C, M], finite and ascending.
        """
        probabilities = np.asarray(probabilities, np.float64)
        targets = np.log(probabilities) - np.log1p(-probabilities)
        slack = tolerance / (probabilities * (1 - probabilities))  # the tolerance, converted to logits
        channels = _blocks(len(self.parameters))
        blocks = parallel(lambda c: _invert(self.parameters[c], targets, slack), channels)
        return np.concatenate(blocks)

    @classmethod
    def initial(cls, channels, seed=0, scale=1.0):
        """Makes the densities that `tfc.DeepFactorized` starts with: logistic, with random biases.

        Args:
          channels: int.
          seed: int, of the biases, which must differ between the units of a layer.
          scale: float, tfc's `init_scale`.

        Returns:
          A `DeepFactorizedPrior`.
        """
        return cls(_initial_parameters(channels, seed, scale))

    @classmethod
    def fit(cls, samples, seed=0):
        """Fits the densities by maximum likelihood.

        Args:
          samples: float array [B, C], finite: the posterior means of B latent positions.
          seed: int, of the random initial biases, which must differ between the units of a layer.

        Returns:
          A `DeepFactorizedPrior` of the samples.
        """
        initial = _initial_parameters(samples.shape[1], seed)
        blocks = parallel(lambda c: _fit(samples[:, c], initial[c]), _blocks(samples.shape[1]))
        return cls(np.concatenate(blocks))

    def arrays(self):
        """Returns the weights as a dict of float64 arrays, in the names and shapes of tfc.DeepFactorized."""
        return {
            f"{kind}_{layer}": self.parameters[:, where].reshape(-1, *shape)
            for layer, kind, where, shape in _ENTRIES
        }

    @classmethod
    def from_arrays(cls, arrays):
        """Makes the density from its weights.

        Args:
          arrays: dict of float arrays, as the method `arrays` returns it.

        Returns:
          A `DeepFactorizedPrior`.

        Raises:
          KeyError: an array is missing.
          ValueError: an array has the wrong shape.
        """
        channels = len(arrays["matrix_0"])
        for layer, kind, _, shape in _ENTRIES:
            found = arrays[f"{kind}_{layer}"].shape
            if found != (channels, *shape):
                raise ValueError(f"{kind}_{layer} has shape {found} instead of {(channels, *shape)}")
        flat = [arrays[f"{kind}_{layer}"].reshape(channels, -1) for layer, kind, _, _ in _ENTRIES]
        return cls(np.concatenate(flat, axis=1))


def _blocks(channels):
    """Returns slices of at most `_CHANNELS_PER_TASK` channels."""
    starts = range(0, channels, _CHANNELS_PER_TASK)
    return [slice(start, min(start + _CHANNELS_PER_TASK, channels)) for start in starts]


def _layout():
    """Returns layer, kind, slice and shape of every weight in the flat parameters, and their total size."""
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
    """Returns a list of layers; each is a list of its weights, views [C, rows, columns] of the parameters."""
    layers = [[] for _ in _WIDTHS[1:]]
    for layer, _, where, shape in _ENTRIES:
        layers[layer].append(parameters[:, where].reshape(-1, *shape))
    return layers


def _forward(layers, x):
    """Returns the logits u and their slope, both [C, M], at x [C, M].

    Follows `tfc.DeepFactorized._logits_cumulative`.
    """
    value = np.asarray(x, np.float64)[:, None]  # (C, 1, M)
    slope = 1.0
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
    """Returns the logits [C, M] at x [C, M], and the tape: what `_gradient` needs of every layer."""
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
    """Returns the gradient [C, P] of a function whose derivatives by the logits are d_value [C, M]."""
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
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _fit(samples, parameters):
    """Maximizes the likelihood of samples [B, C] from initial parameters [C, P]; returns parameters [C, P].

    The likelihood of a sample is the probability of an interval around it, divided by the width of the
    interval, `_RESOLUTION`. Unlike the density, it stays bounded where values repeat (black borders, channels
    without information).
    """
    x, weight = _group(samples)
    center, scale = _location_and_scale(x, weight)
    x = (x - center[:, None]) / scale[:, None]
    ends = np.concatenate([x - _RESOLUTION / 2, x + _RESOLUTION / 2], axis=1)

    def objective(parameters, channels):
        logits, tape = _value_and_tape(_split(parameters), ends[channels])
        low, high = np.split(logits, 2, axis=1)
        width = high - low
        # Accurate in both tails:
        # sigmoid(high) - sigmoid(low) = sigmoid(high) * sigmoid(-low) * (1 - exp(low - high))
        nats = _softplus(-high) + _softplus(low) - np.log(-np.expm1(-width) / _RESOLUTION)
        bend = 1 / np.expm1(width)
        d_low = weight[channels] * (_sigmoid(low) + bend)
        d_high = weight[channels] * (-_sigmoid(-high) - bend)
        gradient = _gradient(tape, np.concatenate([d_low, d_high], axis=1))
        loss = np.sum(weight[channels] * nats, axis=1) + _RIDGE * np.sum(parameters**2, axis=1)
        return loss, gradient + 2 * _RIDGE * parameters

    return _unstandardize(minimize(objective, parameters, _MAX_STEPS, _TOLERANCE), center, scale)


def _group(samples):
    """Groups samples [B, C] into M points per channel; returns the groups' means and weights, both [C, M]."""
    x = np.sort(samples.T.astype(np.float64), axis=1)
    positions = x.shape[1]
    ranks = np.linspace(0, positions, _POINTS + 1).astype(np.int64)[:-1]
    points, weights = [], []
    for row in x:
        widths = np.searchsorted(row, np.linspace(row[0], row[-1], _POINTS))
        starts = np.sort(np.concatenate([ranks, widths]))
        starts[0] = 0
        counts = np.diff(starts, append=positions)
        sums = np.diff(np.concatenate([[0], np.cumsum(row)])[np.append(starts, positions)])
        first = row[np.minimum(starts, positions - 1)]
        points.append(np.where(counts > 0, sums / np.maximum(counts, 1), first))
        weights.append(counts / positions)
    return np.stack(points), np.stack(weights)


def _location_and_scale(x, weight):
    """Returns the median and the scale, both [C], of weighted points [C, M].

    The scale is a third of the distance between the 5 % and 95 % quantiles or, if these are equal, a tenth of
    the standard deviation. It is never 0.
    """
    total = np.cumsum(weight, axis=1)
    low, center, high = (
        np.take_along_axis(x, np.argmax(total >= p, axis=1)[:, None], axis=1)[:, 0] for p in (0.05, 0.5, 0.95)
    )
    mean = np.sum(weight * x, axis=1, keepdims=True)
    deviation = np.sqrt(np.sum(weight * (x - mean) ** 2, axis=1))
    scale = np.where(high > low, (high - low) / 3, deviation / 10)
    return center, np.maximum(scale, _MIN_SCALE * np.maximum(1, np.abs(center)))


def _unstandardize(parameters, center, scale):
    """Converts parameters of a density of (x - center) / scale to those of the density of x."""
    parameters = parameters.copy()
    matrix, bias = (parameters[:, where] for _, _, where, _ in _ENTRIES[:2])  # (C, F), views: first layer
    slope = _softplus(matrix) / scale[:, None]
    matrix[:] = _inverse_softplus(slope)
    bias -= slope * center[:, None]
    return parameters


def _inverse_softplus(x):
    return x + np.log(-np.expm1(-x))


def _initial_parameters(channels, seed, scale=1.0):
    """Returns the initial weights of `tfc.DeepFactorized`, float64 [C, P]. Args: see `initial`."""
    random = np.random.default_rng(seed)
    parameters = np.zeros((channels, NUM_PARAMETERS))
    for _, kind, where, (rows, _) in _ENTRIES:
        if kind == "matrix":
            parameters[:, where] = _inverse_softplus(scale ** (-1 / len(_WIDTHS[1:])) / rows)
        elif kind == "bias":
            parameters[:, where] = random.uniform(-0.5, 0.5, (channels, rows))
    return parameters


def _invert(parameters, targets, slack):
    """Returns x [C, M] where the logits are within slack [M] of targets [M].

    Newton's method inside a shrinking bracket. A step that would leave the bracket halves it instead.
    """
    layers = _split(parameters)
    low, high = (_bracket(layers, targets[i], side) for i, side in ((0, -1.0), (-1, 1.0)))
    low, high = (np.repeat(x, len(targets), axis=1) for x in (low, high))
    x = 0.5 * (low + high)
    for _ in range(2000):  # more than halving alone can take in float64
        value, slope = _forward(layers, x)
        error = value - targets
        if np.all((np.abs(error) <= slack) | (high - low <= 4 * np.spacing(np.abs(x)))):
            return x
        low, high = np.where(error < 0, x, low), np.where(error > 0, x, high)
        x = x - error / slope
        x = np.where((low < x) & (x < high), x, 0.5 * (low + high))
    raise FloatingPointError("the inverse of the prior did not converge")


def _bracket(layers, target, side):
    """Returns a point [C, 1] whose logit is below the target (side -1.) or above it (side 1.)."""
    x = np.full((len(layers[0][0]), 1), side)
    while True:
        short = side * (_forward(layers, x)[0] - target) < 0
        if not short.any():
            return x
        x = np.where(short, 2 * x, x)
