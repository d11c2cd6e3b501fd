"""Trains the VAE of `bls2017_vae.py` on an accelerator that has PyTorch but no TensorFlow 2.14.

    python tools/train_torch.py --checkpoint_dir checkpoints --train_glob 'photos/*.jpg' --batchsize 32 --patchsize 256 \\
        --num_filters 256 256 256 --likelihood_variance 0.001 --last_step 200000 --precision bf16 --max_seconds 540

The transforms, the real-DFT domain of the kernels, GDN, the loss and Adam are those of `bls2017_vae.py`; so are the names
and shapes of the weights, the flags, and the run directory. `tests/test_train_torch.py` compares the loss and every
gradient with the TensorFlow model. A learned prior is trained by `bls2017_vae.py` only.

The state is kept in `RUN/train_torch/`, in `.npz` parts of at most `--part_mb` each: weights, Adam's moments, the moving
average, and the state of the random numbers, so that a run goes on where its last slice stopped. `RUN/weights.npz` holds
the weights for use; `load_run` reads it. `tools/convert_checkpoint.py` turns the state into a TensorFlow checkpoint, and
such a checkpoint into this state.
"""

import argparse
import collections
import functools
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import fftpack

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import bls2017_vae  # pylint: disable=wrong-import-position
import train_state  # pylint: disable=wrong-import-position
import utils  # pylint: disable=wrong-import-position

GDN_PEDESTAL = 2.0**-36  # of the square-root parameterization, as in tensorflow-compression
BETA_MINIMUM = 1e-6
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # TensorFlow's Adam
LOG_STEPS = 100
SCALES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # of the photographs that --min_scale keeps in memory
Photos = collections.namedtuple("Photos", "pixels first height width cumulative")


# --- The model. Activations are NHWC; the weights carry the names of the original's variables. ---


def rdft_basis(size):
    """Orthonormal real-DFT basis of a square kernel, float64 [size**2 taps, size**2 coefficients]."""
    basis = np.identity(size * size).reshape(-1, size, size)
    for axis in (1, 2):
        basis = fftpack.rfft(basis, axis=axis)
        paired = [slice(None)] * 3  # all but the constant and, for an even size, the highest frequency
        paired[axis] = slice(1, None if size % 2 else -1)
        basis[tuple(paired)] *= math.sqrt(2)
    return basis.reshape(size * size, size * size) / size


