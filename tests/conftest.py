"""What several test files share."""
import os
import sys

import numpy as np
import pytest
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GOLDEN = os.path.join(ROOT, "tests", "golden")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
for path in (os.path.join(ROOT, "tools"), ROOT):
    if path not in sys.path:
        sys.path.insert(0, path)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than a few seconds")


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
