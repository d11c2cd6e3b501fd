"""The search for the cheapest code point of every latent: the only one in the program.

The code points of a channel form a binary search tree. Its root is the point of 0 bits; the points of n bits
are at depth n. A latent descends from the root towards its mean. At every depth there are two candidates, the
points on either side of the mean: the node that the descent reaches, and that node's neighbour at the same
depth. A latent stops as soon as its best candidate costs no more than the bits alone of any deeper point. At
middle rates most latents stop at the root.

Axis letters: B latent positions, C channels, N max bits, K code points, A latents that still descend.
"""

import numpy as np

from vbq.code_points import distortion_weight, max_bits_of
from vbq.threads import cores, parallel

# Latents that a thread searches at a time. With fewer, threads mostly wait for the interpreter: on two cores,
# 373,000 latents took 18 ms with 2^16 and 11 ms with 2^18; 4.5 million took 201 and 100 ms.
BLOCK_LATENTS = 1 << 18
LAMB_RANGE = 1e-37, 1e30  # lambda is clipped to it, so that lamb * length is a positive finite float32
COMPACT_BELOW = 0.7  # the latents that still descend are copied together when they are fewer than this share


class SearchTrees:
    """The search trees of some channels.

    Every channel has a row of 2^(N+2) entries. Its K code points begin at `start`. The padding on both sides
    has infinite length, so that it is never chosen.

    Attributes:
      order: float32 [C, 2^(N+2)], ascending; the descent compares means with it.
      points: float32 [C, 2^(N+2)], the values of the code points. They differ from `order` where a fit has
        moved them.
      lengths: float32 [C, 2^(N+2)], code lengths in bits.
      shortest: float32 [N+1, C], the shortest length among the points at depth n and below.
    """

    def __init__(self, order, points, lengths, shortest):
        self.order, self.points, self.lengths, self.shortest = order, points, lengths, shortest
        self.max_bits = len(shortest) - 1
        self.start = (1 << self.max_bits) + 1
        self.root = self.start + (1 << self.max_bits) - 1

    @classmethod
    def build(cls, order, points, lengths):
        """Builds the trees.

        Args:
          order: float32 [C, K], ascending: the code points as they were placed.
          points: float32 [C, K], their values; pass `order` itself if none has moved.
          lengths: float32 [C, K], code lengths in bits; infinite for points that may not be chosen.

        Returns:
          SearchTrees.

        Raises:
          ValueError: K is not 2^(N+1) - 1.
        """
        max_bits = max_bits_of(order.shape[1])
        steps = [1 << (max_bits - n) for n in range(max_bits + 1)]
        shortest = np.stack([lengths[:, step - 1 :: 2 * step].min(axis=1) for step in steps])
        shortest = np.minimum.accumulate(shortest[::-1])[::-1]
        rows = _padded(order, 0)
        return cls(rows, rows if points is order else _padded(points, 0), _padded(lengths, np.inf), shortest)

    def of_channels(self, channels):
        """The trees of a slice of the channels."""
        order = self.order[channels]
        points = order if self.points is self.order else self.points[channels]
        return SearchTrees(order, points, self.lengths[channels], self.shortest[:, channels])


def _padded(values, padding):
    """Puts each row of [C, K] into the middle of a row of 2^(N+2): float32."""
    half = (values.shape[1] + 1) // 2
    rows = np.full((len(values), 4 * half), padding, np.float32)
    rows[:, half + 1 : half + 1 + values.shape[1]] = values
    return rows


