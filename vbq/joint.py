"""Refinement of quantized latents with the decoder in the loop.

Variational Bayesian Quantization rounds every latent on its own, by its posterior, as if the errors of the
others did not matter. But in the decoded image the errors add up. Here every step decodes the latents and
follows the gradient of the likelihood, so that latents compensate for each other's errors. Model, code
points, file format and decoder stay as they are. Encoding takes longer.
"""

import numpy as np

from vbq.code_points import LEAST_STD

# Large steps gain more, but at some positions of some images, latents of different channels then overshoot
# together. So every position has its own step size. Where the residual grows, it gets smaller by a factor,
# down to a size that is safe on photographs.
STEP_SIZE, SMALLER, SAFE_SIZE = 0.2, 0.7, 0.1
MOMENTUM = 0.5
# A cost above this many times the least cost counts as divergence. The next step then starts again from the
# best latents, with a quarter of the step sizes.
DIVERGED = 1.5


def refine(codebook, indices, posterior, lamb, steps):
    """Lowers -log p(x | z) + lamb * bits, starting from quantized latents.

    Around latents z, the log-likelihood is approximated by a quadratic with the posterior's curvature 1 /
    std^2. On its own, a latent would then go to z - std^2 * gradient. A running mean of these targets takes
    the place of the posterior mean, and the latents are quantized again. Where the targets come to rest, no
    latent alone can lower the cost.

    Args:
      codebook: codebook.Codebook.
      indices: int32 [h, w, C], code points to start from.
      posterior: Posterior, float32 [h, w, C]. Its likelihood is a function of latents float32 [h, w, C] that
        returns -log p(x | z) up to a constant, in nats, and its gradient [h, w, C]; see `tiling.likelihood`.
      lamb: float > 0, nats of distortion that a bit is worth.
      steps: int, number of refinement steps: each quantizes again.

    Returns:
      int32 [h, w, C], the code points with the least cost of all steps.
    """
    mean, std, likelihood = posterior
    variance = np.square(np.maximum(std, LEAST_STD))
    target, velocity = mean, np.zeros_like(mean)
    size, before = np.full((*mean.shape[:-1], 1), STEP_SIZE, np.float32), np.inf
    best, least = None, np.inf
    for step in range(steps + 1):
        z, classes = codebook.dequantize(indices), codebook.classes(indices)
        distortion, gradient = likelihood(z)
        cost = distortion + lamb * codebook.bits(indices, classes).sum(dtype=np.float64)
        if best is None or cost < least:
            best, least = (indices, z, classes, gradient, target), cost
        elif not cost < DIVERGED * least:  # also where the cost is not a number
            indices, z, classes, gradient, target = best
            velocity, size, before = np.zeros_like(mean), size / 4, np.inf
        if step < steps:
            residual = z - variance * gradient - target
            norm = (np.square(residual) / variance).sum(axis=-1, keepdims=True)
            smaller = np.maximum(SMALLER * size, np.minimum(size, SAFE_SIZE))
            size, before = np.where(norm > before, smaller, size), norm
            velocity = MOMENTUM * velocity + size * residual
            target = target + velocity
            indices = codebook.choose_in_classes(target, std, lamb, classes)
    return best[0]
