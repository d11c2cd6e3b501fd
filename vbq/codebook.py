"""All that it takes to quantize and count latents at one lambda: code points, their lengths, and contexts
where a fit has them.

Axis letters: h, w latent positions, C channels, K code points. Leading axes may be more, or none.
"""

import numpy as np

from vbq.code_points import look_up
from vbq.search import cheapest

CONTEXT_ROUNDS = 2  # how often `choose` chooses again, by the classes that its last choice leads to


class Codebook:
    """The code points of all channels at one lambda, with their code lengths.

    Attributes:
      points: float32 [C, K], the values of the code points.
      trees: search.SearchTrees, with the lengths by which code points are chosen.
      lengths: float32 [C, K], code lengths in bits, by which the rate is counted where there are no contexts.
      contexts: contexts.ContextModel, or None.
    """

    def __init__(self, points, trees, lengths, contexts=None):
        self.points, self.trees, self.lengths, self.contexts = points, trees, lengths, contexts

    def choose(self, mean, std, lamb):
        """Finds the code points that minimize (z - mean)^2 / (2 std^2) + lamb * length.

        With contexts, lengths depend on the classes, and classes on what is chosen. So a choice by the
        lengths of the counts comes first, and a few rounds follow, each with the classes that the round
        before leads to.

        Args:
          mean, std: float32 [..., h, w, C], the posterior. Without contexts [..., C] will do.
          lamb: float > 0, nats of distortion that a bit is worth.

        Returns:
          int32, shape of mean: indices of code points.
        """
        indices = cheapest(self.trees, mean, std, lamb)
        for _ in range(CONTEXT_ROUNDS if self.contexts else 0):
            indices = self.choose_in_classes(mean, std, lamb, self.classes(indices))
        return indices

    def choose_in_classes(self, mean, std, lamb, classes):
        """Does what `choose` does for latents whose classes are given; None stands for no contexts."""
        if classes is None:
            return cheapest(self.trees, mean, std, lamb)
        # A factor b on all lengths has the same effect as a factor sqrt(b) on std. log2 Z is equal for all
        # code points.
        return cheapest(self.trees, mean, std * np.sqrt(self.contexts.scale(classes)), lamb)

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
        """Bits spent on every latent [..., h, w, C]; classes are found where they are not given."""
        if self.contexts is None:
            return look_up(self.lengths, indices)
        return self.contexts.bits(indices, self.classes(indices) if classes is None else classes)
