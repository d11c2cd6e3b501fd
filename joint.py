"""Quantizing with contexts, and with the decoder in the loop.

Variational Bayesian Quantization rounds every latent on its own, by its posterior, which is as if the errors of other latents did
not matter. In the decoded image they do add up. `choose` can follow the gradient of the likelihood at the decoded image instead: a
latent then makes up for what others have lost. Model, code points, file format and decoder stay as they are; encoding takes longer.

Axis letters: N images, h, w latent positions, C channels.
"""

import numpy as np

import contexts
import utils
from quantizers import LEAST_STD
from tree_search import quantize

STEP, MOMENTUM = .1, .5  # with STEP = .25, latents diverge together on some images
DIVERGED = 1.5  # of the least cost: back to there, with a quarter of the step; a model that is trained too little needs that
ROUNDS = 2  # of choosing by the classes that the choice before it leads to


def choose(quantizer, mean, std, lamb, table, likelihood=None, steps=0):
    """Quantizes the latents of an image.

    With the likelihood in a quadratic approximation around latents z, of the posterior's curvature 1 / std^2, a latent would go to
    z - std^2 gradient, if it was the only one. A running mean of these targets takes the place of the posterior mean; where it
    comes to rest, no latent alone can lower the cost. The best of all steps is returned.

    Args:
      quantizer: quantizers.ChannelwisePriorCDFQuantizer.
      mean, std: float32 [h, w, C], of the posterior.
      lamb: float > 0, nats of distortion that a bit is worth.
      table: int, whose code points, lengths and contexts count.
      likelihood: function of latents float32 [h, w, C] that returns their -log p(x | z), in nats, but for a constant, and its
        gradient [h, w, C]; only needed for steps. See `pieces.likelihood_of`.
      steps: int, how many more times to quantize, and to ask for the likelihood, than without.

    Returns:
      int32 [h, w, C], indices of code points.
    """
    context = quantizer.contexts_at(table) if quantizer.contexts else None

    def classes_of(indices):
        return context.classes(indices[None])[0] if context else None

    def choose_by(target, classes):
        # Lengths b times as large do the same as distortions that many times smaller; log2 Z is no matter of choice.
        return quantize(quantizer, target, std * np.sqrt(context.scale(classes)) if context else std, lamb, table)

    indices = quantize(quantizer, mean, std, lamb, table)
    for _ in range(ROUNDS if context else 0):
        indices = choose_by(mean, classes_of(indices))
    if not steps:
        return indices

    variance = np.square(np.maximum(std, LEAST_STD))
    target, velocity, size = mean, np.zeros_like(mean), STEP
    for step in range(steps + 1):
        z, classes = quantizer.dequantize(indices, table), classes_of(indices)
        distortion, gradient = likelihood(z)
        bits = context.bits(indices, classes) if context else quantizer.bits(indices, table)
        cost = distortion + lamb * bits.sum(dtype=np.float64)
        if step == 0 or cost < least:
            best, least = (indices, z, classes, gradient, target), cost
        elif not cost < DIVERGED * least:  # or not a number
            indices, z, classes, gradient, target = best
            velocity, size = np.zeros_like(mean), size / 4
        if step < steps:
            velocity = MOMENTUM * velocity + size * (z - variance * gradient - target)
            target = target + velocity
            indices = choose_by(target, classes)
    return best[0]


def fit_contexts(quantizer, mean, std):
    """Fits contexts to validation latents.

    Args:
      quantizer: quantizers.ChannelwisePriorCDFQuantizer without contexts.
      mean, std: float32 [N, h, w, C].

    Returns:
      contexts.Contexts.
    """
    tables = []
    for table in utils.progress(range(len(quantizer.lambs)), desc="contexts", unit="table"):
        lamb, counts = quantizer.lambs[table], quantizer.index_counts[table]
        indices = quantize(quantizer, mean, std, lamb, table)
        for _ in range(ROUNDS):
            found = contexts.TableContexts(counts, *contexts.fit_table(counts, indices))
            indices = quantize(quantizer, mean, std * np.sqrt(found.scale(found.classes(indices))), lamb, table)
        tables.append(contexts.fit_table(counts, indices))
    return contexts.Contexts.of_tables(tables)
