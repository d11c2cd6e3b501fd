"""Random latents, a small fit to them, and a search for the cheapest code point among all candidates."""

import numpy as np

from quantizers import ChannelwisePriorCDFQuantizer
from vbq.code_points import code_point_bits, distortion_weight, max_bits_of


def random_latents(seed, max_bits=4, channels=3, positions=200, log_std=1.0):
    """Code points float32 [C, K], and the means (some lie on code points, some beyond all) and standard
    deviations of latents, float32 [B, C].
    """
    random = np.random.default_rng(seed)
    points = np.sort(random.normal(size=(channels, (2 << max_bits) - 1)), axis=1).astype(np.float32)
    mean = random.normal(scale=1.5, size=(positions, channels)).astype(np.float32)
    mean[::7] = points[:, points.shape[1] // 6]
    return points, mean, np.exp(random.normal(-2, log_std, size=mean.shape)).astype(np.float32)


def context_fit(seed=0, **provenance):
    """A small fit with contexts, with its means and standard deviations float32 [12, 4, 4, 3]."""
    points, mean, std = random_latents(seed, positions=192)
    mean, std = mean.reshape(12, 4, 4, 3), std.reshape(12, 4, 4, 3)
    fit = ChannelwisePriorCDFQuantizer.fit(
        points, mean, std, [0.1, 10.0], passes=4, provenance=provenance, contexts=True
    )
    return fit, mean, std


def costs(points, lengths, mean, std, lamb):
    """Cost of every code point for every latent of a channel, float32 [B, K], of points and lengths [K]."""
    error = np.square(points - mean[:, None])
    return error * distortion_weight(std)[:, None] + np.float32(lamb) * lengths


def neighbours(order, mean):
    """Whether a code point is one of the two of its bit length around the mean: bool [B, K], of order [K]."""
    depth = code_point_bits(max_bits_of(len(order)))
    near = np.zeros((len(mean), len(order)), bool)
    for n in range(depth.max() + 1):
        ranks = np.flatnonzero(depth == n)
        split = np.searchsorted(order[ranks], mean)  # how many lie below the mean
        for at in (split - 1, split):
            inside = np.flatnonzero((at >= 0) & (at < len(ranks)))
            near[inside, ranks[at[inside]]] = True
    return near


def cheapest(order, points, lengths, mean, std, lamb):
    """The cheapest of the neighbours of every bit length, int [B, C]; of equally cheap ones the shortest."""
    depth = code_point_bits(max_bits_of(order.shape[1]))
    by_depth = np.argsort(depth, kind="stable")
    result = np.empty(mean.shape, np.int64)
    for c in range(mean.shape[1]):
        cost = costs(points[c], lengths[c], mean[:, c], std[:, c], lamb)
        cost = np.where(neighbours(order[c], mean[:, c]), cost, np.inf)
        result[:, c] = by_depth[np.argmin(cost[:, by_depth], axis=1)]
    return result
