"""The evaluation as a whole, on the original program's own tiny model."""
import os
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

import post_process
import utils
from bls2017_vae import load_run
from codec import Encoder, codec_of
from quantizers import ChannelwisePriorCDFQuantizer, UniformQuantizer

CHANNELWISE, KMEANS, UNIFORM = post_process.Settings().names
GOLDEN = os.path.join(os.path.dirname(__file__), "golden")
RUN = os.listdir(os.path.join(GOLDEN, "checkpoints"))[0]
TEST_IMAGES = os.path.join(GOLDEN, "test", "*.png")
SMALL = ["--max_bits", "4", "--lambs", "8", ".5", "--quantization_levels", "4", "2"]
SMALL_NAMES = post_process.Settings(max_bits=4).names


def copy_run(folder):
    """A copy of the golden run that may be written to: (checkpoint directory, run directory), as str."""
    shutil.copytree(os.path.join(GOLDEN, "checkpoints"), folder)
    for path, _, files in os.walk(folder):
        for name in [path, *(os.path.join(path, file) for file in files)]:
            os.chmod(name, 0o755)
    return str(folder), os.path.join(folder, RUN)


@pytest.fixture
def fresh(tmp_path):
    return copy_run(tmp_path / "checkpoints")


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    """A file of 12 validation images; a small one, to be quick."""
    path = tmp_path_factory.mktemp("validation") / "val_imgs.npy"
    np.save(path, np.load(os.path.join(GOLDEN, "val_imgs_uint8.npy"))[:12])
    return str(path)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, validation):
    """A run that was evaluated with SMALL settings: copied by those who change it, else only read."""
    checkpoints, run = copy_run(tmp_path_factory.mktemp("evaluated") / "checkpoints")
    assert post_process.main([checkpoints, RUN, validation, TEST_IMAGES, *SMALL]) == 0
    return checkpoints, run


@pytest.fixture
def evaluated_copy(evaluated, tmp_path):
    shutil.copytree(evaluated[0], tmp_path / "copy")
    return str(tmp_path / "copy"), str(tmp_path / "copy" / RUN)


def results(run, name):
    return utils.load_npz(post_process.results_path(run, name))


def contents(run):
    """All files of a folder as bytes, by name."""
    return {name: open(os.path.join(run, name), "rb").read() for name in sorted(os.listdir(run))}


def fails(capsys, *argv):
    """Runs the program, which should fail as for a user's error, and returns the one line that it printed."""
    capsys.readouterr()
    assert utils.run_main(post_process.main, [str(arg) for arg in argv]) == 1
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("warning: left out")]
    assert out == "" and len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


# Results.


def test_the_originals_results(golden):
    """With its code points, all settings: rates to 1e-4; distortion to 1e-3 (SSIM: it was computed in float32 there)."""
    from bls2017_vae import load_run

    run = load_run(os.path.join(golden, "checkpoints"), RUN)
    expected = utils.load_npz(os.path.join(golden, "expected.npz"))
    mean, logvar = run.encode(np.load(os.path.join(golden, "val_imgs_uint8.npy")))
    quantizers = {
        CHANNELWISE: ChannelwisePriorCDFQuantizer.fit(expected["code_points"], mean, np.exp(.5 * logvar), expected["lambs"]),
        UNIFORM: UniformQuantizer.fit(mean)}
    found = post_process.evaluate(run, quantizers, post_process.find_test_images(TEST_IMAGES))
    for name, arrays in found.items():
        original = utils.load_npz(os.path.join(golden, f"{name}-compression_results.npz"))
        assert list(arrays) == list(original)
        assert {key: x.dtype for key, x in arrays.items()} == {key: x.dtype for key, x in original.items()}
        order = [list(original["compressed_files"]).index(file) for file in arrays["compressed_files"]]
        np.testing.assert_array_equal(arrays["settings"], original["settings"])
        if name == CHANNELWISE:  # the original's uniform rates are not normalized
            for key in ("B", "BPP", "BPL", "BPPCL"):
                np.testing.assert_allclose(arrays[key], original[key][order], rtol=1e-3 if key == "BPPCL" else 1e-4)
        for mode in ("RGB", "Luma", "Chroma"):
            np.testing.assert_allclose(arrays[f"MSE ({mode})"], original[f"MSE ({mode})"][order], rtol=1e-3)
            np.testing.assert_allclose(arrays[f"PSNR ({mode})"], original[f"PSNR ({mode})"][order], atol=1e-3)
            np.testing.assert_allclose(arrays[f"SSIM ({mode})"], original[f"SSIM ({mode})"][order], atol=1e-4)
            np.testing.assert_allclose(arrays[f"MS-SSIM ({mode})"], original[f"MS-SSIM ({mode})"][order], atol=5e-3)


