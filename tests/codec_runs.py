"""What the tests of quantizers and codec share: the golden run with fits, a toy model of integers alone,
textured latents, and the command `codec.py` in this process.
"""

import functools
import os
import shutil

import numpy as np
import pytest
from conftest import GOLDEN, GOLDEN_RUN

import codec
from quantizers import ChannelwisePriorCDFQuantizer
from vbq.command import UserError, run_main
from vbq.files import load_npz
from vbq.images import read_image
from vbq.runs import load_run

CHECKPOINTS = os.path.join(GOLDEN, "checkpoints")
FIT = "ChannelwisePriorCDFQuantizer-max_bits=10"  # name of the default fit
TEXTURED_CHANNELS, TEXTURED_POINTS = 9, 31


def make_run(folder, passes=2, contexts=False):
    """Copies the original program's tiny run to a folder, with a `golden_fit`; returns the `runs.Run`."""
    shutil.copytree(CHECKPOINTS, folder, dirs_exist_ok=True)
    run = load_run(folder, GOLDEN_RUN)
    add_fit(run, passes, contexts)
    return run


@functools.cache
def golden_fit(passes=2, contexts=False):
    """A fit to the golden validation latents; do not change it, others use it, too."""
    expected = load_npz(os.path.join(GOLDEN, "expected.npz"))
    code_points, lambs = expected["code_points"], expected["lambs"]
    latents = validation_latents()
    return ChannelwisePriorCDFQuantizer.fit(code_points, *latents, lambs, passes, contexts=contexts)


def copy_of(quantizer, **changes):
    """The same fit with other `provenance` or `contexts`."""
    names = "code_points", "lambs", "bit_length_counts", "index_counts", "passes", "shifts", "contexts"
    return ChannelwisePriorCDFQuantizer(**{name: getattr(quantizer, name) for name in names} | changes)


def add_fit(run, passes=2, contexts=False):
    """Leaves a `golden_fit` in the run's directory, as `post_process.py` would; returns it."""
    quantizer = copy_of(golden_fit(passes, contexts), provenance={"model_fingerprint": run.fingerprint})
    quantizer.save(fit_path(run, passes, contexts))
    return quantizer


def fit_path(run, passes=2, contexts=False):
    """Where `add_fit` leaves a fit."""
    name = FIT + (f"-passes={passes}" if passes > 2 else "") + "-contexts" * contexts
    return os.path.join(run.path, name + ".npz")


def validation_latents():
    """Posterior mean and standard deviation of the golden validation images, float32 [24, 4, 4, 8]."""
    expected = load_npz(os.path.join(GOLDEN, "expected.npz"))
    return expected["val_mean"], np.exp(0.5 * expected["val_logvar"])


def flower():
    """The other test image, uint8 [192, 256, 3]."""
    return read_image(os.path.join(GOLDEN, "test", "flower.png"))


def toy_quantizer():
    """A quantizer of integers alone: 3 channels, 31 code points, 2 lambdas."""
    counts = np.arange(2 * 3 * 31).reshape(2, 3, 31) ** 3 % 1009 * (np.arange(31) % 5 > 0)
    points = np.tile(np.arange(31) / 8 - 2, (3, 1))
    return ChannelwisePriorCDFQuantizer(
        points, [0.5, 2.0], counts[:, :, :5] + 1, counts, provenance={"model_fingerprint": "toy"}
    )


class ToyRun:
    """In place of a model: 16 x 16 pixels to their mean in each colour, and back; exact on every machine."""

    path, name, fingerprint, num_channels, stride, margin = "toy", "toy", "toy", 3, 16, 0
    likelihood_variance = 1.0

    def encode(self, images):
        blocks = images.reshape(len(images), images.shape[1] // 16, 16, -1, 16, 3)
        mean = (blocks.sum(axis=(2, 4), dtype=np.int64) / 2**14 - 2).astype(np.float32)  # from -2 to 2
        return mean, np.full_like(mean, -4)

    def decode(self, z, gains=None):
        return np.repeat(np.repeat((z + 2) / 4, 16, axis=1), 16, axis=2)


def textured(seed, images=40, height=6, width=7, channels=TEXTURED_CHANNELS):
    """Indices of latents whose spread varies from place to place, for all channels alike: int32 [N, h, w,
    C].
    """
    random = np.random.default_rng(seed)
    spread = np.exp(
        random.normal(0, 1, (images, height, width, 1)) / 2 + random.normal(0, 1, (images, 1, 1, 1))
    )
    latents = random.laplace(scale=spread * np.linspace(0.3, 2, channels))
    middle = TEXTURED_POINTS // 2
    return np.clip(np.round(latents) + middle, 0, 2 * middle).astype(np.int32)


def counts_of(indices):
    """How often every code point is chosen, int64 [C, K], of indices as `textured` makes them."""
    rows = indices.reshape(-1, indices.shape[-1]).T
    return np.stack([np.bincount(row, minlength=TEXTURED_POINTS) for row in rows])


def fails(call, *args):
    """Calls a function that should raise a UserError, and returns its message, which has to be one line."""
    with pytest.raises(UserError) as caught:
        call(*args)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def command(capsys, *argv):
    """Runs codec.py; returns its exit status, standard output and standard error."""
    capsys.readouterr()
    status = run_main(codec.main, [str(arg) for arg in argv])
    return status, *capsys.readouterr()


def check_file(the_codec, encoder, lamb, lamb_index):
    """Checks that a file is as long as estimated, and decodes to what was encoded."""
    compressed = encoder.compress(lamb)
    header, indices = the_codec.read(compressed.data)
    np.testing.assert_array_equal(indices, compressed.indices)
    expected = the_codec.fingerprint, *encoder.image.shape[1::-1], lamb_index, lamb
    assert header == compressed.header == expected
    estimated = compressed.estimated_bits / 8
    assert -8 <= len(compressed.data) - estimated <= 0.005 * estimated + 64
    setting = the_codec.quantizer.lambs[lamb_index]
    assert the_codec.quantizer.file_bits(compressed.indices, setting) == 8 * len(compressed.data)
    assert compressed.bpp == 8 * len(compressed.data) / encoder.image[..., 0].size
