"""The evaluation as a whole, on the original program's own tiny model."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import GOLDEN, GOLDEN_RUN, ROOT
from evaluation import (
    CHECKPOINTS,
    SMALL,
    SMALL_NAMES,
    TEST_IMAGES,
    contents,
    copy_run,
    fails,
    results,
)
from PIL import Image

import post_process
import vbq.evaluation
from codec import Encoder, codec_of
from quantizers import QUANTIZERS, ChannelwisePriorCDFQuantizer, FitOptions, UniformQuantizer
from vbq.command import run_main
from vbq.files import load_npz, save_npz
from vbq.fits import Fit
from vbq.images import read_image
from vbq.results import results_path
from vbq.runs import load_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_priors")]  # whole evaluations or trainings


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, validation):
    """A run that was evaluated with SMALL settings: copied by those who change it, else only read."""
    checkpoints = copy_run(CHECKPOINTS, tmp_path_factory.mktemp("evaluated") / "checkpoints")
    assert post_process.main([checkpoints, GOLDEN_RUN, validation, TEST_IMAGES, *SMALL]) == 0
    return checkpoints, os.path.join(checkpoints, GOLDEN_RUN)


@pytest.fixture
def evaluated_copy(evaluated, tmp_path):
    checkpoints = copy_run(evaluated[0], tmp_path / "copy")
    return checkpoints, os.path.join(checkpoints, GOLDEN_RUN)


# Results.


def test_the_originals_results():
    """With its code points, all settings: rates to 1e-4; distortion to 1e-3 (SSIM: it was computed in float32
    there).

    The channelwise fit is to the original's validation latents. Ours equal them to 1e-5. On some processors,
    rounding leads one of them to another bit length, and some rates change by 3e-4.
    """
    run = load_run(CHECKPOINTS, GOLDEN_RUN)
    expected = load_npz(os.path.join(GOLDEN, "expected.npz"))
    mean, logvar = run.encode(np.load(os.path.join(GOLDEN, "val_imgs_uint8.npy")))
    np.testing.assert_allclose(mean, expected["val_mean"], atol=1e-5)
    np.testing.assert_allclose(logvar, expected["val_logvar"], atol=1e-5)
    channelwise = ChannelwisePriorCDFQuantizer.fit(
        expected["code_points"],
        expected["val_mean"],
        np.exp(0.5 * expected["val_logvar"]),
        expected["lambs"],
    )
    fits = [
        Fit(quantizer, quantizer.file_name(FitOptions()))
        for quantizer in (channelwise, UniformQuantizer.fit(mean))
    ]
    paths = post_process.find_test_images(TEST_IMAGES)
    for fit, arrays in zip(fits, post_process.evaluate(run, fits, FitOptions(), paths)):
        original = load_npz(results_path(GOLDEN, fit.name))
        assert list(arrays) == [*original, "fit"] and str(arrays["fit"]) == fit.quantizer.identity()
        assert {key: arrays[key].dtype for key in original} == {key: x.dtype for key, x in original.items()}
        order = [list(original["compressed_files"]).index(file) for file in arrays["compressed_files"]]
        np.testing.assert_array_equal(arrays["settings"], original["settings"])
        if fit.quantizer is channelwise:  # the original's uniform rates are not normalized
            for key in ("B", "BPP", "BPL", "BPPCL"):
                tolerance = 1e-3 if key == "BPPCL" else 1e-4
                np.testing.assert_allclose(arrays[key], original[key][order], rtol=tolerance)
        for mode in ("RGB", "Luma", "Chroma"):
            for key, tolerance in (
                (f"MSE ({mode})", {"rtol": 1e-3}),
                (f"PSNR ({mode})", {"atol": 1e-3}),
                (f"SSIM ({mode})", {"atol": 1e-4}),
                (f"MS-SSIM ({mode})", {"atol": 5e-3}),
            ):
                np.testing.assert_allclose(
                    arrays[key], original[key][order], **{"rtol": 1e-7, **tolerance}, err_msg=key
                )


def test_files_of_a_run(evaluated):
    _, run = evaluated
    assert set(os.listdir(run)) - set(os.listdir(os.path.join(CHECKPOINTS, GOLDEN_RUN))) == {
        "prior.npz",
        "rate_distortion.png",
        "bd_rates.md",
        *(f"{name}.npz" for name in SMALL_NAMES),
        *(f"{name}-compression_results.npz" for name in SMALL_NAMES),
    }
    arrays = results(run, SMALL_NAMES[0])
    np.testing.assert_array_equal(arrays["settings"], [0.5, 8])
    assert arrays["compressed_files"].tolist() == ["china.png", "flower.png"]
    assert arrays["reconstructions"].shape == (0,)
    np.testing.assert_allclose(arrays["BPP"], arrays["B"] / (192 * 256))
    np.testing.assert_allclose(arrays["BPL"], arrays["B"] / (12 * 16 * 8))
    assert np.all(arrays["BPP"][:, 0] > arrays["BPP"][:, 1])
    for name in SMALL_NAMES[1:]:
        arrays = results(run, name)
        assert arrays["settings"].tolist() == [2, 4] and str(arrays["quantizer_path"]) == name + ".npz"
        np.testing.assert_array_equal(arrays["BPP"], arrays["BPPCL"])
    assert np.asarray(Image.open(os.path.join(run, "rate_distortion.png"))).std() > 10


def test_results_name_their_fit(evaluated):
    _, run = evaluated
    for kind, name in zip(QUANTIZERS, SMALL_NAMES):
        arrays = results(run, name)
        fit = kind.load(os.path.join(run, str(arrays["quantizer_path"])))
        assert str(arrays["fit"]) == fit.identity()


def test_saved_fit_gives_the_same_files_and_table(evaluated, evaluated_copy, capsys):
    checkpoints, run = evaluated_copy
    for name in os.listdir(run):
        if "results" in name:
            os.remove(os.path.join(run, name))
    assert post_process.main([checkpoints, GOLDEN_RUN, "-", TEST_IMAGES, *SMALL]) == 0
    table, err = capsys.readouterr()
    saved, replaced = err.splitlines()
    assert "saved fit" in saved and "val_imgs.npy" in saved
    assert replaced == f"replaces in {run}: rate_distortion.png, bd_rates.md"
    assert contents(run) == contents(evaluated[1])
    points, bd_rates, where = (
        table.split("\n\nBD-rates against JPEG on 2 images")[0],
        *table.split("\n\n")[2:],
    )
    assert len(points.splitlines()) == 1 + 2 + 2 + 2 + 12
    assert [line.split()[1] for line in bd_rates.splitlines()[2:]] == ["VBQ", "k-means", "uniform"]
    assert bd_rates in contents(run)["bd_rates.md"].decode()
    assert where == f"results, rate_distortion.png and bd_rates.md: {run}\n"
    for word in ("VBQ", "k-means", "uniform", "PSNR", "MS-SSIM", "bpp"):
        assert word in table


def test_fitting_again_gives_the_same_files(evaluated, evaluated_copy, validation, capsys):
    checkpoints, run = evaluated_copy
    argv = [checkpoints, GOLDEN_RUN, validation, TEST_IMAGES, *SMALL]
    assert post_process.main([*argv, "--rebuild"]) == 0
    err = capsys.readouterr().err
    assert "fits the prior" in err and "saved" not in err
    for kind in QUANTIZERS:
        assert f"fits {kind.__name__} to 12 validation images: --rebuild" in err
    assert contents(run) == contents(evaluated[1])


def test_other_validation_images_make_another_fit(evaluated, evaluated_copy, tmp_path, capsys):
    """Beside the first one, or, with --rebuild, in its place; the first one is then beside."""
    checkpoints, run = evaluated_copy
    before = contents(run)
    other = tmp_path / "other.npy"
    np.save(other, np.random.default_rng(0).random((3, 64, 64, 3), np.float32))
    argv = [checkpoints, GOLDEN_RUN, str(other), TEST_IMAGES, *SMALL]
    assert post_process.main(argv) == 0
    err = capsys.readouterr().err
    assert f"{SMALL_NAMES[0]}.npz differs in the validation images (val_imgs.npy" in err
    found = contents(run)
    assert {name: found[name] for name in before if "results" not in name and name.endswith(".npz")} == {
        name: before[name] for name in before if "results" not in name and name.endswith(".npz")
    }
    for kind, name in zip(QUANTIZERS, SMALL_NAMES):
        path = str(results(run, name)["quantizer_path"])
        assert path.startswith(name + "-fit=")
        assert "other.npy" in kind.load(os.path.join(run, path)).provenance["validation"]
    assert post_process.main([*argv, "--rebuild"]) == 0
    quantizer = ChannelwisePriorCDFQuantizer.load(os.path.join(run, SMALL_NAMES[0] + ".npz"))
    assert "other.npy" in quantizer.provenance["validation"]
    assert quantizer.index_counts.sum() == 2 * 8 * 3 * 16
    first = ChannelwisePriorCDFQuantizer.load(os.path.join(evaluated[1], SMALL_NAMES[0] + ".npz"))
    assert (
        contents(run)[f"{SMALL_NAMES[0]}-fit={first.identity()[:16]}.npz"] == before[SMALL_NAMES[0] + ".npz"]
    )


def test_other_settings_or_weights_are_fitted_anew(evaluated_copy, validation, capsys):
    checkpoints, run = evaluated_copy
    flags = ["--max_bits", "4", "--lambs", "2", "--quantization_levels", "3"]
    saved_only = [checkpoints, GOLDEN_RUN, "-", TEST_IMAGES, *flags]
    line = fails(capsys, *saved_only)
    assert f"{SMALL_NAMES[0]}.npz differs in --lambs (it has no 2)" in line
    assert post_process.main([checkpoints, GOLDEN_RUN, validation, TEST_IMAGES, *flags]) == 0
    err = capsys.readouterr().err
    assert "fits the prior" not in err  # the saved one serves
    for kind, setting in zip(QUANTIZERS, ("--lambs", *["--quantization_levels"] * 2)):
        assert f"fits {kind.__name__} to 12 validation images" in err and setting in err
    assert post_process.main(saved_only) == 0
    for name in (name for name in os.listdir(run) if name.startswith("UniformQuantizer")):
        if "results" not in name:
            arrays = load_npz(os.path.join(run, name))
            save_npz(os.path.join(run, name), {**arrays, "model_fingerprint": "0"})
    assert "UniformQuantizer.npz differs in the model's weights" in fails(capsys, *saved_only)


def test_more_passes_stand_beside_the_papers_two(evaluated_copy, validation):
    checkpoints, run = evaluated_copy
    before = contents(run)
    argv = [checkpoints, GOLDEN_RUN, validation, TEST_IMAGES, *SMALL]
    assert post_process.main([*argv, "--passes", "6"]) == 0
    name = SMALL_NAMES[0]
    assert contents(run)[name + ".npz"] == before[name + ".npz"]
    two, six = results(run, name), results(run, name + "-passes=6")
    assert str(six["quantizer_path"]) == name + "-passes=6.npz" and two["BPP"].shape == six["BPP"].shape
    assert not np.array_equal(two["BPP"], six["BPP"])


@pytest.mark.slow
def test_contexts_and_joint_steps_stand_beside_them(evaluated_copy, validation):
    """Fewer bits with contexts; a result file of their own for joint steps, in shards as well; files of the
    codec, too.
    """
    checkpoints, run = evaluated_copy
    argv = [checkpoints, GOLDEN_RUN, validation, TEST_IMAGES, *SMALL, "--passes", "4"]
    name = SMALL_NAMES[0] + "-passes=4"
    assert post_process.main(argv) == 0
    assert post_process.main([*argv, "--contexts", "--bitstream"]) == 0
    plain, contexts = results(run, name), results(run, name + "-contexts")
    assert str(contexts["quantizer_path"]) == name + "-contexts.npz"
    assert (contexts["BPP"] < plain["BPP"]).all()
    error = np.abs(contexts["BPP (file)"] - contexts["BPP"]) * 192 * 256
    assert (error <= 0.005 * contexts["B"] + 8 * 64).all()
    argv = [checkpoints, GOLDEN_RUN, "-", *argv[3:], "--contexts", "--joint_steps", "3"]
    assert post_process.main(argv) == 0
    joint = results(run, name + "-contexts-joint_steps=3")
    assert str(joint["quantizer_path"]) == name + "-contexts.npz" and joint["BPP"].shape == plain["BPP"].shape
    os.remove(results_path(run, name + "-contexts-joint_steps=3"))
    for shard in ("1/2", "2/2"):
        assert post_process.main([*argv, "--shard", shard]) == 0
    assert post_process.main([*argv, "--merge", "2"]) == 0
    for key, x in results(run, name + "-contexts-joint_steps=3").items():
        np.testing.assert_array_equal(x, joint[key])


def test_gains_stand_beside_them(evaluated_copy, validation, capsys):
    """Same bits, other pictures; results of their own; the baselines have none."""
    checkpoints, run = evaluated_copy
    before, argv = contents(run), [checkpoints, GOLDEN_RUN, validation, TEST_IMAGES, *SMALL]
    assert post_process.main([*argv, "--gains"]) == 0
    assert "VBQ (gains)" in capsys.readouterr().out
    name = SMALL_NAMES[0]
    gains = name.replace("ChannelwisePriorCDFQuantizer", "DecoderGains")
    new = {gains + ".npz", f"{name}-gains-compression_results.npz"}
    after = contents(run)
    assert new == set(after) - set(before)
    plain, others = results(run, name), results(run, name + "-gains")
    assert str(others["quantizer_path"]) == gains + ".npz" and others["fit"] != plain["fit"]
    np.testing.assert_array_equal(others["BPP"], plain["BPP"])
    assert (others["MSE (RGB)"] != plain["MSE (RGB)"]).all()  # 12 crops do not make them better

    argv[2] = "-"  # the same once more, from the saved fits
    assert post_process.main([*argv, "--gains"]) == 0
    assert f"saved fits {name}, {gains}" in capsys.readouterr().err
    assert contents(run) == after
    assert f"there is no {name}-passes=3.npz" in fails(capsys, *argv, "--gains", "--passes", "3")

    path = os.path.join(run, gains + ".npz")
    arrays = load_npz(path)
    more = {key: np.concatenate([arrays[key], arrays[key][:1]]) for key in ("lambs", "scales", "offsets")}
    save_npz(path, arrays | more)
    line = fails(capsys, *argv, "--gains")
    assert f"{gains}.npz: the gains have other lambdas" in line and "--rebuild" in line
    os.remove(path)
    assert f"there is no {gains}.npz" in fails(capsys, *argv, "--gains")


def test_shards_merge_to_the_same_files(evaluated, evaluated_copy, capsys):
    checkpoints, run = evaluated_copy
    argv = [checkpoints, GOLDEN_RUN, "-", TEST_IMAGES, *SMALL]
    for name in SMALL_NAMES:
        os.remove(results_path(run, name))
    assert post_process.main([*argv, "--shard", "1/2"]) == 0
    assert "shard=2-of-2" in fails(capsys, *argv, "--merge", "2")
    assert post_process.main([*argv, "--shard", "2/2"]) == 0
    assert post_process.main([*argv, "--merge", "2"]) == 0
    for name in SMALL_NAMES:
        first, second = (results_path(run, name, (i, 2)) for i in (1, 2))
        merged = os.path.basename(results_path(run, name))
        assert contents(run)[merged] == contents(evaluated[1])[merged]
        shutil.copy(first, second)
    assert "again" in fails(capsys, *argv, "--merge", "2")  # both now hold the first image


def test_shards_of_different_fits_do_not_merge(evaluated_copy, tmp_path, capsys):
    checkpoints, run = evaluated_copy
    other = tmp_path / "other.npy"
    np.save(other, np.random.default_rng(0).random((3, 64, 64, 3), np.float32))
    flags = [TEST_IMAGES, *SMALL]
    assert post_process.main([checkpoints, GOLDEN_RUN, "-", *flags, "--shard", "1/2"]) == 0
    assert post_process.main([checkpoints, GOLDEN_RUN, str(other), *flags, "--shard", "2/2"]) == 0
    before = contents(run)
    line = fails(capsys, checkpoints, GOLDEN_RUN, "-", *flags, "--merge", "2")
    assert "shard=2-of-2" in line and "another fit" in line and "again" in line
    assert contents(run) == before
    assert post_process.main([checkpoints, GOLDEN_RUN, "-", *flags, "--shard", "2/2"]) == 0
    assert post_process.main([checkpoints, GOLDEN_RUN, "-", *flags, "--merge", "2"]) == 0


def test_bitstream_reports_the_size_of_the_codecs_files(evaluated_copy):
    folder, run = evaluated_copy
    estimated = results(run, SMALL_NAMES[0])
    assert "BPP (file)" not in estimated
    assert post_process.main([folder, GOLDEN_RUN, "-", TEST_IMAGES, *SMALL, "--bitstream"]) == 0
    measured, codec = results(run, SMALL_NAMES[0]), codec_of(load_run(folder, GOLDEN_RUN))
    for i, name in enumerate(measured["compressed_files"]):
        encoder = Encoder(codec, read_image(os.path.join(os.path.dirname(TEST_IMAGES), name)))
        for j, lamb in enumerate(measured["settings"]):
            assert measured["BPP (file)"][i, j] == encoder.compress(lamb).bpp
            error = abs(measured["BPP (file)"][i, j] - measured["BPP"][i, j]) * 192 * 256
            assert error <= 0.005 * measured["B"][i, j] + 8 * 64
    np.testing.assert_array_equal(measured["BPP"], estimated["BPP"])
    assert "BPP (file)" not in results(run, SMALL_NAMES[1])


def test_own_size_and_reconstructions(evaluated_copy, tmp_path, china, capsys):
    """Sides that are no multiple of 16, two sizes, one too small for MS-SSIM."""
    checkpoints, run = evaluated_copy
    os.mkdir(tmp_path / "odd")
    Image.fromarray(china[:171, :203]).save(tmp_path / "odd" / "b.png")
    Image.fromarray(china[:50, :33]).save(tmp_path / "odd" / "a.jpg", quality=95)
    images = str(tmp_path / "odd" / "*")
    assert post_process.main([checkpoints, GOLDEN_RUN, "-", images, *SMALL, "--reconstructions"]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warned) == 1 and "a.jpg: image of 33 x 50 pixels: MS-SSIM is NaN" in warned[0]
    for name in SMALL_NAMES:
        arrays = results(run, name)
        kept = arrays["reconstructions"]
        assert arrays["compressed_files"].tolist() == ["a.jpg", "b.png"]
        assert kept.shape == (2, 2, 171, 203, 3) and kept.dtype == np.uint8
        np.testing.assert_array_equal(arrays["sizes"], [[50, 33], [171, 203]])
        error = kept[1].astype(float) - china[:171, :203]
        np.testing.assert_allclose(np.mean(error**2, axis=(1, 2, 3)), arrays["MSE (RGB)"][1])
        assert not kept[0, :, 50:].any() and not kept[0, :, :, 33:].any()
        np.testing.assert_allclose(arrays["BPP"], arrays["B"] / np.array([[50 * 33], [171 * 203]]))
        assert np.isnan(arrays["MS-SSIM (RGB)"][0]).all() and np.isfinite(arrays["MS-SSIM (RGB)"][1]).all()


# Interruption.


def test_killed_while_writing_results(evaluated, evaluated_copy):
    """kill -9 in the middle of a file: the old one stays whole; the rest does not disturb the next run."""
    checkpoints, run = evaluated_copy
    path = results_path(run, SMALL_NAMES[0])
    before = contents(run)
    code = (
        "import os, signal, sys, numpy as np\n"
        "from vbq.files import save_npz\n"
        "def die(file, array, **how):\n"
        "    file.write(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "np.lib.format.write_array = die\n"
        "save_npz(sys.argv[1], {'x': np.zeros(9)})"
    )
    status = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT).returncode
    assert status == -signal.SIGKILL
    found = contents(run)
    left = set(found) - set(before)
    assert len(left) == 1 and {name: found[name] for name in before} == before
    assert post_process.main([checkpoints, GOLDEN_RUN, "-", TEST_IMAGES, *SMALL]) == 0
    assert {name: data for name, data in contents(run).items() if name not in left} == contents(evaluated[1])


def test_nothing_is_written_before_all_is_evaluated(fresh, validation, monkeypatch):
    """An error at the last image leaves the fits, which are whole, and no results."""

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(vbq.evaluation, "as_arrays", stop)
    assert run_main(post_process.main, [fresh[0], GOLDEN_RUN, validation, TEST_IMAGES, *SMALL]) == 130
    assert not [name for name in os.listdir(fresh[1]) if "results" in name]
    monkeypatch.undo()
    assert post_process.main([fresh[0], GOLDEN_RUN, "-", TEST_IMAGES, *SMALL]) == 0