def dense_taps(size, stride, up):
    """Places the taps of a strided kernel in a dense one, to use between space-to-depth and depth-to-space.

    Args:
      size: odd int, the kernel's side.
      stride: int.
      up: True for an upsampling convolution, False for a downsampling correlation.

    Returns:
      An int array [dense taps, stride]: the original tap at each dense tap and phase, -1 where there is none; and the zero
      padding (before, after) that keeps the size.
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
    """One strided convolution with "same" zero padding, its kernel a linear function of real-DFT coefficients.

    Where one side has few channels the dense form is several times faster on an accelerator; the zeros that it multiplies
    are part of its constant basis, so that it costs no other code.
    """

    def __init__(self, size, stride, in_channels, out_channels, up, dense, device):
        self.size, self.stride, self.up, self.dense = size, stride, up, dense
        self.channels = (in_channels, out_channels)
        basis = rdft_basis(size)
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
        else:
            self.support = (size, size)
        self.basis = torch.tensor(basis, device=device)  # float64: the product is small, and TF32 would round it

    def kernel(self, coefficients):
        """The kernel as PyTorch's convolutions take it, float32 and channels last."""
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
        b, h, w, c = x.shape
        s, kernel = self.stride, self.kernel(coefficients).to(dtype)
        x = x.to(dtype)
        if not self.dense:
            x, center = x.permute(0, 3, 1, 2), self.size // 2
            if self.up:
                y = F.conv_transpose2d(x, kernel, stride=s, padding=center, output_padding=s - 1)
            else:
                y = F.conv2d(x, kernel, stride=s, padding=center)
            return y.permute(0, 2, 3, 1)
        if not self.up:
            x = x.reshape(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h // s, w // s, s * s * c)
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
    """max(x, bound), whose gradient passes where it leads back above the bound (as in tensorflow-compression)."""

    @staticmethod
    def forward(ctx, x, bound):
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None


def gdn(x, reparam_beta, reparam_gamma, inverse):
    """(Inverse) generalized divisive normalization of x [B, H, W, C], in float32 (Balle et al., 2017)."""
    x = x.float()
    beta = LowerBound.apply(reparam_beta, math.sqrt(BETA_MINIMUM + GDN_PEDESTAL)).square() - GDN_PEDESTAL
    gamma = LowerBound.apply(reparam_gamma, math.sqrt(GDN_PEDESTAL)).square() - GDN_PEDESTAL
    norm = x.square() @ gamma + beta
    return x * (torch.sqrt(norm) if inverse else torch.rsqrt(norm))


class Model:
    """The transforms and the loss of `bls2017_vae.VAE`, as functions of a dict of named weights."""

    def __init__(self, num_filters, filter_dims, sampling_rates, likelihood_variance, device, dense_below=16):
        self.likelihood_variance = likelihood_variance
        downs = [3, *num_filters[:-1], 2 * num_filters[-1]]
        ups = [*num_filters[::-1], 3]
        layer = functools.partial(Convolution, device=device)
        self.down = [
            layer(k, s, i, o, up=False, dense=s > 1 and min(i, o) < dense_below)
            for k, s, i, o in zip(filter_dims, sampling_rates, downs, downs[1:])
        ]
        self.up = [
            layer(k, s, i, o, up=True, dense=s > 1 and min(i, o) < dense_below)
            for k, s, i, o in zip(filter_dims[::-1], sampling_rates[::-1], ups, ups[1:])
        ]

    def _transform(self, weights, layers, x, dtype, scope, norm):
        last = len(layers) - 1
        for i, layer in enumerate(layers):
            name = f"{scope}/layer_{i}"
            x = layer(x, weights[f"{name}/kernel_rdft"], dtype)
            if f"{name}/bias" in weights:
                x = x + weights[f"{name}/bias"]
            if i < last:
                x = gdn(
                    x,
                    weights[f"{name}/{norm}_{i}/reparam_beta"],
                    weights[f"{name}/{norm}_{i}/reparam_gamma"],
                    inverse=norm == "igdn",
                )
        return x.float()

    def loss(self, weights, x, noise, dtype=torch.float32):
        """Negative evidence lower bound, mean over the images, in nats.

        Args:
          weights: dict of float32 tensors.
          x: [B, H, W, 3] float32 in [0, 1], sides multiples of the stride.
          noise: [B, H/16, W/16, C] float32, standard normal.
          dtype: that of the convolutions; all else is float32.

        Returns:
          A dict of scalars: loss, likelihood (log p(x|z)), kl (log q - log p at the sample), mse.
        """
        mean, logvar = self._transform(weights, self.down, x, dtype, "sequential", "gdn").chunk(2, dim=-1)
        z = mean + noise * torch.exp(0.5 * logvar)
        x_hat = self._transform(weights, self.up, z, dtype, "sequential_1", "igdn")
        squared = (x - x_hat).square().sum() / len(x)
        log_normalizer = 0.5 * math.log(2 * math.pi * self.likelihood_variance)
        likelihood = -0.5 * squared / self.likelihood_variance - log_normalizer * x[0].numel()
        kl = 0.5 * (z.square() - noise.square() - logvar).sum() / len(x)
        return {"loss": kl - likelihood, "likelihood": likelihood, "kl": kl, "mse": squared / x[0].numel()}


# --- Photographs, decoded once and kept on the device. ---


def load_photos(pattern, patchsize, min_scale, by_area, device, threads):
    """Decodes the photographs, each at the scales from `min_scale` to 1 at which a patch still fits.

    Returns:
      Photos: pixels uint8 [N, 3]; first pixel, height, width int64 [P]; cumulative probability float32 [P]. Photographs
      are drawn alike, or by their area, and the scales of one alike.
    """

    def decode(path):
        try:
            image = Image.fromarray(utils.read_image(path))
        except utils.UserError as error:
            print(f"warning: left out: {error}", file=sys.stderr)
            return []
        sizes = [(round(image.width * s), round(image.height * s)) for s in SCALES if s >= min_scale]
        return [
            np.asarray(image if size == image.size else image.resize(size, Image.Resampling.LANCZOS))
            for size in sizes
            if min(size) >= patchsize
        ]

    with ThreadPoolExecutor(threads) as pool:
        photos = [levels for levels in pool.map(decode, utils.find_images(pattern)) if levels]
    if not photos:
        raise utils.UserError(
            f"expected photographs of at least {patchsize} x {patchsize} pixels, found none in {pattern!r}"
        )
    weight = np.concatenate([np.full(len(p), (p[0].size if by_area else 1) / len(p)) for p in photos])
    levels = [level for photo in photos for level in photo]
    area = [level.shape[0] * level.shape[1] for level in levels]
    tensor = functools.partial(torch.tensor, device=device)
    return Photos(
        torch.from_numpy(np.concatenate([level.reshape(-1, 3) for level in levels])).to(device),
        tensor(np.cumsum([0, *area[:-1]])),
        tensor([level.shape[0] for level in levels]),
        tensor([level.shape[1] for level in levels]),
        tensor(np.cumsum(weight / weight.sum()), dtype=torch.float32),
    )


def random_crops(photos, batchsize, patchsize, flip):
    """Draws [batchsize, patchsize, patchsize, 3] float32 in [0, 1] from the photographs, on their device."""
    device = photos.pixels.device
    u = torch.rand(4, batchsize, 1, 1, device=device)
    which = torch.searchsorted(photos.cumulative, u[0]).clamp(max=len(photos.first) - 1)
    width = photos.width[which]
    side = torch.arange(patchsize, device=device)
    y = (u[1] * (photos.height[which] - patchsize + 1)).long() + side[:, None]
    across = torch.where(u[3] < 0.5, patchsize - 1 - side, side) if flip else side
    x = (u[2] * (width - patchsize + 1)).long() + across
    return photos.pixels[photos.first[which] + y * width + x].float() / 255


# --- Training. ---


def adam_rate(learning_rate, t):
    """TensorFlow's Adam corrects the bias of step t = 1, 2, .. in the rate, and not in what `epsilon` is added to."""
    return learning_rate * math.sqrt(1 - BETA_2**t) / (1 - BETA_1**t)


def adam(weights, gradients, m, v, rate):
    """One step of TensorFlow's Adam, in place; lists of tensors, and the scalar tensor of `adam_rate`."""
    torch._foreach_lerp_(m, gradients, 1 - BETA_1)
    torch._foreach_mul_(v, BETA_2)
    torch._foreach_addcmul_(v, gradients, gradients, 1 - BETA_2)
    scale = torch._foreach_sqrt(v)
    torch._foreach_add_(scale, EPSILON)
    update = torch._foreach_div(m, scale)
    torch._foreach_mul_(update, rate)
    torch._foreach_sub_(weights, update)


class Trainer:
    """Weights, Adam and the moving average on a device, and one step of training, captured as a graph where there is CUDA."""

    def __init__(self, model, state, photos, args, device):
        self.model, self.photos, self.args, self.device = model, photos, args, device
        self.step = int(state["global_step"])
        place = lambda a: torch.tensor(a, dtype=torch.float32, device=device)
        self.weights = {k: place(v).requires_grad_() for k, v in state["weights"].items()}
        slots = {name: {k: place(v) for k, v in state[name].items()} for name in ("adam_m", "adam_v", "ema")}
        self.slots = {name: [slots[name][k] for k in self.weights] for name in slots}
        self.rate = torch.zeros((), device=device)  # Adam's, bias correction included
        self.sums = torch.zeros(5, device=device)  # loss, kl, mse, gradient norm, finite steps
        self.dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.precision != "float32"
        torch.backends.cudnn.benchmark = True
        self.loss = torch.compile(model.loss) if args.compile else model.loss
        torch.manual_seed(args.seed)
        if device.type == "cuda":
            self._capture()
        rng_state = state.get("rng_state")
        if rng_state is not None and len(rng_state) == len(
            self._generator().get_state()
        ):  # else from the other kind of device
            self._generator().set_state(torch.from_numpy(rng_state))

    def _generator(self):
        return (
            torch.cuda.default_generators[self.device.index or 0] if self.device.type == "cuda" else torch.default_generator
        )

    def _one_step(self):
        args = self.args
        x = random_crops(self.photos, args.batchsize, args.patchsize, args.flip)
        stride = math.prod(args.sampling_rates)
        noise = torch.randn(
            args.batchsize, args.patchsize // stride, args.patchsize // stride, args.num_filters[-1], device=self.device
        )
        weights = list(self.weights.values())
        out = self.loss(self.weights, x, noise, self.dtype)
        gradients = list(torch.autograd.grad(out["loss"], weights))
        with torch.no_grad():
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
            finite = torch.isfinite(norm + out["loss"])
            if args.clip_norm:  # a gradient beyond all bounds is left out
                torch._foreach_mul_(gradients, (args.clip_norm / norm).clamp(max=1))
                gradients = [torch.where(finite, g, 0) for g in gradients]
            adam(weights, gradients, self.slots["adam_m"], self.slots["adam_v"], self.rate)
            if args.ema_decay:
                torch._foreach_lerp_(self.slots["ema"], weights, 1 - args.ema_decay)
            sums = torch.stack([out["loss"], out["kl"], out["mse"], norm, torch.ones_like(norm)])
            self.sums += torch.where(finite, sums, 0)

    def _capture(self):
        """Records a step; the warm-up steps leave no trace."""
        kept = [t.detach().clone() for t in self._all_tensors()]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._one_step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._one_step()
        with torch.no_grad():
            for tensor, value in zip(self._all_tensors(), kept):
                tensor.copy_(value)

    def _all_tensors(self):
        return [*self.weights.values(), *(t for slot in self.slots.values() for t in slot), self.sums]

    def train(self, last_step, seconds):
        """Yields (step, means of loss, kl, mse, gradient norm) every `LOG_STEPS` steps, at least once."""
        end = time.monotonic() + seconds
        while self.step < last_step:
            steps = min(LOG_STEPS, last_step - self.step)
            for _ in range(steps):
                self.rate.fill_(adam_rate(bls2017_vae.learning_rate(self.args, self.step), self.step + 1))
                if self.device.type == "cuda":
                    self.graph.replay()
                else:
                    self._one_step()
                self.step += 1
            sums = self.sums.tolist()
            self.sums.zero_()
            if sums[4] < (0.9 * steps if self.args.clip_norm else steps):
                raise utils.UserError(
                    f"expected a finite loss, found {steps - sums[4]:.0f} that are not in the {steps} steps before "
                    f"step {self.step}; the last save is kept. Try a lower --learning_rate, --warmup_steps, --clip_norm"
                )
            yield self.step, [s / sums[4] for s in sums[:4]]
            if time.monotonic() >= end:
                return

    def state(self):
        """All that a later slice needs, on the host."""
        host = lambda tensors: {k: t.detach().cpu().numpy() for k, t in zip(self.weights, tensors)}
        return {
            "global_step": self.step,
            "weights": host(self.weights.values()),
            **{name: host(tensors) for name, tensors in self.slots.items()},
            "averaged": bool(self.args.ema_decay),
            "rng_state": self._generator().get_state().numpy(),
        }


def build_parser():
    """The flags of `bls2017_vae.py` and this tool's own."""
    parser = argparse.ArgumentParser(
        parents=[bls2017_vae.build_parser(add_help=False)],
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--precision",
        choices=["bf16", "tf32", "float32"],
        default="float32",
        help="arithmetic of the convolutions (bf16, tf32); GDN, loss and densities stay float32",
    )
    parser.add_argument("--compile", action="store_true", help="fuse with torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--by_area", action="store_true", help="draw photographs by their area instead of alike")
    parser.add_argument("--max_seconds", type=float, default=math.inf, help="stop this slice, state saved, after so long")
    parser.add_argument("--part_mb", type=float, default=15, help="largest file of the state, in 10^6 bytes")
    parser.add_argument(
        "--dense_below", type=int, default=16, help="channels below which a convolution takes its dense form"
    )
    return parser


def main(argv=None):
    """Runs one slice; returns the exit status."""
    args = build_parser().parse_args(argv)
    if args.learned_prior:
        raise utils.UserError("--learned_prior: expected a run without a learned prior; bls2017_vae.py trains it")
    started, device = time.monotonic(), torch.device(args.device)
    run_dir = os.path.join(args.checkpoint_dir, bls2017_vae.runname(args))
    state = train_state.load(run_dir)
    if not state:  # from shipped weights, or from nothing
        path = os.path.join(run_dir, "weights.npz")
        state = train_state.from_file(path) if os.path.exists(path) else train_state.initial(args)
    photos = load_photos(args.train_glob, args.patchsize, args.min_scale, args.by_area, device, args.preprocess_threads)
    model = Model(
        args.num_filters, args.filter_dims, args.sampling_rates, args.likelihood_variance, device, args.dense_below
    )
    train_state.write_args(run_dir, args)
    trainer = Trainer(model, state, photos, args, device)
    print(
        f"{run_dir}: step {trainer.step}; {len(photos.first)} photographs and scales, {photos.pixels.numel() / 1e9:.2f} GB; "
        f"ready after {time.monotonic() - started:.0f} s",
        flush=True,
    )
    saved = began = time.monotonic()
    first = trainer.step
    with open(os.path.join(run_dir, "train_torch.csv"), "a", encoding="utf-8") as log:
        for step, (loss, kl, mse, norm) in trainer.train(args.last_step, args.max_seconds):
            rate = (step - first) / (time.monotonic() - began)
            log.write(f"{step},{loss:.6g},{kl:.6g},{mse:.6g},{norm:.4g}\n")
            if args.verbose and step % 1000 == 0:
                print(
                    f"step {step}  loss {loss:.1f}  psnr {-10 * math.log10(mse):.3f}  kl {kl / args.patchsize**2:.4f} nat/pixel  "
                    f"gradient {norm:.3g}  {rate:.1f} steps/s",
                    flush=True,
                )
            if time.monotonic() - saved > args.save_checkpoint_secs:
                train_state.save(run_dir, trainer.state(), args.part_mb * 1e6)
                saved = time.monotonic()
    train_state.save(run_dir, trainer.state(), args.part_mb * 1e6)
    print(f"step {trainer.step}: saved in {run_dir}, {time.monotonic() - started:.0f} s in all", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_main(main))
