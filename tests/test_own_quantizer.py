"""A quantizer of one's own is a subclass of `Quantizer`, added to one list."""

import os

import numpy as np
import pytest
from conftest import GOLDEN_RUN
from evaluation import (
    SMALL,
    SMALL_NAMES,
    TEST_IMAGES,
    contents,
    results,
)

import post_process
from quantizers import QUANTIZERS, Quantizer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_priors")]  # whole evaluations or trainings


class GridQuantizer(Quantizer):
    """A grid of equal steps. All the steps between a channel's least and largest mean cost the same bits."""

    label = "grid"
    settings = np.array([0.5, 8.0])  # steps

    def __init__(self, spread, provenance=None):
        super().__init__(provenance)
        self.spread = spread  # float32 [C], of the means of validation latents

    @classmethod
    def settings_of(cls, options):
        return list(cls.settings)

    @classmethod
    def fit_to(cls, latents, options):
        return cls(np.ptp(latents.mean, axis=(0, 1, 2)), latents.provenance)

    def unmet(self, options):
        return []

    def arrays(self):
        return {"spread": self.spread}

    @classmethod
    def from_arrays(cls, arrays):
        return cls(arrays.pop("spread"), arrays)

    def encode(self, posterior, setting, joint_steps=0):
        return np.round(posterior.mean / setting).astype(np.int32)

    def decode(self, indices, setting):
        return np.float32(setting) * indices.astype(np.float32)

    def bits(self, indices, setting):
        return np.broadcast_to(np.log2(1 + self.spread / setting), indices.shape)


def test_a_fourth_quantizer_is_added_to_one_list(fresh, validation, capsys, monkeypatch):
    checkpoints, run = fresh
    before = contents(run)
    monkeypatch.setattr(post_process, "QUANTIZERS", (*QUANTIZERS, GridQuantizer))
    assert post_process.main([checkpoints, GOLDEN_RUN, validation, TEST_IMAGES, *SMALL]) == 0
    table, err = capsys.readouterr()
    assert "fits GridQuantizer to 12 validation images: there is no GridQuantizer.npz" in err
    lines = [line.split() for line in table.splitlines() if line.startswith("grid")]
    assert [line[1] for line in lines] == ["0.5", "8"]
    arrays = results(run, "GridQuantizer")
    for line, bpp, psnr in zip(lines, arrays["BPP"].mean(axis=0), arrays["PSNR (RGB)"].mean(axis=0)):
        assert line[2:4] == [f"{bpp:.4f}", f"{psnr:.2f}"]
    assert arrays["settings"].tolist() == [0.5, 8] and arrays["BPP"].shape == (2, 2)
    assert np.all(arrays["BPP"][:, 0] > arrays["BPP"][:, 1])
    assert np.all(arrays["PSNR (RGB)"][:, 0] > arrays["PSNR (RGB)"][:, 1])
    found, names = contents(run), [*SMALL_NAMES, "GridQuantizer"]
    assert set(found) - set(before) == {
        "prior.npz",
        "rate_distortion.png",
        "bd_rates.md",
        *(f"{name}.npz" for name in names),
        *(f"{name}-compression_results.npz" for name in names),
    }
    assert str(arrays["fit"]) == GridQuantizer.load(os.path.join(run, "GridQuantizer.npz")).identity()
    assert post_process.main([checkpoints, GOLDEN_RUN, "-", TEST_IMAGES, *SMALL]) == 0
    assert contents(run) == found
    capsys.readouterr()

    monkeypatch.undo()
    assert post_process.main([checkpoints, GOLDEN_RUN, "-", TEST_IMAGES, *SMALL]) == 0
    assert not any(line.startswith(("grid", "| grid")) for line in capsys.readouterr().out.splitlines())
    for name in ("rate_distortion.png", "bd_rates.md"):
        assert contents(run)[name] != found[name]  # a curve less
