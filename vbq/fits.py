"""The saved fits of a run: who they are, which one serves, and where a new one goes.

A fit has one identity: a digest of its content and of the model's weights. It stands in the result files, in
the shards, and (its first 8 bytes) in .vbq files. So that nothing that was written with a fit loses it, a fit
is never overwritten by another one: a new fit goes beside it, as NAME-fit=IDENTITY.npz. Which one bears the
plain name, NAME.npz, is said in `FitStore.save`.
"""

import dataclasses
import functools
import hashlib
import os
from typing import NamedTuple

import numpy as np

from vbq.code_points import code_point_probabilities
from vbq.command import UserError, note
from vbq.files import load_npz, save_npz
from vbq.priors import DeepFactorizedPrior

DEFAULT_MAX_BITS = 10
DEFAULT_LAMBS = tuple(2.0 ** np.linspace(-8, 7, 16))
DEFAULT_LEVELS = (2, 4, 6, 8, 16, 32, 64, 128, 256)
IDENTITY_DIGITS = 16  # of an identity, in file names


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """What a fit depends on besides the model and the validation images: the flags of `post_process.py`."""

    max_bits: int = DEFAULT_MAX_BITS
    lambs: tuple = DEFAULT_LAMBS
    levels: tuple = DEFAULT_LEVELS
    passes: int = 2
    contexts: bool = False
    seed: int = 0


class SavedFit:
    """What has been fitted to validation latents and is kept in a file.

    Attributes:
      provenance: dict of str or int that is saved with it: `model_fingerprint`, `validation`, and `seed`
        where it matters.
    """

    compressed_file = False  # whether its file is deflated

    def __init__(self, provenance=None):
        self.provenance = provenance or {}
        self._identities = {}

    @classmethod
    def file_name(cls, options):
        """The name, without ending, of the file of a fit with these `FitOptions`."""
        return cls.__name__

    def unmet(self, options):
        """How this fit differs from what `FitOptions` ask for: a list of str, empty if it serves them."""
        raise NotImplementedError

    def arrays(self):
        """dict of what `from_arrays` needs, without the provenance."""
        raise NotImplementedError

    @classmethod
    def from_arrays(cls, arrays):
        """Rebuilds a fit from a dict; what `arrays` did not write is provenance."""
        raise NotImplementedError

    def identity(self, model_fingerprint=None):
        """SHA-256, in hexadecimal, of what decoding depends on.

        Args:
          model_fingerprint: str, `Run.fingerprint`; by default that of the provenance.
        """
        if model_fingerprint is None:
            model_fingerprint = self.provenance.get("model_fingerprint")
        if model_fingerprint not in self._identities:
            self._identities[model_fingerprint] = self._digest(model_fingerprint)
        return self._identities[model_fingerprint]

    def _digest(self, model_fingerprint):
        digest = hashlib.sha256(f"{model_fingerprint} {type(self).__name__}".encode())
        for name, x in sorted(self.arrays().items()):
            digest.update(f"{name} {np.shape(x)}".encode() + np.ascontiguousarray(x).tobytes())
        return digest.hexdigest()

    def save(self, path):
        """Writes everything to an .npz file.

        Raises:
          UserError: the file cannot be written.
        """
        save_npz(path, {**self.provenance, **self.arrays()}, compressed=self.compressed_file)

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Raises:
          UserError: the file is missing, damaged, or not a fit of this class.
        """
        arrays = load_npz(path)
        try:
            return cls.from_arrays({key: x.item() if x.ndim == 0 else x for key, x in arrays.items()})
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a saved {cls.__name__}, or a damaged one ({error})") from error


class Fit(NamedTuple):
    """A fit and the name of its file, without ending."""

    quantizer: SavedFit
    name: str


class FitStore:
    """The fits in a run's directory."""

    def __init__(self, path, model_fingerprint):
        """Takes the run's directory, and `Run.fingerprint`."""
        self.path, self.model_fingerprint = path, model_fingerprint

    def _file(self, name):
        return os.path.join(self.path, name + ".npz")

    def _names(self):
        """Names, without ending, of the `.npz` files that are there."""
        return [name.removesuffix(".npz") for name in os.listdir(self.path) if name.endswith(".npz")]

    def _load(self, kind, name):
        return _load_cached(kind, self._file(name), os.stat(self._file(name)).st_mtime_ns)

    def find(self, kind, options, validation=None):
        """Finds a fit that serves.

        Args:
          kind: subclass of `SavedFit`.
          options: FitOptions.
          validation: str, label of the validation images that it must be fitted to; None for any.

        Returns:
          Fit, or None; and a list of str, why files that are there do not serve.
        """
        name, reasons = kind.file_name(options), []
        beside = sorted(other for other in self._names() if other.startswith(f"{name}-fit="))
        for candidate in [name] * os.path.exists(self._file(name)) + beside:
            try:
                fit = self._load(kind, candidate)
            except UserError as error:
                reasons.append(str(error))
                continue
            differs = self.unmet(fit, options, validation)
            if not differs:
                return Fit(fit, candidate), reasons
            reasons.append(f"{candidate}.npz differs in {' and '.join(differs)}")
        return None, reasons or [f"there is no {name}.npz"]

    def unmet(self, fit, options, validation=None):
        """How a fit differs from what is asked for: a list of str."""
        if fit.provenance.get("model_fingerprint") != self.model_fingerprint:
            return ["the model's weights"]
        differs = fit.unmet(options)
        label = str(fit.provenance.get("validation", ""))
        if validation is not None and digest_of(validation) != digest_of(label):
            differs = [*differs, f"the validation images ({label})"]
        return differs

    def save(self, fit, options, rebuild=False):
        """Saves a new fit; no fit is lost.

        The fit takes the plain name if that is free, if it is to replace the one there (`rebuild`), if the
        one there is of other weights, or if it has the default settings and the one there has not. The one
        there then moves beside it. Otherwise the new fit goes beside. Only a damaged file is overwritten, and
        only with `rebuild`.

        Args:
          fit: SavedFit.
          options: FitOptions that it was fitted with.
          rebuild: bool.

        Returns:
          Fit.
        """
        name = fit.file_name(options)
        if os.path.exists(self._file(name)):
            try:
                occupant = self._load(type(fit), name)
            except UserError:
                occupant = None
            if not self._gives_way(occupant, fit, options, rebuild):
                name = _name_beside(name, fit)
            elif occupant is not None and occupant.identity() != fit.identity():
                os.replace(self._file(name), self._file(_name_beside(name, occupant)))
        fit.save(self._file(name))
        return Fit(fit, name)

    def _gives_way(self, occupant, fit, options, rebuild):
        """Whether the fit that bears the plain name, or None if it is damaged, gives way to a new one."""
        if rebuild or occupant is None:
            return rebuild
        default = dataclasses.replace(
            options, lambs=DEFAULT_LAMBS, levels=DEFAULT_LEVELS, seed=FitOptions.seed
        )
        stale = occupant.provenance.get("model_fingerprint") != self.model_fingerprint
        return stale or (not fit.unmet(default) and bool(occupant.unmet(default)))

    def usable(self, kind):
        """Goes through the fits of a kind that are of this model's weights, the preferred ones first.

        Args:
          kind: subclass of `SavedFit` with a method `rank` of file names: a tuple, or None for files that are
            no fits.

        Yields:
          Pairs of a `Fit` and None, or of None and a str, why a file is skipped.
        """
        names = [name for name in self._names() if kind.rank(name) is not None]
        for name in sorted(names, key=lambda name: (kind.rank(name), name), reverse=True):
            try:
                fit = self._load(kind, name)
            except UserError as error:
                yield None, str(error)
                continue
            if fit.provenance.get("model_fingerprint") == self.model_fingerprint:
                yield Fit(fit, name), None
            else:
                yield None, f"{name}.npz was fitted to other weights than this run's"