def test_files_of_a_run(evaluated, capsys):
    _, run = evaluated
    assert set(os.listdir(run)) - set(os.listdir(os.path.join(GOLDEN, "checkpoints", RUN))) == {
        "prior.npz", "rate_distortion.png", *(f"{name}.npz" for name in SMALL_NAMES),
        *(f"{name}-compression_results.npz" for name in SMALL_NAMES)}
    arrays = results(run, SMALL_NAMES[0])
    np.testing.assert_array_equal(arrays["settings"], [.5, 8])
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


def test_saved_fit_gives_the_same_files_and_table(evaluated, evaluated_copy, validation, capsys):
    checkpoints, run = evaluated_copy
    for name in os.listdir(run):
        if "results" in name:
            os.remove(os.path.join(run, name))
    assert post_process.main([checkpoints, RUN, "-", TEST_IMAGES, *SMALL]) == 0
    table, err = capsys.readouterr()
    assert "saved fit" in err and "val_imgs.npy" in err
    assert contents(run) == contents(evaluated[1])
    assert len(table.splitlines()) == 1 + 2 + 2 + 2 + 1
    for word in ("VBQ", "k-means", "uniform", "PSNR", "MS-SSIM", "bpp"):
        assert word in table


def test_fitting_again_gives_the_same_files(evaluated, evaluated_copy, validation, capsys):
    checkpoints, run = evaluated_copy
    assert post_process.main([checkpoints, RUN, validation, TEST_IMAGES, *SMALL, "--rebuild"]) == 0
    assert "fits prior" in capsys.readouterr().err
    assert contents(run) == contents(evaluated[1])


def test_other_validation_images_are_told(evaluated, evaluated_copy, tmp_path, capsys):
    checkpoints, run = evaluated_copy
    other = tmp_path / "other.npy"
    np.save(other, np.random.default_rng(0).random((3, 64, 64, 3), np.float32))
    assert post_process.main([checkpoints, RUN, str(other), TEST_IMAGES, *SMALL]) == 0
    assert "--rebuild" in capsys.readouterr().err
    assert contents(run) == contents(evaluated[1])
    assert post_process.main([checkpoints, RUN, str(other), TEST_IMAGES, *SMALL, "--rebuild"]) == 0
    quantizer = ChannelwisePriorCDFQuantizer.load(os.path.join(run, SMALL_NAMES[0] + ".npz"))
    assert "other.npy" in quantizer.provenance["validation"] and quantizer.index_counts.sum() == 2 * 8 * 3 * 16


def test_other_settings_or_weights_are_fitted_anew(evaluated_copy, validation, capsys):
    checkpoints, run = evaluated_copy
    argv = [checkpoints, RUN, validation, TEST_IMAGES, "--max_bits", "4", "--lambs", "2", "--quantization_levels", "3"]
    assert "other settings" in fails(capsys, checkpoints, RUN, "-", *argv[3:])
    assert post_process.main(argv) == 0
    assert "fits prior" in capsys.readouterr().err
    arrays = utils.load_npz(os.path.join(run, "UniformQuantizer.npz"))
    utils.save_npz(os.path.join(run, "UniformQuantizer.npz"), {**arrays, "model_fingerprint": "0"})
    assert "another model" in fails(capsys, checkpoints, RUN, "-", *argv[3:])


