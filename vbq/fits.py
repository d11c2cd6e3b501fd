"""The saved fits of a run: their identity, which one serves, and where a new one is saved.

A fit has one identity: a digest of its content and of the model's weights. Result files and shards hold it;
.vbq files hold its first 8 bytes. A fit is never overwritten by another one, because files may depend on it.
A new fit goes beside it, as NAME-fit=IDENTITY.npz. `FitStore.save` decides which one gets the plain name,
NAME.npz.
"""

import dataclasses
import functools
import hashlib
import os
import zipfile
from typing import NamedTuple

import numpy as np

from vbq.command import UserError
from vbq.files import load_npz, save_npz

DEFAULT_MAX_BITS = 10
DEFAULT_LAMBS = tuple(2.0 ** np.linspace(-8, 7, 16))
DEFAULT_LEVELS = (2, 4, 6, 8, 16, 32, 64, 128, 256)
IDENTITY_DIGITS = 16  # hexadecimal digits of an identity in a file name


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """What a fit depends on besides the model and the validation images: the flags of `post_process.py`."""

    max_bits: int = DEFAULT_MAX_BITS
    lambs: tuple = DEFAULT_LAMBS  # of float, nats of distortion that a bit is worth
    levels: tuple = DEFAULT_LEVELS  # of int, numbers of code points of the baselines
    passes: int = 2
    contexts: bool = False
    seed: int = 0
    gains: bool = False
    base: str = ""  # identity of the fit that gains are to belong to

    @property
    def name_of_vbq(self):
        """What follows the class in the names of files that belong to a fit of VBQ."""
        refined = f"-passes={self.passes}" if self.passes > 2 else ""
        return f"-max_bits={self.max_bits}{refined}" + "-contexts" * self.contexts


