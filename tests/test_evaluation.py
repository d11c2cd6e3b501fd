"""The evaluation on odd images and odd shards, and where its files go."""

import os
import stat

import numpy as np
import pytest
from conftest import GOLDEN_RUN
from evaluation import (
    CHECKPOINTS,
    SMALL,
    SMALL_NAMES,
    TEST_IMAGES,
    contents,
    copy_run,
    results,
    validation_images,
)
from PIL import Image

import post_process
from vbq.results import results_path

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_priors")]  # whole evaluations or trainings


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run that was evaluated with SMALL settings, and its directory of runs; only read."""
    folder = tmp_path_factory.mktemp("fitted")
    np.save(folder / "val.npy", validation_images())
    checkpoints = copy_run(CHECKPOINTS, folder / "checkpoints")
    assert post_process.main([checkpoints, GOLDEN_RUN, str(folder / "val.npy"), TEST_IMAGES, *SMALL]) == 0
    return checkpoints, os.path.join(checkpoints, GOLDEN_RUN)


def evaluate(fitted, images, out, *flags):
    """Evaluates with the saved fits; the results go to `out`."""
    flags = [*SMALL, "--out", str(out), *flags]
    assert post_process.main([fitted[0], GOLDEN_RUN, "-", str(images), *flags]) == 0


def test_results_of_other_images_go_where_out_says_and_replace_nothing(fitted, tmp_path, china, capsys):
    Image.fromarray(china[:64, :80]).save(tmp_path / "a.png")
    before = contents(fitted[1])
    evaluate(fitted, tmp_path / "a.png", tmp_path / "new" / "out")
    out, err = capsys.readouterr()
    assert contents(fitted[1]) == before and "replaces" not in err and str(tmp_path / "new") in out
    assert set(os.listdir(tmp_path / "new" / "out")) == {
        "rate_distortion.png",
        "bd_rates.md",
        *(f"{name}-compression_results.npz" for name in SMALL_NAMES),
    }
    evaluate(fitted, tmp_path / "a.png", tmp_path / "new" / "out")
    replaced = [line for line in capsys.readouterr().err.splitlines() if line.startswith("replaces in ")]
    names = [
        *(f"{name}-compression_results.npz" for name in SMALL_NAMES),
        "rate_distortion.png",
        "bd_rates.md",
    ]
    assert replaced == [f"replaces in {tmp_path / 'new' / 'out'}: {', '.join(names)}"]


def test_a_run_on_a_read_only_disk_is_evaluated_and_fitted_elsewhere(fitted, tmp_path, monkeypatch, capsys):
    """The tests may run as root, who may write anywhere: the program is told that it may not."""
    why_not = post_process.why_not_writable
    monkeypatch.setattr(
        post_process,
        "why_not_writable",
        lambda path: "Read-only file system" if path == fitted[1] else why_not(path),
    )
    before, mode = contents(fitted[1]), stat.S_IMODE(os.stat(fitted[1]).st_mode)
    os.chmod(fitted[1], 0o555)
    try:
        evaluate(fitted, TEST_IMAGES, tmp_path / "out")
        np.save(tmp_path / "val.npy", validation_images())
        for levels in (
            "3",
            "2",
        ):  # 3: a new fit, which then takes the plain name in --out; 2: that of the run
            flags = [
                "--max_bits",
                "4",
                "--lambs",
                "8",
                "--quantization_levels",
                levels,
                "--out",
                str(tmp_path / "out"),
            ]
            status = post_process.main(
                [fitted[0], GOLDEN_RUN, str(tmp_path / "val.npy"), TEST_IMAGES, *flags]
            )
            assert status == 0
            assert ("fits UniformQuantizer" in capsys.readouterr().err) == (levels == "3")
    finally:
        os.chmod(fitted[1], mode)
    assert contents(fitted[1]) == before
    assert "UniformQuantizer.npz" in os.listdir(tmp_path / "out")


def test_small_images_are_left_out_of_the_mean_ms_ssim(fitted, tmp_path, china, capsys):
    Image.fromarray(china).save(tmp_path / "large.png")
    Image.fromarray(china[:100, :120]).save(tmp_path / "small.png")
    evaluate(fitted, tmp_path / "*.png", tmp_path / "out")
    table, err = capsys.readouterr()
    assert "nan" not in table and "MS-SSIM: means of 1 of 2 images" in table
    (warning,) = (line for line in err.splitlines() if "MS-SSIM" in line)
    assert warning.startswith(f"warning: {tmp_path / 'small.png'}: ") and ".py" not in err
    assert np.isnan(results(tmp_path / "out", SMALL_NAMES[0])["MS-SSIM (RGB)"][1]).all()
    evaluate(fitted, tmp_path / "small.png", tmp_path / "out")
    out = capsys.readouterr().out
    assert "MS-SSIM: means of 0 of 1 images" in out and "not measured" in out


def test_equal_base_names_are_told_apart(fitted, tmp_path, china):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Image.fromarray(china[:48, :48]).save(tmp_path / name / "x.png")
    evaluate(fitted, tmp_path / "*" / "x.png", tmp_path / "out")
    assert results(tmp_path / "out", SMALL_NAMES[0])["compressed_files"].tolist() == [
        "one/x.png",
        "two/x.png",
    ]


@pytest.mark.parametrize("flags", [[], ["--bitstream"]])
def test_a_shard_without_images_is_valid_and_merges(fitted, tmp_path, flags):
    evaluate(fitted, TEST_IMAGES, tmp_path / "whole", *flags)
    for shard in ("1/3", "2/3", "3/3"):
        evaluate(fitted, TEST_IMAGES, tmp_path / "parts", *flags, "--shard", shard)
    assert results_path(tmp_path / "parts", SMALL_NAMES[0], (3, 3)).endswith("shard=3-of-3.npz")
    evaluate(fitted, TEST_IMAGES, tmp_path / "parts", "--merge", "3")
    for name in SMALL_NAMES:
        whole, merged = results(tmp_path / "whole", name), results(tmp_path / "parts", name)
        assert whole.keys() == merged.keys()
        for key in whole:
            np.testing.assert_array_equal(whole[key], merged[key])


ODD = {
    "constant": np.full((3, 32, 32, 3), 77, np.uint8),
    "black and white": np.stack([np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)]),
    "one latent position": np.full((1, 16, 16, 3), 200, np.uint8),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("flags", [[], ["--passes", "4", "--contexts"]])
def test_odd_validation_images_end_in_results(tmp_path, name, flags):
    checkpoints = copy_run(CHECKPOINTS, tmp_path / "checkpoints")
    np.save(tmp_path / "val.npy", ODD[name])
    Image.fromarray(ODD[name][0]).save(tmp_path / "odd.png")
    argv = [checkpoints, GOLDEN_RUN, str(tmp_path / "val.npy"), str(tmp_path / "odd.png"), *SMALL, *flags]
    assert post_process.main([*argv, "--bitstream"]) == 0
    for quantizer in ("KmeansQuantizer", "UniformQuantizer"):
        arrays = results(os.path.join(checkpoints, GOLDEN_RUN), quantizer)
        assert np.isfinite(arrays["BPP"]).all() and np.isfinite(arrays["MSE (RGB)"]).all()


def test_a_dead_channel_among_live_ones_is_fitted():
    from quantizers import KmeansQuantizer, Posterior, UniformQuantizer

    mean = np.random.default_rng(0).normal(size=(5, 4, 4, 3)).astype(np.float32)
    mean[..., 1] = 0.25
    for kind in (KmeansQuantizer, UniformQuantizer):
        quantizer = kind.fit(mean, [1, 4, 8])
        for levels in quantizer.levels:
            assert quantizer.code_points[levels].shape == (3, levels)
            indices = quantizer.encode(Posterior(mean[0], mean[0]), levels)
            np.testing.assert_allclose(quantizer.decode(indices, levels)[..., 1], 0.25)
