"""Quantization at a single lambda: what `quantizers.py` chooses, in a fraction of the time.

The code points of a channel form a binary search tree: its root is the point of 0 bits, and at depth n are those of n bits. A
latent descends in it towards its mean. At every depth the two points around the mean are candidates, the node that it gets to
and that node's neighbour; and it stops where no deeper point can be cheaper, because its bits alone would cost more than the
best so far. At middle rates most latents stop at the root.

Axis letters: B latent positions, C channels, N max bits, K code points, A latents that have not stopped.
"""

import functools
import os

import numpy as np

from quantizers import code_point_bits, parallel, weight_of

BLOCK = 1 << 16  # latents that a thread handles at a time
THREADS = os.cpu_count()  # of `parallel`
LAMBS = 1e-37, 1e30  # beyond these, products do; only the distortion or only the rate decides there as well as here
FEW = .7  # of the latents: where fewer go on, it pays to put those together


def quantize(quantizer, mean, std, lamb, table):
    """The code points that minimize (z - mean)^2 / (2 std^2) + lamb * length.

    Args:
      quantizer: quantizers.ChannelwisePriorCDFQuantizer.
      mean, std: float32 [..., C].
      lamb: float > 0.
      table: int, whose code points and lengths count; with that of the nearest lambda, this is `quantizer.quantize`.

    Returns:
      int32 [..., C], indices of code points.
    """
    trees = trees_of(quantizer, table)
    channels = mean.shape[-1]
    flat_mean, flat_std = mean.reshape(-1, channels), std.reshape(-1, channels)
    indices = np.empty(flat_mean.shape, np.int32)
    parts = min(channels, -(-indices.size // (BLOCK * THREADS)) * THREADS)
    blocks = [(slice(b, b + BLOCK), slice(channels * i // parts, channels * (i + 1) // parts))
              for i in range(parts) for b in range(0, len(indices), BLOCK)]

    def descend(block):
        block_mean, block_std = (np.ascontiguousarray(x[block].T) for x in (flat_mean, flat_std))
        indices[block] = _descend(trees.of(block[1]), np.float32(np.clip(lamb, *LAMBS)), block_mean, block_std).T

    parallel(descend, blocks)
    return indices.reshape(mean.shape)


class Trees:
    """The search trees of some channels.

    A channel's points lie in the middle of a row, from `start` on; off either end of the tree is what costs too much for ever.

    Attributes:
      order: float32 [C, 2^(N+2)] ascending, what directs the search.
      points: float32, likewise, the code points: more than two passes move them away from there.
      lengths: float32, likewise, in bits.
      least: float32 [N+1, C], the smallest length of all points of n and more bits.
    """

    def __init__(self, order, points, lengths, least):
        self.order, self.points, self.lengths, self.least = order, points, lengths, least
        self.max_bits = len(least) - 1
        self.start = (1 << self.max_bits) + 1
        self.root = self.start + (1 << self.max_bits) - 1

    def of(self, channels):
        """Those of a slice of the channels."""
        return Trees(self.order[channels], self.points[channels], self.lengths[channels], self.least[:, channels])


@functools.lru_cache(maxsize=8)
def trees_of(quantizer, table):
    """Returns the `Trees` of a quantizer's table, an int; the latest are kept."""
    depth = code_point_bits(quantizer.max_bits)
    lengths = quantizer.bit_length_code_lengths(table)[:, depth] if quantizer.passes == 2 else quantizer.code_lengths(table)
    steps = [1 << (quantizer.max_bits - n) for n in range(quantizer.max_bits + 1)]
    least = np.stack([lengths[:, step - 1::2 * step].min(axis=1) for step in steps])
    least = np.minimum.accumulate(least[::-1])[::-1]
    order = _in_rows(quantizer.code_points, 0)
    points = order if quantizer.passes == 2 else _in_rows(quantizer.code_points_at(table), 0)
    return Trees(order, points, _in_rows(lengths, np.inf), least)


def _in_rows(x, elsewhere):
    """Puts each row of [C, K] into the middle of one of 2^(N+2): float32."""
    half = (x.shape[1] + 1) // 2
    rows = np.full((len(x), 4 * half), elsewhere, np.float32)
    rows[:, half + 1:half + 1 + x.shape[1]] = x
    return rows


def _descend(trees, lamb, mean, std):
    """Quantizes a block.

    Arithmetic on truth values takes the place of `where`, which is many times as slow where they are as good as random.

    Args:
      trees: Trees.
      lamb: float32.
      mean, std: float32 [C, B].

    Returns:
      int32 [C, B].
    """
    order, points, lengths = trees.order.ravel(), trees.points.ravel(), trees.lengths.ravel()
    least, row = lamb * trees.least, trees.max_bits + 2  # log2 of a row's length
    weight = weight_of(std)
    best = np.square(trees.points[:, trees.root, None] - mean)
    best *= weight
    best += lamb * trees.lengths[:, trees.root, None]
    choice = np.full(mean.size, trees.root - trees.start, np.int32)

    latent = np.flatnonzero(best > least[1][:, None])  # (A,), as all that follow
    node = (latent // mean.shape[1] << row) + trees.root
    chosen = node.copy()
    mean, weight, best = mean.take(latent), weight.take(latent), best.take(latent)
    right = mean > order.take(node)
    for n in range(1, trees.max_bits + 1):
        step = 1 << (trees.max_bits - n)
        node += _signed(right, step)
        right = mean > order.take(node)
        other = _signed(right, 2 * step)
        other += node
        for candidate in node, other:
            cost = points.take(candidate)
            cost -= mean
            np.square(cost, out=cost)
            cost *= weight
            cost += lamb * lengths.take(candidate)
            chosen += (candidate - chosen) * (cost < best)
            np.minimum(best, cost, out=best)
        on = np.flatnonzero(best > least[n + 1].take(node >> row)) if n < trees.max_bits else latent[:0]
        if len(on) < FEW * len(latent):
            choice[latent] = (chosen & (1 << row) - 1) - trees.start
            latent, node, chosen, right, mean, weight, best = (
                x.take(on) for x in (latent, node, chosen, right, mean, weight, best))
        if not len(on):
            break
    return choice.reshape(std.shape)


def _signed(positive, size):
    """size where positive, else -size: int64, from bool."""
    signed = positive.astype(np.int64)
    signed *= 2 * size
    signed -= size
    return signed