def test_more_passes_stand_beside_the_papers_two(evaluated_copy, validation, capsys):
    checkpoints, run = evaluated_copy
    before = contents(run)
    assert post_process.main([checkpoints, RUN, validation, TEST_IMAGES, *SMALL, "--passes", "6"]) == 0
    name = SMALL_NAMES[0]
    assert contents(run)[name + ".npz"] == before[name + ".npz"]
    two, six = results(run, name), results(run, name + "-passes=6")
    assert str(six["quantizer_path"]) == name + "-passes=6.npz" and two["BPP"].shape == six["BPP"].shape
    assert not np.array_equal(two["BPP"], six["BPP"])


def test_contexts_and_joint_steps_stand_beside_them(evaluated_copy, validation, capsys):
    """Fewer bits with contexts; a file of its own for steps, in shards as well; files of the codec, too."""
    checkpoints, run = evaluated_copy
    argv = [checkpoints, RUN, validation, TEST_IMAGES, *SMALL, "--passes", "4"]
    name = SMALL_NAMES[0] + "-passes=4"
    assert post_process.main(argv) == 0
    assert post_process.main([*argv, "--contexts", "--bitstream"]) == 0
    plain, contexts = results(run, name), results(run, name + "-contexts")
    assert str(contexts["quantizer_path"]) == name + "-contexts.npz"
    assert (contexts["BPP"] < plain["BPP"]).all()
    assert (np.abs(contexts["BPP (file)"] - contexts["BPP"]) * 192 * 256 <= .005 * contexts["B"] + 8 * 64).all()
    argv = [checkpoints, RUN, "-", *argv[3:], "--contexts", "--joint_steps", "3"]
    assert post_process.main(argv) == 0
    joint = results(run, name + "-contexts-joint_steps=3")
    assert str(joint["quantizer_path"]) == name + "-contexts.npz" and joint["BPP"].shape == plain["BPP"].shape
    os.remove(post_process.results_path(run, name + "-contexts-joint_steps=3"))
    for shard in ("1/2", "2/2"):
        assert post_process.main([*argv, "--shard", shard]) == 0
    assert post_process.main([*argv, "--merge", "2"]) == 0
    for key, x in results(run, name + "-contexts-joint_steps=3").items():
        np.testing.assert_array_equal(x, joint[key])


def test_shards_merge_to_the_same_files(evaluated, evaluated_copy, capsys):
    checkpoints, run = evaluated_copy
    argv = [checkpoints, RUN, "-", TEST_IMAGES, *SMALL]
    for name in SMALL_NAMES:
        os.remove(post_process.results_path(run, name))
    assert post_process.main([*argv, "--shard", "1/2"]) == 0
    assert "shard=2-of-2" in fails(capsys, *argv, "--merge", "2")
    assert post_process.main([*argv, "--shard", "2/2"]) == 0
    assert post_process.main([*argv, "--merge", "2"]) == 0
    for name in SMALL_NAMES:
        first, second = (post_process.results_path(run, name, (i, 2)) for i in (1, 2))
        merged = os.path.basename(post_process.results_path(run, name))
        assert contents(run)[merged] == contents(evaluated[1])[merged]
        shutil.copy(first, second)
    assert "again" in fails(capsys, *argv, "--merge", "2")  # both now hold the first image


def test_bitstream_reports_the_size_of_the_codecs_files(evaluated_copy, capsys):
    folder, run = evaluated_copy
    estimated = results(run, SMALL_NAMES[0])
    assert "BPP (file)" not in estimated
    assert post_process.main([folder, RUN, "-", TEST_IMAGES, *SMALL, "--bitstream"]) == 0
    measured, codec = results(run, SMALL_NAMES[0]), codec_of(load_run(folder, RUN))
    for i, name in enumerate(measured["compressed_files"]):
        encoder = Encoder(codec, utils.read_image(os.path.join(os.path.dirname(TEST_IMAGES), name)))
        for j, lamb in enumerate(measured["settings"]):
            assert measured["BPP (file)"][i, j] == encoder.compress(lamb).bpp
            assert abs(measured["BPP (file)"][i, j] - measured["BPP"][i, j]) * 192 * 256 <= .005 * measured["B"][i, j] + 8 * 64
    np.testing.assert_array_equal(measured["BPP"], estimated["BPP"])
    assert "BPP (file)" not in results(run, SMALL_NAMES[1])


