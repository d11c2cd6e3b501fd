"""The transforms and the loss of `vbq/transforms.py` in PyTorch, for `train_torch.py`.

Activations are [B, H, W, C]; the weights have the names of the original's variables.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from vbq.priors import NUM_FILTERS
from vbq.rdft import rdft_basis

GDN_PEDESTAL = 2.0**-36  # of the square-root parameterization, as in tensorflow-compression
BETA_MINIMUM = 1e-6
PRIOR_LAYERS = len(NUM_FILTERS) + 1


def dense_taps(size, stride, up):
    """Places the taps of a strided kernel in a dense one, to use between space-to-depth and depth-to-space.

    Args:
      size: odd int, the kernel's side.
      stride: int.
      up: True for an upsampling convolution, False for a downsampling correlation.

    Returns:
      int [dense taps, stride], the original tap at each dense tap and phase, -1 where there is none; and the
      zero padding (before, after) that keeps the size.
    """
    center = size // 2
    if up:  # y[s m + r] = sum over q of x[m + q] w[r + center - s q]
        first, last = -((size - 1 - center) // stride), (stride - 1 + center) // stride
        tap = np.arange(stride) + center - stride * np.arange(first, last + 1)[:, None]
    else:  # y[m] = sum over q, r of x[s (m + q) + r] w[s q + r + center]
        first, last = -center // stride, (size - 1 - center) // stride
        tap = np.arange(stride) + center + stride * np.arange(first, last + 1)[:, None]
    return np.where((tap >= 0) & (tap < size), tap, -1), (-first, last)


class Convolution:
    """One strided convolution with "same" zero padding, whose kernel is given by real-DFT coefficients.

    Where one side has few channels, the dense form is several times faster on an accelerator. The zeros in
    its kernel are part of the constant basis, so that both forms make their kernel by one product.
    """

    def __init__(self, size, stride, in_channels, out_channels, up, dense, device):
        """Makes the basis.

        Args:
          size: odd int, the kernel's side.
          stride: int.
          in_channels, out_channels: int.
          up: True for an upsampling convolution, False for a downsampling correlation.
          dense: bool, whether it takes the dense form.
          device: torch.device.
        """
        self.size, self.stride, self.up, self.dense = size, stride, up, dense
        self.channels = (in_channels, out_channels)
        basis = rdft_basis(size, size)
        self.support = (size, size)
        if dense:
            taps, self.padding = dense_taps(size, stride, up)  # (T, s)
            t, s = taps.shape
            row = np.where(
                (taps < 0)[:, None, :, None] | (taps < 0)[None, :, None, :],
                size * size,
                taps[:, None, :, None] * size + taps[None, :, None, :],
            )  # (T, T, s, s)
            basis = np.concatenate([basis, np.zeros((1, size * size))])[row.ravel()]
            self.support = (t, t, s, s)
        self.basis = torch.tensor(
            basis, device=device
        )  # float64: the product is small, and TF32 would round it

    def kernel(self, coefficients):
        """Returns the kernel as PyTorch's convolutions take it, float32 and channels last."""
        kernel = (self.basis @ coefficients.double()).float().reshape(*self.support, *self.channels)
        if not self.dense:
            kernel = kernel.permute((2, 3, 0, 1) if self.up else (3, 2, 0, 1))
        else:
            t, _, s, _ = self.support
            in_channels, out_channels = self.channels
            if self.up:
                kernel = kernel.permute(2, 3, 5, 4, 0, 1).reshape(s * s * out_channels, in_channels, t, t)
            else:
                kernel = kernel.permute(5, 2, 3, 4, 0, 1).reshape(out_channels, s * s * in_channels, t, t)
        return kernel.contiguous(memory_format=torch.channels_last)

    def __call__(self, x, coefficients, dtype):
        """Convolves x [B, H, W, in] in `dtype`; returns [B, H', W', out] in `dtype`."""
        kernel = self.kernel(coefficients).to(dtype)
        return (self._dense if self.dense else self._strided)(x.to(dtype), kernel)

    def _strided(self, x, kernel):
        x, center = x.permute(0, 3, 1, 2), self.size // 2
        if self.up:
            y = F.conv_transpose2d(
                x, kernel, stride=self.stride, padding=center, output_padding=self.stride - 1
            )
        else:
            y = F.conv2d(x, kernel, stride=self.stride, padding=center)
        return y.permute(0, 2, 3, 1)

    def _dense(self, x, kernel):
        (b, h, w, c), s = x.shape, self.stride
        if not self.up:
            x = x.reshape(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5)
            x = x.reshape(b, h // s, w // s, s * s * c)
        x = x.permute(0, 3, 1, 2)
        if self.padding[0] == self.padding[1]:
            y = F.conv2d(x, kernel, padding=self.padding[0])
        else:
            y = F.conv2d(F.pad(x, self.padding * 2), kernel)
        y = y.permute(0, 2, 3, 1)
        if self.up:
            out = self.channels[1]
            y = y.reshape(b, h, w, s, s, out).permute(0, 1, 3, 2, 4, 5).reshape(b, h * s, w * s, out)
        return y


class LowerBound(torch.autograd.Function):
    """max(x, bound), as in tensorflow-compression: below the bound, only a gradient that raises x passes."""

    @staticmethod
    def forward(ctx, x, bound):
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None


def gdn(x, reparam_beta, reparam_gamma, inverse, dtype):
    """(Inverse) generalized divisive normalization of x [B, H, W, C] (Ballé et al., 2017).

    The product of the squares with gamma is computed in `dtype`; everything else is float32.
    """
    x = x.float()
    beta = LowerBound.apply(reparam_beta, math.sqrt(BETA_MINIMUM + GDN_PEDESTAL)).square() - GDN_PEDESTAL
    gamma = LowerBound.apply(reparam_gamma, math.sqrt(GDN_PEDESTAL)).square() - GDN_PEDESTAL
    norm = (x.square().to(dtype) @ gamma.to(dtype)).float() + beta
    return x * (torch.sqrt(norm) if inverse else torch.rsqrt(norm))


def factorized_log_prob(weights, z):
    """Returns the log density of a learned prior, that of `tfc.DeepFactorized`, in nats.

    The cumulative density is the sigmoid of a small monotone network for each channel (Ballé et al., 2018,
    appendix 6.1). The density takes the network's slope, which is computed beside its value.

    Args:
      weights: dict of float32 tensors, `prior/matrix_0` and so on; others are ignored.
      z: float32 [B, h, w, C].

    Returns:
      float32 [B, h, w, C].
    """
    values = z.reshape(-1, 1, z.shape[-1]).permute(2, 1, 0)  # of the units of a layer: (C, units, B h w)
    slopes = torch.ones_like(values)
    for layer in range(PRIOR_LAYERS):
        matrix = F.softplus(weights[f"prior/matrix_{layer}"])  # (C, units, units before)
        values = torch.baddbmm(weights[f"prior/bias_{layer}"], matrix, values)
        slopes = torch.bmm(matrix, slopes)
        if layer < PRIOR_LAYERS - 1:
            factor = torch.tanh(weights[f"prior/factor_{layer}"])  # (C, units, 1)
            t = torch.tanh(values)
            values = values + factor * t
            slopes = slopes * (1 + factor * (1 - t * t))
    log_prob = F.logsigmoid(values) + F.logsigmoid(-values) + torch.log(slopes)  # (C, 1, B h w)
    return log_prob.permute(2, 1, 0).reshape(z.shape)


class Model:
    """The transforms and the loss of `vbq.transforms.VAE`, as functions of a dict of named weights."""

    def __init__(self, config, device, dense_below=16):
        """Makes the layers.

        Args:
          config: ModelConfig.
          device: torch.device.
          dense_below: int, channels below which a convolution takes its dense form.
        """
        self.config = config
        downs = [3, *config.num_filters[:-1], 2 * config.num_channels]
        ups = [*config.num_filters[::-1], 3]

        def layers(sizes, strides, channels, up):
            return [
                Convolution(
                    size, stride, i, o, up, dense=stride > 1 and min(i, o) < dense_below, device=device
                )
                for size, stride, i, o in zip(sizes, strides, channels, channels[1:])
            ]

        self.down = layers(config.filter_dims, config.sampling_rates, downs, up=False)
        self.up = layers(config.filter_dims[::-1], config.sampling_rates[::-1], ups, up=True)

    def _transform(self, weights, layers, x, dtype, scope, norm):
        last = len(layers) - 1
        for i, layer in enumerate(layers):
            name = f"{scope}/layer_{i}"
            x = layer(x, weights[f"{name}/kernel_rdft"], dtype)
            if f"{name}/bias" in weights:
                x = x + weights[f"{name}/bias"]
            if i < last:
                beta, gamma = (weights[f"{name}/{norm}_{i}/reparam_{part}"] for part in ("beta", "gamma"))
                x = gdn(x, beta, gamma, norm == "igdn", dtype)
        return x.float()

    def analysis(self, weights, x, dtype=torch.float32):
        """Maps images to the parameters of the posterior of their latents.

        Args: as those of `loss`.

        Returns:
          float32 posterior mean and log-variance, [B, H / stride, W / stride, C] each.
        """
        return self._transform(weights, self.down, x, dtype, "sequential", "gdn").chunk(2, dim=-1)

    def loss(self, weights, x, noise, dtype=torch.float32):
        """Computes the negative evidence lower bound, mean over the images, in nats.

        Args:
          weights: dict of float32 tensors.
          x: float32 [B, H, W, 3] in [0, 1], sides multiples of the stride.
          noise: float32 [B, H / stride, W / stride, C], standard normal.
          dtype: torch.dtype of the convolutions and of the matrix product in GDN; everything else is
            float32.

        Returns:
          dict of scalars: `loss`, `likelihood` log p(x | z), `kl` log q(z | x) - log p(z) at the sample,
            `mse`.
        """
        variance = self.config.likelihood_variance
        mean, logvar = self.analysis(weights, x, dtype)
        z = mean + noise * torch.exp(0.5 * logvar)
        x_hat = self._transform(weights, self.up, z, dtype, "sequential_1", "igdn")
        squared = (x - x_hat).square().sum() / len(x)
        log_normalizer = 0.5 * math.log(2 * math.pi * variance)
        likelihood = -0.5 * squared / variance - log_normalizer * x[0].numel()
        if self.config.learned_prior:
            log_posterior = -0.5 * (noise.square() + logvar + math.log(2 * math.pi))
            kl = (log_posterior - factorized_log_prob(weights, z)).sum() / len(x)
        else:
            kl = 0.5 * (z.square() - noise.square() - logvar).sum() / len(x)
        return {"loss": kl - likelihood, "likelihood": likelihood, "kl": kl, "mse": squared / x[0].numel()}
