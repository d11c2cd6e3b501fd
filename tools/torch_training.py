"""Photographs on an accelerator, and the training step of `train_torch.py`."""

import collections
import functools
import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import train_state
from PIL import Image

from vbq.command import UserError, note
from vbq.files import find_images
from vbq.images import read_image
from vbq.left_out import LeftOut
from vbq.priors import PRIOR_CROPS, DeepFactorizedPrior

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # TensorFlow's Adam
LOG_STEPS = 100
SCALES = tuple(tenths / 10 for tenths in range(10, 0, -1))  # of the photographs, those from --min_scale up
Photos = collections.namedtuple("Photos", "pixels first height width cumulative")


# Photographs, decoded once and kept on the device.


def load_photos(pattern, patchsize, min_scale, by_area, device, threads):
    """Decodes the photographs, each at all scales from `min_scale` to 1 at which a crop fits into it.

    Args:
      pattern: str, a glob of image files.
      patchsize: int, side of the crops in pixels.
      min_scale: float in (0, 1].
      by_area: bool, whether photographs are drawn with probabilities in proportion to their areas, or with
        equal ones. The scales of one photograph have equal probabilities.
      device: torch.device.
      threads: int, how many photographs are decoded at once.

    Returns:
      Photos: pixels uint8 [N, 3] of all scales of all photographs; and of each of these P scales the number
      of its first pixel, its height and width, int64 [P], and its cumulative probability, float32 [P].

    Raises:
      UserError: no photograph can be used.
    """
    # Not by absl.logging, which few machines with PyTorch alone have.
    left_out = LeftOut(lambda text: note(f"warning: {text}"))
    decode = functools.partial(_decode, patchsize=patchsize, min_scale=min_scale, left_out=left_out)
    with ThreadPoolExecutor(threads) as pool:
        photos = [levels for levels in pool.map(decode, find_images(pattern)) if levels]
    left_out.tell_rest()
    if not photos:
        raise UserError(
            f"{pattern}: no photograph of at least {patchsize} x {patchsize} pixels, the size of a crop"
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


def _decode(path, patchsize, min_scale, left_out):
    """Returns the scales of one photograph, list of uint8 [H, W, 3]; empty if it cannot be used."""
    try:
        image = Image.fromarray(read_image(path))
        if min(image.size) < patchsize:
            raise UserError(
                f"{path}: needs at least {patchsize} x {patchsize} pixels, the size of a crop, but has "
                f"{image.width} x {image.height}"
            )
    except UserError as error:
        left_out.add(path, error)
        return []
    sizes = [(round(image.width * s), round(image.height * s)) for s in SCALES if s >= min_scale]
    return [
        np.asarray(image if size == image.size else image.resize(size, Image.Resampling.LANCZOS))
        for size in sizes
        if min(size) >= patchsize
    ]


def random_crops(photos, batchsize, patchsize, flip):
    """Draws crops of the photographs, on their device.

    Args:
      photos: Photos.
      batchsize: int, how many crops.
      patchsize: int, their side in pixels.
      flip: bool, whether half of them are mirrored, left to right.

    Returns:
      float32 [batchsize, patchsize, patchsize, 3] in [0, 1].
    """
    device = photos.pixels.device
    u = torch.rand(4, batchsize, 1, 1, device=device)
    which = torch.searchsorted(photos.cumulative, u[0]).clamp(max=len(photos.first) - 1)
    width = photos.width[which]
    side = torch.arange(patchsize, device=device)
    y = (u[1] * (photos.height[which] - patchsize + 1)).long() + side[:, None]
    across = torch.where(u[3] < 0.5, patchsize - 1 - side, side) if flip else side
    x = (u[2] * (width - patchsize + 1)).long() + across
    return photos.pixels[photos.first[which] + y * width + x].float() / 255


# The start of a learned prior.


def fit_prior(model, weights, photos, config, device):
    """Fits a learned prior to posterior samples of the latents of `PRIOR_CROPS` crops.

    Args:
      model: torch_model.Model.
      weights: dict of float32 arrays by name, those of the transforms.
      photos: Photos.
      config: TrainingConfig.
      device: torch.device.

    Returns:
      dict of float32 arrays, the weights of the prior.
    """
    torch.manual_seed(config.seed)
    tensors = {name: torch.tensor(value, device=device) for name, value in weights.items()}
    samples = []
    with torch.no_grad():
        for first in range(0, PRIOR_CROPS, config.batchsize):
            count = min(config.batchsize, PRIOR_CROPS - first)
            x = random_crops(photos, count, config.patchsize, config.flip)
            mean, logvar = model.analysis(tensors, x)
            z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            samples.append(z.reshape(-1, z.shape[-1]).cpu().numpy())
    return train_state.prior_weights(DeepFactorizedPrior.fit(np.concatenate(samples), config.seed))


# The step.


def adam_rate(learning_rate, t):
    """Returns the rate of TensorFlow's Adam at step t = 1, 2, ...

    TensorFlow corrects the bias of the moments in the rate. The second moment, to which `epsilon` is added,
    stays uncorrected.
    """
    return learning_rate * math.sqrt(1 - BETA_2**t) / (1 - BETA_1**t)


def adam(weights, gradients, m, v, rate):
    """Does one step of TensorFlow's Adam, in place.

    Args:
      weights, gradients, m, v: lists of tensors: weights, their gradients, and Adam's first and second
        moments.
      rate: scalar tensor, `adam_rate`.
    """
    torch._foreach_lerp_(m, gradients, 1 - BETA_1)
    torch._foreach_mul_(v, BETA_2)
    torch._foreach_addcmul_(v, gradients, gradients, 1 - BETA_2)
    scale = torch._foreach_sqrt(v)
    torch._foreach_add_(scale, EPSILON)
    update = torch._foreach_div(m, scale)
    torch._foreach_mul_(update, rate)
    torch._foreach_sub_(weights, update)


class Trainer:
    """Weights, Adam and the moving average on a device, and the training step."""

    def __init__(self, model, state, photos, config, device, precision="float32", compiled=False):
        """Places a state on the device.

        Args:
          model: torch_model.Model.
          state: dict, as `train_state` describes it.
          photos: Photos.
          config: TrainingConfig.
          device: torch.device.
          precision: str, arithmetic of the convolutions and other products: "bf16", "tf32" or "float32".
          compiled: bool, whether torch.compile fuses the loss.
        """
        self.model, self.photos, self.config, self.device = model, photos, config, device
        self.step, self.adam_step = int(state["global_step"]), int(state["adam_step"])
        self.saved = self.step  # the caller sets it when it has saved a state
        self.is_whole = True  # not in the middle of a step, so that the state can be saved
        place = functools.partial(torch.tensor, dtype=torch.float32, device=device)
        self.weights = {k: place(v).requires_grad_() for k, v in state["weights"].items()}
        self.slots = {
            slot: [place(state[slot][name]) for name in self.weights] for slot in ("adam_m", "adam_v", "ema")
        }
        # Adam's rates, bias correction included: of the transforms, and of a learned prior.
        self.rates = torch.zeros(2, device=device)
        is_prior = [name.startswith("prior/") for name in self.weights]
        self.groups = [[i for i, prior in enumerate(is_prior) if prior == group] for group in (False, True)]
        self.sums = torch.zeros(5, device=device)  # loss, kl, mse, gradient norm, finite steps
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
        torch.backends.cudnn.benchmark = True
        self.loss = torch.compile(model.loss) if compiled else model.loss
        torch.manual_seed(config.seed)
        if device.type == "cuda":
            self._capture()
        rng_state = state.get("rng_state")
        # A state from the other kind of device has another length and is ignored.
        if rng_state is not None and len(rng_state) == len(self._generator().get_state()):
            self._generator().set_state(torch.from_numpy(rng_state))

    def _generator(self):
        if self.device.type == "cuda":
            return torch.cuda.default_generators[self.device.index or 0]
        return torch.default_generator

    def _one_step(self):
        config, model = self.config, self.model.config
        x = random_crops(self.photos, config.batchsize, config.patchsize, config.flip)
        side = config.patchsize // model.stride
        noise = torch.randn(config.batchsize, side, side, model.num_channels, device=self.device)
        weights = list(self.weights.values())
        out = self.loss(self.weights, x, noise, self.dtype)
        gradients = list(torch.autograd.grad(out["loss"], weights))
        with torch.no_grad():
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
            finite = torch.isfinite(norm + out["loss"])
            if config.clip_norm:  # a gradient that is not finite is left out
                torch._foreach_mul_(gradients, (config.clip_norm / norm).clamp(max=1))
                gradients = [torch.where(finite, g, 0) for g in gradients]
            tensors = (weights, gradients, self.slots["adam_m"], self.slots["adam_v"])
            for group, rate in zip(self.groups, self.rates):
                if group:
                    adam(*([part[i] for i in group] for part in tensors), rate)
            if config.ema_decay:
                torch._foreach_lerp_(self.slots["ema"], weights, 1 - config.ema_decay)
            sums = torch.stack([out["loss"], out["kl"], out["mse"], norm, torch.ones_like(norm)])
            self.sums += torch.where(finite, sums, 0)

    def _capture(self):
        """Records a step as a CUDA graph. The steps that warm up for it change nothing in the end."""
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

    def train(self, last_step, seconds, stop=lambda: False):
        """Trains, and yields means every `LOG_STEPS` steps.

        Args:
          last_step: int.
          seconds: float, after which the training stops at the next yield; there is at least one.
          stop: function without arguments, whether to stop before the next step.

        Yields:
          int step; list of float, the means of loss, kl, mse and gradient norm since the last yield.

        Raises:
          UserError: a loss or gradient is no finite number; with `clip_norm`, more than `LOG_STEPS` / 10 of
            those since the last yield.
        """
        end = time.monotonic() + seconds
        while self.step < last_step:
            first, stopped = self.step, False
            until = min(first - first % LOG_STEPS + LOG_STEPS, last_step)
            while self.step < until and not (stopped := stop()):
                self._set_rates()
                self.is_whole = False
                if self.device.type == "cuda":
                    self.graph.replay()
                else:
                    self._one_step()
                self.step += 1
                self.adam_step += 1
                self.is_whole = True
            means = self._means(self.step - first)
            if stopped:
                return
            yield self.step, means
            if time.monotonic() >= end:
                return

    def _means(self, steps):
        """Returns the means of the last steps, and starts new ones. See `train`."""
        sums = self.sums.tolist()
        self.sums.zero_()
        # With `clip_norm`, single steps may be skipped, also in an interval that a signal cuts short.
        if steps - sums[4] > (LOG_STEPS / 10 if self.config.clip_norm else 0):
            self.is_whole = False  # no state to keep
            raise UserError(
                f"the loss was not finite in {steps - sums[4]:.0f} of the {steps} steps before step "
                f"{self.step}; {self._kept()}. Try a lower --learning_rate, --warmup_steps or --clip_norm"
            )
        return [s / sums[4] if sums[4] else math.nan for s in sums[:4]]

    def _set_rates(self):
        config, rate = self.config, self.config.rate(self.step)
        rates = (rate, config.prior_lr * rate / config.learning_rate)
        for tensor, rate in zip(self.rates, rates):
            tensor.fill_(adam_rate(rate, self.adam_step + 1))

    def _kept(self):
        return f"the state of step {self.saved} is kept" if self.saved else "no state is saved yet"

    def state(self):
        """Returns all that a later slice needs, on the host: a dict as `train_state` describes it."""

        def host(tensors):
            return {k: t.detach().cpu().numpy() for k, t in zip(self.weights, tensors)}

        return {
            "global_step": self.step,
            "adam_step": self.adam_step,
            "weights": host(self.weights.values()),
            **{name: host(tensors) for name, tensors in self.slots.items()},
            "averaged": bool(self.config.ema_decay),
            "rng_state": self._generator().get_state().numpy(),
        }