def cheapest(trees, mean, std, lamb):
    """Finds the code points that minimize (z - mean)^2 / (2 std^2) + lamb * length.

    Args:
      trees: SearchTrees of C channels.
      mean, std: float32 [..., C], the posterior.
      lamb: float > 0, nats of distortion that a bit is worth.

    Returns:
      int32 [..., C], indices of code points. Of equally cheap points the shorter one is taken.
    """
    channels = mean.shape[-1]
    flat_mean, flat_std = mean.reshape(-1, channels), std.reshape(-1, channels)
    indices = np.empty(flat_mean.shape, np.int32)
    parts = min(channels, -(-indices.size // (BLOCK_LATENTS * cores())) * cores())
    blocks = [
        (slice(b, b + BLOCK_LATENTS), slice(channels * i // parts, channels * (i + 1) // parts))
        for i in range(parts)
        for b in range(0, len(indices), BLOCK_LATENTS)
    ]

    def search(block):
        block_mean, block_std = (np.ascontiguousarray(x[block].T) for x in (flat_mean, flat_std))
        of_block = trees.of_channels(block[1])
        indices[block] = descend(of_block, block_mean, distortion_weight(block_std), lamb).T

    parallel(search, blocks)
    return indices.reshape(mean.shape)


def cheapest_of(trees, channels, mean, std, lamb):
    """Does what `cheapest` does for some latents: channels int, mean and std float32, all [A]; int32 [A]."""
    indices = np.empty(len(channels), np.int32)

    def search(some):
        weight = distortion_weight(std[some])
        indices[some] = descend(trees, mean[some], weight, lamb, channels[some])

    parallel(search, [slice(a, a + BLOCK_LATENTS) for a in range(0, len(channels), BLOCK_LATENTS)])
    return indices


def descend(trees, mean, weight, lamb, channels=None):
    """Does what `cheapest` does, in the calling thread, for a block of latents by channels.

    Products with truth values replace `np.where`, which takes about 2.5 times as long on 32,768 random ones.

    Args:
      trees: SearchTrees.
      mean: float32 [C, B], or [A] with `channels`.
      weight: float32, shape of mean: 1 / (2 std^2).
      lamb: float > 0.
      channels: int [A], the channel of each latent; by default they are the rows.

    Returns:
      int32, shape of mean: indices of code points.
    """
    lamb = np.float32(np.clip(lamb, *LAMB_RANGE))
    shape, log_row = mean.shape, trees.max_bits + 2
    order, lengths = trees.order.ravel(), trees.lengths.ravel()
    points = order if trees.points is trees.order else trees.points.ravel()
    least = lamb * trees.shortest
    rows = np.arange(len(mean))[:, None] if channels is None else channels
    best = np.square(trees.points[:, trees.root][rows] - mean)
    best *= weight
    best += lamb * trees.lengths[:, trees.root][rows]
    choice = np.full(mean.size, trees.root - trees.start, np.int32)

    latent = np.flatnonzero(best > least[1][rows])  # (A,), and so are all arrays that follow
    row = latent // shape[1] if channels is None else channels[latent]
    node = (row << log_row) + trees.root
    chosen = node.copy()
    mean, weight, best = mean.take(latent), weight.take(latent), best.take(latent)
    right = mean > order.take(node)
    for n in range(1, trees.max_bits + 1):
        step = 1 << (trees.max_bits - n)
        node += _signed(right, step)
        cost = order.take(node)
        right = mean > cost
        neighbour = _signed(right, 2 * step)
        neighbour += node
        for candidate in node, neighbour:
            if candidate is neighbour or points is not order:
                cost = points.take(candidate)
            cost -= mean
            np.square(cost, out=cost)
            cost *= weight
            cost += lamb * lengths.take(candidate)
            chosen += (candidate - chosen) * (cost < best)
            np.minimum(best, cost, out=best)
        on = np.flatnonzero(best > least[n + 1].take(node >> log_row)) if n < trees.max_bits else latent[:0]
        if len(on) < COMPACT_BELOW * len(latent):
            choice[latent] = (chosen & (1 << log_row) - 1) - trees.start
            latent, node, chosen, right, mean, weight, best = (
                x.take(on) for x in (latent, node, chosen, right, mean, weight, best)
            )
        if not len(on):
            break
    return choice.reshape(shape)


def _signed(positive, size):
    """size where positive (bool), else -size: int64."""
    signed = positive.astype(np.int64)
    signed *= 2 * size
    signed -= size
    return signed
