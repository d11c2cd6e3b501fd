"""The transforms of a whole image, whatever its size, in bounded memory: piece by piece, with margins as wide as they reach.

But for the rounding the results are those that the whole image would have in one piece.
"""

import numpy as np

import utils

TILE_PIXELS = 1024  # side of the pieces, without margins


def posterior(run, image):
    """Applies the analysis transform.

    Args:
      run: bls2017_vae.Run.
      image: uint8 [H, W, 3].

    Returns:
      float32 posterior mean and standard deviation, [ceil(H / stride), ceil(W / stride), C] each.
    """
    shape = *(-(-side // run.stride) for side in image.shape[:2]), run.num_channels
    mean, std = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for tile, padded, inside in tiles(run, *shape[:2]):
        piece = image[pixels(padded, run.stride)]
        mean[tile], std[tile] = (latents[0][inside] for latents in run.encode(piece[None]))
    std *= .5
    return mean, np.exp(std, out=std)


def reconstruct(run, dequantize, indices, height, width):
    """Applies the synthesis transform.

    Args:
      run: bls2017_vae.Run.
      dequantize: function from indices to latents, applied to each piece.
      indices: int [h, w, C].
      height, width: int, pixels.

    Returns:
      uint8 [height, width, 3].
    """
    image = np.empty((height, width, 3), np.uint8)
    for tile, padded, inside in tiles(run, *indices.shape[:2]):
        x_hat = run.decode(dequantize(indices[padded])[None])[0][pixels(inside, run.stride)]
        here = image[pixels(tile, run.stride)]
        here[:] = utils.to_uint8(x_hat[:here.shape[0], :here.shape[1]])
    return image


def likelihood_of(run, image):
    """Compares an image with what latents decode to.

    Args:
      run: bls2017_vae.Run.
      image: uint8 [H, W, 3].

    Returns:
      function of latents z, float32 [h, w, C], that returns squared errors over twice the likelihood variance, a float in nats,
      which is -log p(x | z) but for a constant; and its gradient by z, float32 [h, w, C].
    """
    def likelihood(z):
        error, gradient = 0., np.empty_like(z)
        for tile, padded, inside in tiles(run, *z.shape[:2], margins=2):  # a latent's pixels depend on latents that far away
            x_hat, slope = run.likelihood_gradient(z[padded][None], image[pixels(padded, run.stride)][None])
            gradient[tile] = slope[0][inside]
            here = image[pixels(tile, run.stride)] / np.float32(255)
            here -= x_hat[0][pixels(inside, run.stride)][:here.shape[0], :here.shape[1]]
            error += float(np.square(here, out=here).sum(dtype=np.float64))
        return error / (2 * run.model.likelihood_variance), gradient
    return likelihood


def tiles(run, height, width, margins=1):
    """Cuts the latents of an image into pieces.

    Args:
      run: bls2017_vae.Run.
      height, width: int, of the latents.
      margins: int, how many times as wide as the transforms reach the margins are.

    Yields:
      pairs of slices, of latents: the piece; the piece and its margin, as far as there are latents; and where in that the piece is.
    """
    reach, step = 0, 1  # pixels
    for size, rate in zip(run.args["filter_dims"], run.args["sampling_rates"]):
        reach += size // 2 * step
        step *= rate
    margin, most = margins * -(-reach // run.stride), max(1, TILE_PIXELS // run.stride)
    for rows in _cut(height, most, margin):
        for columns in _cut(width, most, margin):
            yield tuple(zip(rows, columns))


def _cut(length, most, margin):
    """Yields the slices of `tiles` along one axis, for as few and as equal pieces as can be."""
    count = -(-length // most)
    for i in range(count):
        start, stop = length * i // count, length * (i + 1) // count
        first = max(start - margin, 0)
        yield slice(start, stop), slice(first, min(stop + margin, length)), slice(start - first, stop - first)


def pixels(slices, stride):
    """Returns the slices of pixels that belong to slices of latents."""
    return tuple(slice(s.start * stride, s.stop * stride) for s in slices)