def test_own_size_and_reconstructions(evaluated_copy, tmp_path, china):
    """Sides that are no multiple of 16, two sizes, one too small for MS-SSIM."""
    checkpoints, run = evaluated_copy
    os.mkdir(tmp_path / "odd")
    Image.fromarray(china[:171, :203]).save(tmp_path / "odd" / "b.png")
    Image.fromarray(china[:50, :33]).save(tmp_path / "odd" / "a.jpg", quality=95)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert post_process.main([checkpoints, RUN, "-", str(tmp_path / "odd" / "*"), *SMALL, "--reconstructions"]) == 0
    for name in SMALL_NAMES:
        arrays = results(run, name)
        assert arrays["compressed_files"].tolist() == ["a.jpg", "b.png"]
        assert arrays["reconstructions"].shape == (2, 2, 171, 203, 3) and arrays["reconstructions"].dtype == np.uint8
        np.testing.assert_array_equal(arrays["sizes"], [[50, 33], [171, 203]])
        error = arrays["reconstructions"][1].astype(float) - china[:171, :203]
        np.testing.assert_allclose(np.mean(error ** 2, axis=(1, 2, 3)), arrays["MSE (RGB)"][1])
        assert not arrays["reconstructions"][0, :, 50:].any() and not arrays["reconstructions"][0, :, :, 33:].any()
        np.testing.assert_allclose(arrays["BPP"], arrays["B"] / np.array([[50 * 33], [171 * 203]]))
        assert np.isnan(arrays["MS-SSIM (RGB)"][0]).all() and np.isfinite(arrays["MS-SSIM (RGB)"][1]).all()


# Validation images.


def test_validation_array_and_files_are_the_same_images(tmp_path, china, capsys):
    images = [china[:64, 64 * i:64 * i + 64] for i in range(3)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    np.save(tmp_path / "all.npy", images)
    (tmp_path / "3.png").write_bytes((tmp_path / "0.png").read_bytes()[:100])
    Image.fromarray(china[:30, :70]).save(tmp_path / "4.png")
    files = post_process.read_validation(str(tmp_path / "*.png"))
    array = post_process.read_validation(str(tmp_path / "all.npy"))
    np.testing.assert_array_equal(files.images, array.images)
    assert files.label.split()[-1] == array.label.split()[-1]
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warned) == 2 and "3.png" in warned[0] and "4.png" in warned[1]
    assert isinstance(array.images, np.memmap)


def test_large_validation_files_are_cropped(tmp_path, china):
    large = np.tile(china, (2, 2, 1))[:300, :500]
    Image.fromarray(large).save(tmp_path / "a.png")
    images = post_process.read_validation(str(tmp_path / "a.png")).images
    np.testing.assert_array_equal(images, large[None, 22:278, 122:378])


def bad(shape=(2, 32, 32, 3), value=.5, dtype=np.float32):
    return np.full(shape, value, dtype)


@pytest.mark.parametrize("array, words", [
    (bad((32, 32, 3)), "N x H x W x 3"), (bad((2, 32, 32, 4)), "N x H x W x 3"), (bad((0, 32, 32, 3)), "N x H x W x 3"),
    (bad(value=3, dtype=np.int32), "int32"), (bad(value=255.), "255"), (bad(value=-.1), "-0.1"), (bad(value=np.nan), "nan"),
    (bad(dtype=object), "npy"), (b"", "npy"), (b"\x93NUMPY no", "npy"),
])
def test_bad_validation_arrays(fresh, tmp_path, capsys, array, words):
    path = tmp_path / "val.npy"
    if isinstance(array, bytes):
        path.write_bytes(array)
    else:
        np.save(path, array)
    before = contents(fresh[1])
    line = fails(capsys, fresh[0], RUN, path, TEST_IMAGES)
    assert words in line and "val.npy" in line
    assert contents(fresh[1]) == before


# Other bad input.


