"""The transforms of an image of any size in bounded memory.

An image is transformed tile by tile, with margins as wide as the receptive field. The results equal those of
the whole image at once, except for rounding. An image of up to 1024 x 1024 pixels is one tile.

Axis letters: H, W pixels, h, w latent positions, C channels.
"""

import numpy as np

from vbq.images import to_uint8

TILE_PIXELS = 1024  # side of the tiles, without margins


def encode(run, image):
    """Applies the analysis transform.

    Args:
      run: runs.Run.
      image: uint8 [H, W, 3].

    Returns:
      float32 posterior mean and standard deviation of the latents, [ceil(H / stride), ceil(W / stride), C]
      each.
    """
    shape = *(-(-side // run.stride) for side in image.shape[:2]), run.num_channels
    mean, std = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for tile, padded, inside in tiles(run, *shape[:2]):
        part = image[pixels(padded, run.stride)]
        mean[tile], std[tile] = (latents[0][inside] for latents in run.encode(part[None]))
    std *= 0.5  # so far it holds the log-variance
    return mean, np.exp(std, out=std)


def decode(run, dequantize, indices, height, width, gains=None):
    """Applies the synthesis transform.

    Args:
      run: runs.Run.
      dequantize: function from indices to latents; it is applied tile by tile.
      indices: int [h, w, C].
      height, width: int, pixels.
      gains: gains.Gains of the decoder, or None.

    Returns:
      uint8 [height, width, 3].
    """
    image = np.empty((height, width, 3), np.uint8)
    for tile, padded, inside in tiles(run, *indices.shape[:2]):
        x_hat = run.decode(dequantize(indices[padded])[None], gains=gains)[0][pixels(inside, run.stride)]
        here = image[pixels(tile, run.stride)]
        here[:] = to_uint8(x_hat[: here.shape[0], : here.shape[1]])
    return image


def likelihood(run, image):
    """Compares an image with what latents decode to.

    Args:
      run: runs.Run.
      image: uint8 [H, W, 3].

    Returns:
      Function of latents z, float32 [h, w, C], and of the decoder's `gains.Gains`, None by default. It
      returns -log p(x | z) up to a constant, a float in nats, and its gradient by z, float32 [h, w, C]. The
      former is the squared error divided by twice the variance of the likelihood.
    """

    def error_and_gradient(z, gains=None):
        error, gradient = 0.0, np.empty_like(z)
        # A latent reaches pixels one margin away, and these depend on latents another margin away.
        for tile, padded, inside in tiles(run, *z.shape[:2], margins=2):
            here = image[pixels(padded, run.stride)]
            x_hat, slope = run.likelihood_gradient(z[padded][None], here[None], gains)
            gradient[tile] = slope[0][inside]
            here = image[pixels(tile, run.stride)] / np.float32(255)
            here -= x_hat[0][pixels(inside, run.stride)][: here.shape[0], : here.shape[1]]
            error += float(np.square(here, out=here).sum(dtype=np.float64))
        return error / (2 * run.likelihood_variance), gradient

    return error_and_gradient


def tiles(run, height, width, margins=1):
    """Cuts the latents of an image into tiles.

    Args:
      run: runs.Run.
      height, width: int, latent positions.
      margins: int, width of the margins, in multiples of the receptive field's reach.

    Yields:
      Three pairs of slices: the tile among the latents; the tile with its margin, cut at the edges of the
      image; and the tile within the latter.
    """
    margin, most = margins * run.margin, max(1, TILE_PIXELS // run.stride)
    for rows in _cut(height, most, margin):
        for columns in _cut(width, most, margin):
            yield tuple(zip(rows, columns))


def _cut(length, most, margin):
    """Yields the slices of `tiles` along one axis, for the fewest tiles, of nearly equal size."""
    count = -(-length // most)
    for i in range(count):
        start, stop = length * i // count, length * (i + 1) // count
        first = max(start - margin, 0)
        yield slice(start, stop), slice(first, min(stop + margin, length)), slice(start - first, stop - first)


def pixels(slices, stride):
    """Returns the slices of pixels that belong to slices of latents."""
    return tuple(slice(s.start * stride, s.stop * stride) for s in slices)
