"""What describes a model, and what describes its training. Field names are the names of the flags."""

import dataclasses
import math

LAYER_LISTS = ("num_filters", "filter_dims", "sampling_rates")  # fields, and flags, with one value a layer


def _from_mapping(kind, mapping):
    """Makes a dataclass of its fields in a mapping, which may have others. Lists become tuples."""
    values = {field.name: mapping[field.name] for field in dataclasses.fields(kind)}
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What determines the functions that a model computes, apart from its weights.

    Attributes:
      num_filters: tuple of int, channels after each analysis layer. The last is the number of latent
        channels.
      filter_dims: tuple of int, sides of the kernels of the analysis layers, in pixels of the layer's input.
      sampling_rates: tuple of int, strides of the analysis layers. The synthesis layers mirror all three.
      learned_prior: bool, whether the prior of training is a deep factorized density, which is trained, or a
        standard normal.
      prior_init_scale: float, initial scale of that density.
      likelihood_variance: float, variance of the Gaussian likelihood of pixels in [0, 1].
    """

    num_filters: tuple
    filter_dims: tuple
    sampling_rates: tuple
    learned_prior: bool = False
    prior_init_scale: float = 10.0
    likelihood_variance: float = 0.02

    @classmethod
    def of(cls, mapping):
        """Picks the fields from a mapping of flags, such as `vars(args)` or `args.json`.

        Raises:
          KeyError: a field is missing.
        """
        return _from_mapping(cls, mapping)

    @property
    def num_channels(self):
        """int, the number of latent channels."""
        return self.num_filters[-1]

    @property
    def stride(self):
        """int, pixels per latent in each direction."""
        return math.prod(self.sampling_rates)

    @property
    def margin(self):
        """int, how many latents the receptive field of either transform reaches beyond a latent."""
        reach, step = 0, 1  # pixels
        for size, rate in zip(self.filter_dims, self.sampling_rates):
            reach += size // 2 * step
            step *= rate
        return -(-reach // self.stride)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained. The help of the flags in `bls2017_vae.py` describes the fields."""

    train_glob: str
    batchsize: int
    patchsize: int
    last_step: int
    learning_rate: float
    lr_schedule: str
    warmup_steps: int
    clip_norm: float
    ema_decay: float
    flip: bool
    min_scale: float
    prior_lr: float
    seed: int
    preprocess_threads: int
    save_checkpoint_secs: float
    save_summary_secs: float
    log_dir: str
    strategy: str
    mixed_precision: bool
    init_run: str | None

    @classmethod
    def of(cls, mapping):
        """Picks the fields from a mapping of flags, such as `vars(args)`.

        Raises:
          KeyError: a field is missing.
        """
        return _from_mapping(cls, mapping)

    def rate(self, step):
        """Returns the learning rate of the transforms at a step.

        The rate rises linearly for `warmup_steps` steps. Then it is constant, or follows half a cosine to
        zero.

        Args:
          step: int, from 0.

        Returns:
          float.
        """
        rate = self.learning_rate
        if step < self.warmup_steps:
            return rate * (step + 1) / (self.warmup_steps + 1)
        if self.lr_schedule == "cosine":
            angle = math.pi * (step - self.warmup_steps) / max(self.last_step - self.warmup_steps, 1)
            rate *= 0.5 + 0.5 * math.cos(angle)
        return rate