class SavedFit:
    """Something that was fitted to validation latents and is kept in a file.

    Attributes:
      provenance: dict of str or int that is saved with it: `model_fingerprint`, `validation`, and `seed` if
        the fit depends on it.
      base: str, identity of the fit that it belongs to; empty if it stands for itself.
    """

    base = ""
    compression = zipfile.ZIP_LZMA  # of its file, see `files.save_npz`

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
        """Rebuilds a fit from a dict of the arrays of `arrays` and of the provenance."""
        raise NotImplementedError

    def identity(self, model_fingerprint=None):
        """The SHA-256 of everything that decoding depends on.

        Args:
          model_fingerprint: str, `Run.fingerprint`; by default that of the provenance.

        Returns:
          str, 64 hexadecimal digits.
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
        save_npz(path, {**self.provenance, **self.arrays()}, self.compression)

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

    def __init__(self, path, model_fingerprint, new_path=None):
        """Opens a store.

        Args:
          path: str, the run's directory.
          model_fingerprint: str, `Run.fingerprint`.
          new_path: str, another directory with fits of the run, where new ones are saved, for a run on a
            read-only disk.
        """
        self.path, self.model_fingerprint, self.new_path = path, model_fingerprint, new_path or path

    def _files(self):
        """Paths of the `.npz` files that are there; those in the directory of new fits come first."""
        folders = dict.fromkeys([self.new_path, self.path])
        return [
            os.path.join(f, name) for f in folders for name in sorted(os.listdir(f)) if name.endswith(".npz")
        ]

    def names(self, kind):
        """The names, without ending, of the files of fits of a kind: a list of str."""
        names = map(_name_of, self._files())  # also those of results, which may lie in the same directory
        return [name for name in names if name.startswith(kind.__name__) and "_results" not in name]

    def find(self, kind, options, validation=None):
        """Finds a saved fit that serves the options.

        Args:
          kind: subclass of `SavedFit`.
          options: FitOptions.
          validation: str, label of the validation images that it must be fitted to; None for any.

        Returns:
          Fit, or None; and a list of str, the reasons why the files that were tried do not serve.
        """
        name, reasons = kind.file_name(options), []
        plain = [path for path in self._files() if _name_of(path) == name]
        beside = [path for path in self._files() if _name_of(path).startswith(f"{name}-fit=")]
        for path in plain + beside:
            try:
                fit = _load(kind, path)
            except UserError as error:
                reasons.append(str(error))
                continue
            differs = self.unmet(fit, options, validation)
            if not differs:
                return Fit(fit, _name_of(path)), reasons
            reasons.append(f"{_name_of(path)}.npz differs in {' and '.join(differs)}")
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
        """Saves a new fit. No other fit is lost.

        If no file has the plain name, the new fit takes it. Otherwise the old fit gives the name up and moves
        beside the new one in three cases: `rebuild` is given, the old fit is of other weights, or only the
        new fit has the default settings. In all other cases the new fit is saved beside the old one. A
        damaged file is overwritten with `rebuild` only.

        Args:
          fit: SavedFit.
          options: FitOptions that it was fitted with.
          rebuild: bool.

        Returns:
          Fit.

        Raises:
          UserError: the file cannot be written.
        """
        name = fit.file_name(options)
        plain = os.path.join(self.new_path, name + ".npz")
        if os.path.exists(plain):
            try:
                occupant = _load(type(fit), plain)
            except UserError:
                occupant = None
            if not self._gives_way(occupant, fit, options, rebuild):
                name = _name_beside(name, fit)
            elif occupant is not None and occupant.identity() != fit.identity():
                os.replace(plain, os.path.join(self.new_path, _name_beside(name, occupant) + ".npz"))
        fit.save(os.path.join(self.new_path, name + ".npz"))
        return Fit(fit, name)

    def _gives_way(self, occupant, fit, options, rebuild):
        """Whether the fit with the plain name, None if it is damaged, gives that name up to a new fit."""
        if rebuild or occupant is None:
            return rebuild
        default = dataclasses.replace(
            options, lambs=DEFAULT_LAMBS, levels=DEFAULT_LEVELS, seed=FitOptions.seed
        )
        stale = occupant.provenance.get("model_fingerprint") != self.model_fingerprint
        of_occupant = dataclasses.replace(default, base=occupant.base)  # what it belongs to is no setting
        return stale or (not fit.unmet(default) and bool(occupant.unmet(of_occupant)))

    def usable(self, kind):
        """Goes through the saved fits of a kind, the preferred ones first.

        Args:
          kind: subclass of `SavedFit` with a method `rank` that maps a file name to a tuple, the sort key, or
            to None if the file is not a fit of this kind.

        Yields:
          A `Fit` of this model's weights and None; or None and a str, the reason why a file is skipped.
        """
        ranks = {path: kind.rank(_name_of(path)) for path in self._files()}
        for path in sorted(
            (path for path in ranks if ranks[path]), key=lambda path: (ranks[path], path), reverse=True
        ):
            try:
                fit = _load(kind, path)
            except UserError as error:
                yield None, str(error)
                continue
            if fit.provenance.get("model_fingerprint") == self.model_fingerprint:
                yield Fit(fit, _name_of(path)), None
            else:
                yield None, f"{_name_of(path)}.npz was fitted to other weights than this run's"


def _name_of(path):
    return os.path.basename(path).removesuffix(".npz")


def _name_beside(name, fit):
    return f"{name}-fit={fit.identity()[:IDENTITY_DIGITS]}"


def _load(kind, path):
    """Loads a fit. The latest fits are cached until their files change."""
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError as error:  # a link to a file that is gone, for example
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return _load_cached(kind, path, changed)


# With all fits that ship, and some more, a file of any of them is decoded without loading fits anew.
@functools.lru_cache(maxsize=12)
def _load_cached(kind, path, _):
    return kind.load(path)


def digest_of(label):
    """The part of a `Validation.label` after the name: it identifies the images by their content."""
    return label.split()[-1] if label else ""


def other_values(found, asked):
    """Describes the options whose values differ: a list of str."""
    return [
        f"--{name} ({found[name]} instead of {asked[name]})" for name in found if found[name] != asked[name]
    ]


def missing_settings(name, found, asked):
    """Describes the settings that a fit lacks: a list of at most one str."""
    missing = sorted(set(asked) - {float(x) for x in found})
    return [f"--{name} (it has no {', '.join(f'{x:g}' for x in missing)})"] if missing else []
