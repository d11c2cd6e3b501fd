"""What the evaluation, the plots and the saved fits ask of a quantizer."""

from typing import Any, NamedTuple

import numpy as np

from vbq.fits import SavedFit


class Posterior(NamedTuple):
    """The latents of an image."""

    mean: np.ndarray  # float32 [h, w, C]
    std: np.ndarray  # float32 [h, w, C], standard deviation
    likelihood: Any = None  # only needed for joint steps, see `tiling.likelihood`


class Quantizer(SavedFit):
    """What the evaluation, the plots and the saved fits ask of a quantizer.

    Attributes:
      label: str, its name in tables and plots.
      settings: array [S] of what can be passed as `setting`: the trade-offs, or the numbers of levels.
      writes_files: bool, whether `codec.py` has a file format for it, see `file_bits`.
      provenance: dict, see `SavedFit`.
    """

    label = ""
    writes_files = False
    takes_gains = False  # whether it has a method `with_gains`, see `ChannelwisePriorCDFQuantizer`

    @classmethod
    def result_name(cls, options, joint_steps):
        """The start of the name of a result file."""
        return cls.file_name(options)

    @classmethod
    def settings_of(cls, options):
        """The settings that `FitOptions` ask for: a sorted list."""
        raise NotImplementedError

    @classmethod
    def fit_to(cls, latents, options):
        """Fits to `latents.ValidationLatents` with `FitOptions`."""
        raise NotImplementedError

    def encode(self, posterior, setting, joint_steps=0):
        """Quantizes latents.

        Args:
          posterior: Posterior.
          setting: one of `settings`.
          joint_steps: int, number of refinement steps with the decoder in the loop, for quantizers that have
            them.

        Returns:
          int32 [h, w, C], indices of code points.
        """
        raise NotImplementedError

    def decode(self, indices, setting):
        """The latents, float32 [..., C], of int indices [..., C] that were encoded with a setting."""
        raise NotImplementedError

    def decoder_gains(self, setting):
        """The `gains.Gains` of the decoder at a setting, or None: the decoder as it was trained."""
        return None

    def bits(self, indices, setting):
        """Bits spent on every latent, float [..., C], of int indices: the rate that is reported (BPP)."""
        raise NotImplementedError

    def bit_length_bits(self, indices, setting):
        """Bits, [..., C], if each code point cost its bit length n plus the code length of n (BPPCL)."""
        return self.bits(indices, setting)

    def file_bits(self, indices, setting):
        """Bits, int, of the file that `codec.py` writes for int indices [h, w, C]; needs `writes_files`."""
        raise NotImplementedError