def _name_beside(name, fit):
    return f"{name}-fit={fit.identity()[:IDENTITY_DIGITS]}"


@functools.lru_cache(maxsize=4)
def _load_cached(kind, path, _):
    """Loads a fit once, however often a notebook needs it; the last argument is the time of the file's last
    change.
    """
    return kind.load(path)


def digest_of(label):
    """The digest of validation images in a label, which may also hold their name."""
    return label.split()[-1] if label else ""


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

    def __init__(self, run, validation, rebuild=False):
        """Takes the images.

        Args:
          run: runs.Run.
          validation: validation.Validation.
          rebuild: bool, whether to fit the prior again where a saved one would serve.
        """
        self._run, self._validation, self._rebuild = run, validation, rebuild
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

    def code_points(self, max_bits, seed):
        """Quantiles of the empirical prior, float64 [C, K]. Where no saved prior serves, one is fitted and
        saved.
        """
        store = FitStore(self._run.path, self._run.fingerprint)
        options = FitOptions(max_bits=max_bits, seed=seed)
        found, _ = (None, None) if self._rebuild else store.find(PriorFit, options, self._validation.label)
        if not found:
            note("fits the prior")
            prior = DeepFactorizedPrior.fit(self.mean.reshape(-1, self.mean.shape[-1]), seed)
            found = store.save(PriorFit(prior, {**self.provenance, "seed": seed}), options, self._rebuild)
        return found.quantizer.prior.inverse_cdf(code_point_probabilities(max_bits))