def test_bad_places(fresh, validation, tmp_path, capsys):
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    shutil.copy(os.path.join(GOLDEN, "test", "china.png"), tmp_path / "good.png")
    before = contents(fresh[1])
    assert "nothing.png" in fails(capsys, fresh[0], RUN, validation, tmp_path / "nothing.png")
    assert "none.npy" in fails(capsys, fresh[0], RUN, tmp_path / "none.npy", TEST_IMAGES)
    assert "none*.png" in fails(capsys, fresh[0], RUN, tmp_path / "none*.png", TEST_IMAGES)
    assert "text.png" in fails(capsys, fresh[0], RUN, tmp_path / "text.png", TEST_IMAGES)
    assert ".png" in fails(capsys, fresh[0], RUN, validation, tmp_path / "*.png")  # zero.png or text.png, among a good one
    assert "no_such_run" in fails(capsys, fresh[0], "no_such_run", validation, TEST_IMAGES)
    assert "saved fit" in fails(capsys, fresh[0], RUN, "-", TEST_IMAGES)
    assert contents(fresh[1]) == before


def test_a_run_without_checkpoint_or_directory_to_write_to(tmp_path, validation, capsys, monkeypatch):
    os.makedirs(tmp_path / "runs" / "empty")
    assert "args.json" in fails(capsys, tmp_path / "runs", "empty", validation, TEST_IMAGES)

    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(post_process.tempfile, "TemporaryFile", refuse)
    assert "Permission denied" in fails(capsys, tmp_path / "runs", "empty", validation, TEST_IMAGES)


def test_damaged_fit_is_named(evaluated_copy, capsys):
    checkpoints, run = evaluated_copy
    path = os.path.join(run, SMALL_NAMES[0] + ".npz")
    with open(path, "r+b") as file:
        file.truncate(500)
    before = contents(run)
    assert path in fails(capsys, checkpoints, RUN, "-", TEST_IMAGES, *SMALL)
    assert contents(run) == before


@pytest.mark.parametrize("flags", [
    ["--lambs", "0"], ["--lambs", "nan"], ["--quantization_levels", "0"], ["--max_bits", "0"], ["--max_bits", "40"],
    ["--passes", "1"], ["--shard", "3/2"], ["--shard", "0/2"], ["--shard", "x"], ["--merge", "0"],
    ["--shard", "1/2", "--merge", "2"], ["--lambs"], ["--unknown"], ["--contexts"], ["--joint_steps", "-1"],
])
def test_usage_errors_exit_2(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        post_process.main(["checkpoints", "run", "-", "*.png", *flags])
    assert caught.value.code == 2


def test_help_needs_neither_tensorflow_nor_matplotlib():
    code = ("import sys, post_process\n"
            "try: post_process.main(['--help'])\n"
            "except SystemExit: pass\n"
            "assert not {'tensorflow', 'matplotlib', 'scipy', 'sklearn'} & set(sys.modules)")
    root = os.path.dirname(post_process.__file__)
    found = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert "val_imgs" in found.stdout


# Interruption.


def test_killed_while_writing_results(evaluated, evaluated_copy, capsys):
    """kill -9 in the middle of a file: the old one stays whole, and the next run does not trip over the rest."""
    checkpoints, run = evaluated_copy
    path = post_process.results_path(run, SMALL_NAMES[0])
    before = contents(run)
    code = ("import os, signal, sys, numpy as np, utils\n"
            "def die(file, **arrays):\n"
            "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
            "np.savez = die\n"
            "utils.save_npz(sys.argv[1], {'x': np.zeros(9)})")
    root = os.path.dirname(post_process.__file__)
    assert subprocess.run([sys.executable, "-c", code, path], cwd=root).returncode == -signal.SIGKILL
    found = contents(run)
    left = set(found) - set(before)
    assert len(left) == 1 and {name: found[name] for name in before} == before
    assert post_process.main([checkpoints, RUN, "-", TEST_IMAGES, *SMALL]) == 0
    assert {name: data for name, data in contents(run).items() if name not in left} == contents(evaluated[1])


def test_nothing_is_written_before_all_is_evaluated(fresh, validation, monkeypatch, capsys):
    """An error at the last image leaves the fits, which are whole, and no results."""
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(post_process, "as_arrays", stop)
    assert utils.run_main(post_process.main, [fresh[0], RUN, validation, TEST_IMAGES, *SMALL]) == 130
    assert not [name for name in os.listdir(fresh[1]) if "results" in name]
    monkeypatch.undo()
    assert post_process.main([fresh[0], RUN, "-", TEST_IMAGES, *SMALL]) == 0
