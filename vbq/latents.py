"""The latents that quantizers are fitted to: the posterior of validation images, and their empirical prior.

Axis letters: N images, h, w latent positions, C channels, K code points.
"""

import functools

import numpy as np

from vbq.code_points import code_point_probabilities
from vbq.command import UserError, note
from vbq.fits import FitOptions, SavedFit
from vbq.priors import DeepFactorizedPrior


class PriorFit(SavedFit):
    """The empirical prior as a saved fit."""

    def __init__(self, prior, provenance=None):
        super().__init__(provenance)
        self.prior = prior

    @classmethod
    def file_name(cls, options):
        return "prior"

    def unmet(self, options):
        seed = self.provenance.get("seed")
        return [] if seed == options.seed else [f"--seed ({seed} instead of {options.seed})"]

    def arrays(self):
        return self.prior.arrays()

    @classmethod
    def from_arrays(cls, arrays):
        prior = DeepFactorizedPrior.from_arrays(arrays)
        return cls(prior, {key: x for key, x in arrays.items() if key not in prior.arrays()})


class ValidationLatents:
    """The posterior of validation images and their empirical prior, each computed when it is first asked for.

    Attributes:
      provenance: dict, what fits to these latents depend on.
      mean, std: float32 [N, h, w, C].
    """

    def __init__(self, run, validation, store, rebuild=False):
        """Takes the images.

        Args:
          run: runs.Run.
          validation: validation.Validation.
          store: FitStore, which keeps the prior and has the fits that others build on.
          rebuild: bool, whether to fit everything again where a saved fit would serve.
        """
        self._run, self._validation, self._store, self._rebuild = run, validation, store, rebuild
        self.provenance = {"model_fingerprint": run.fingerprint, "validation": validation.label}

    @functools.cached_property
    def _posterior(self):
        mean, logvar = self._run.encode(self._validation.images)
        if not (np.isfinite(mean).all() and np.isfinite(logvar).all()):
            raise UserError(
                f"{self._run.path}: the model maps the validation images to latents that are not finite"
            )
        return mean, np.exp(0.5 * logvar, out=logvar)

    @property
    def mean(self):
        return self._posterior[0]

    @property
    def std(self):
        return self._posterior[1]

    def saved(self, kind, options):
        """Finds a saved fit to these latents.

        Args:
          kind: subclass of `SavedFit`.
          options: FitOptions.

        Returns:
          fits.Fit; None if no saved fit serves, or with `rebuild`.
        """
        return None if self._rebuild else self._store.find(kind, options, self._validation.label)[0]

    def code_points(self, max_bits, seed):
        """Returns quantiles of the empirical prior: float64 [C, K].

        If no saved prior serves, a new one is fitted and saved.

        Args:
          max_bits: int N; K = 2^(N+1) - 1.
          seed: int, of the prior's initial weights.

        Raises:
          UserError: the latents are not finite, or the prior cannot be saved.
        """
        options = FitOptions(max_bits=max_bits, seed=seed)
        found = self.saved(PriorFit, options)
        if not found:
            note("fits the prior")
            prior = DeepFactorizedPrior.fit(self.mean.reshape(-1, self.mean.shape[-1]), seed)
            fit = PriorFit(prior, {**self.provenance, "seed": seed})
            found = self._store.save(fit, options, self._rebuild)
        return found.quantizer.prior.inverse_cdf(code_point_probabilities(max_bits))
