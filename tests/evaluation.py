"""What the tests of the evaluation and of its fits share: copies of the golden run, small settings, and the
command `post_process.py` in this process.
"""

import contextlib
import os
import shutil

import numpy as np
import pytest
from conftest import GOLDEN

import post_process
from vbq.command import run_main
from vbq.files import load_npz
from vbq.fits import FitOptions
from vbq.priors import DeepFactorizedPrior
from vbq.results import results_path

CHECKPOINTS = os.path.join(GOLDEN, "checkpoints")
TEST_IMAGES = os.path.join(GOLDEN, "test", "*.png")
SMALL = ["--max_bits", "4", "--lambs", "8", ".5", "--quantization_levels", "4", "2"]
SMALL_OPTIONS = FitOptions(max_bits=4, lambs=(0.5, 8.0), levels=(2, 4))
SMALL_NAMES = "ChannelwisePriorCDFQuantizer-max_bits=4", "KmeansQuantizer", "UniformQuantizer"


def validation_images():
    """12 validation images, uint8 [12, 64, 64, 3]; few, to be quick."""
    return np.load(os.path.join(GOLDEN, "val_imgs_uint8.npy"))[:12]


_fitted_priors = {}


@contextlib.contextmanager
def remembered_priors():
    """Fits a prior only once to the same samples with the same seed, because it takes seconds."""
    fit = DeepFactorizedPrior.fit

    def remembered(samples, seed=0):
        key = samples.tobytes(), seed
        if key not in _fitted_priors:
            _fitted_priors[key] = fit(samples, seed)
        return _fitted_priors[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeepFactorizedPrior, "fit", remembered)
        yield


def copy_run(source, folder):
    """A copy, which may be written to, of a directory of runs: its path, as str."""
    shutil.copytree(source, folder)
    for path, _, files in os.walk(folder):
        for name in [path, *(os.path.join(path, file) for file in files)]:
            os.chmod(name, 0o755)
    return str(folder)


def results(run, name):
    """The arrays of a quantizer's result file in a run's directory."""
    return load_npz(results_path(run, name))


def contents(run):
    """All files of a folder as bytes, by name."""
    found = {}
    for name in sorted(os.listdir(run)):
        with open(os.path.join(run, name), "rb") as file:
            found[name] = file.read()
    return found


def fails(capsys, *argv):
    """Runs post_process.py, which should fail as for a user's error; returns the one line that it printed."""
    capsys.readouterr()
    assert run_main(post_process.main, [str(arg) for arg in argv]) == 1
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("warning: left out")]
    assert out == "" and len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]
