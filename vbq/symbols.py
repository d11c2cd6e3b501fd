"""The symbols of the range coder: code points of their own, and runs of code points that were never counted.

In a fit of 2047 code points a channel, at most 7 % of them were ever counted. All others of a channel have
the same length, so that a run of them between two counted ones can stand together in every table. Tables are
then 9 to 300 times smaller. A latent almost never takes such a code point: at most 1 in 20,000 on Kodak.

Axis letters: C channels, K code points, S symbols of all channels, one channel after the other.
"""

import numpy as np


class Symbols:
    """The symbols of all channels.

    Attributes:
      starts: int [C + 1], where the symbols of each channel begin.
      channels: int [S], the channel of each symbol.
      firsts: int [S], the first code point of each symbol, as a flat index into tables [C, K].
      sizes: int [S], how many code points a symbol stands for.
      points: int32 [S], the code point of each symbol, or -1 if it stands for several.
      of_points: int32 [C, K], the symbol of each code point: an index into the symbols of all channels.
      numbers: int32 [C, K], for each code point the number of its symbol within the channel, or -1 if the
        symbol stands for others, too.
    """

    def __init__(self, counts):
        """Takes int counts [C, K], how often each code point was chosen."""
        channels, points = counts.shape
        self.firsts = np.flatnonzero(_begins(counts))
        self.starts = np.searchsorted(self.firsts, np.arange(channels + 1) * points)
        self.channels = self.firsts // points
        self.sizes = np.diff(self.firsts, append=counts.size)
        is_one = self.sizes == 1
        self.points = np.where(is_one, self.firsts % points, -1).astype(np.int32)
        self.of_points = np.arange(len(self.firsts), dtype=np.int32).repeat(self.sizes).reshape(counts.shape)
        self.numbers = np.full(counts.shape, -1, np.int32)
        within = np.arange(len(self.firsts)) - self.starts[self.channels]
        self.numbers.ravel()[self.firsts[is_one]] = within[is_one]

    def of_channel(self, channel):
        """The slice of a channel's symbols."""
        return slice(self.starts[channel], self.starts[channel + 1])


def number_of_symbols(counts):
    """How many symbols the channels have together: int [...], of int counts [..., C, K]."""
    return np.count_nonzero(_begins(counts), axis=(-2, -1))


def _begins(counts):
    """Where a symbol begins: bool, shape of counts [..., C, K]."""
    alone = counts > 0
    alone[..., 0] = True  # so that no channel consists of one symbol, which the range coder does not take
    begins = alone.copy()
    begins[..., 1:] |= alone[..., :-1]
    return begins
