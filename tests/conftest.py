"""What several test files share: places, runs and images."""

import os
import signal
import sys
import threading

import numpy as np
import pytest
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GOLDEN = os.path.join(ROOT, "tests", "golden")
GOLDEN_RUN = (
    "bls2017_vae-num_filters=8_8_8-filter_dims=9_5_5-sampling_rates=4_2_2-learned_prior=False"
    "-likelihood_variance=0.001-last_step=1500"
)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
for path in (os.path.join(ROOT, "tools"), ROOT):
    if path not in sys.path:
        sys.path.insert(0, path)


def pytest_configure():
    """Makes signals act as in a terminal, also for tests that were started in the background, where some are
    ignored.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in ("SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.fixture
def golden():
    """Folder of the original program's figures."""
    return GOLDEN


@pytest.fixture(scope="session")
def china():
    """A test image, uint8 [192, 256, 3]."""
    return np.asarray(Image.open(os.path.join(GOLDEN, "test", "china.png")))


@pytest.fixture
def kodak():
    """Folder of the Kodak images, which the environment names; tests that need it are skipped without."""
    folder = os.environ.get("KODAK_DIR")
    if not folder:
        pytest.skip("KODAK_DIR is not set")
    return folder


# Of the evaluation; `evaluation.py` has the rest. It imports this file, and is therefore imported late.


@pytest.fixture(scope="module")
def quick_priors():
    """Fits a prior only once to the same samples with the same seed."""
    from evaluation import remembered_priors

    with remembered_priors():
        yield


@pytest.fixture
def fresh(tmp_path):
    """A copy of the golden run without fits: directory of runs, and the run's own."""
    from evaluation import CHECKPOINTS, copy_run

    checkpoints = copy_run(CHECKPOINTS, tmp_path / "checkpoints")
    return checkpoints, os.path.join(checkpoints, GOLDEN_RUN)


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    """A file of 12 validation images; a small one, to be quick."""
    from evaluation import validation_images

    path = tmp_path_factory.mktemp("validation") / "val_imgs.npy"
    np.save(path, validation_images())
    return str(path)
