"""The codebook of one lambda: code points, their code lengths, and contexts where a fit has them.

Axis letters: h, w latent positions, C channels, K code points. There may be leading axes.
"""

import functools

import numpy as np

from vbq import joint
from vbq.code_points import look_up
from vbq.search import SearchTrees, cheapest, cheapest_of

CONTEXT_ROUNDS = 2  # choices that follow the first one, each in the classes of the choice before it


class Codebook:
    """The code points of all channels at one lambda, with their code lengths.

    Attributes:
      points: float32 [C, K], the values of the code points.
      lengths: float32 [C, K], code lengths in bits, by which the rate is counted where there are no contexts.
      contexts: contexts.ContextModel, or None.
      gains: gains.Gains of the decoder, or None.
    """

    def __init__(self, order, points, lengths, choice_lengths, contexts=None, gains=None):
        """Takes the tables.

        Args:
          order: float32 [C, K], ascending: the code points as they were placed.
          points: float32 [C, K], their values; `order` itself if none has moved.
          lengths: float32 [C, K], see the class.
          choice_lengths: float32 [C, K], code lengths in bits by which code points are chosen.
          contexts, gains: see the class.
        """
        self._order, self.points, self.lengths, self._choice_lengths = order, points, lengths, choice_lengths
        self.contexts, self.gains = contexts, gains

    @functools.cached_property
    def trees(self):
        """The search.SearchTrees, built when a latent is first quantized; decoding does not need them."""
        return SearchTrees.build(self._order, self.points, self._choice_lengths)

    def with_contexts(self, contexts):
        """The same codebook with other contexts; the trees are shared."""
        other = Codebook(self._order, self.points, self.lengths, self._choice_lengths, contexts, self.gains)
        other.trees = self.trees
        return other

    def quantize(self, posterior, lamb, joint_steps=0):
        """Quantizes the latents of an image.

        Args:
          posterior: Posterior, float32 [h, w, C].
          lamb: float > 0, nats of distortion that a bit is worth.
          joint_steps: int, number of refinement steps with the decoder in the loop, see `joint.refine`.

        Returns:
          int32 [h, w, C], indices of code points.
        """
        indices = self.choose(posterior.mean, posterior.std, lamb)
        if not joint_steps:
            return indices
        if self.gains is not None:
            likelihood = functools.partial(posterior.likelihood, gains=self.gains)
            posterior = posterior._replace(likelihood=likelihood)
        return joint.refine(self, indices, posterior, lamb, joint_steps)

    def choose(self, mean, std, lamb):
        """Finds the code points that minimize (z - mean)^2 / (2 std^2) + lamb * length.

        With contexts, lengths depend on the classes, and classes depend on what is chosen. The first choice
        uses the lengths by counts. `CONTEXT_ROUNDS` choices follow. Each uses the classes of the one before.

        Args:
          mean, std: float32 [..., h, w, C], the posterior. Without contexts, [..., C] is enough.
          lamb: float > 0, nats of distortion that a bit is worth.

        Returns:
          int32, shape of mean: indices of code points.
        """
        indices, factors = cheapest(self.trees, mean, std, lamb), None
        for _ in range(CONTEXT_ROUNDS if self.contexts else 0):
            before, factors = factors, self.contexts.std_factors(self.classes(indices))
            if before is None:
                indices = cheapest(self.trees, mean, std * factors, lamb)
            else:  # only latents whose class has changed can choose differently
                some = np.flatnonzero(factors != before)
                latents = mean.take(some), std.take(some) * factors.take(some)
                found = cheapest_of(self.trees, some % mean.shape[-1], *latents, lamb)
                indices.ravel()[some] = found
        return indices

    def choose_in_classes(self, mean, std, lamb, classes):
        """Does what `choose` does, in given classes: uint8, shape of mean, or None without contexts."""
        if classes is None:
            return cheapest(self.trees, mean, std, lamb)
        return cheapest(self.trees, mean, std * self.contexts.std_factors(classes), lamb)

    def classes(self, indices):
        """Classes of latents by their code points int [..., h, w, C]: uint8, or None without contexts."""
        if self.contexts is None:
            return None
        images = indices.reshape(-1, *indices.shape[-3:])
        return self.contexts.classes(images).reshape(indices.shape)

    def dequantize(self, indices):
        """The values of code points, float32 [..., C], of int indices [..., C]."""
        return look_up(self.points, indices)

    def bits(self, indices, classes=None):
        """Bits spent on every latent, float, shape of the indices int [..., h, w, C].

        Classes, uint8 of the same shape, are computed if they are not given.
        """
        if self.contexts is None:
            return look_up(self.lengths, indices)
        return self.contexts.bits(indices, self.classes(indices) if classes is None else classes)
