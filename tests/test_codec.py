"""Compress and decompress, as a library and as a command: fits, hostile files, kinds of images, errors."""

import io
import json
import os
import shutil

import fuzz_codec
import numpy as np
import pytest
from codec_runs import (
    CHECKPOINTS,
    add_fit,
    command,
    copy_of,
    fails,
    fit_path,
    golden_fit,
    make_run,
    toy_quantizer,
)
from conftest import GOLDEN, GOLDEN_RUN
from PIL import Image

import codec
from vbq.files import save_npz
from vbq.image_codec import Codec, Encoder
from vbq.images import read_image, to_uint8
from vbq.metrics import ImageMetrics
from vbq.runs import load_run

CHINA = os.path.join(GOLDEN, "test", "china.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The golden run with the paper's quantizer."""
    return make_run(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def data(run, china):
    return codec.compress(china[:48, :40], run, 1.0)


# The library.


@pytest.mark.parametrize("width, height", [(1, 1), (1, 40), (17, 16), (33, 47), (16, 16)])
def test_images_come_back_in_their_size(run, china, width, height):
    image, quantizer = china[:height, :width], codec.codec_of(run).quantizer
    decoded = codec.decompress(codec.compress(image, run, 0.5), run)
    assert decoded.shape == image.shape
    posterior = [x[0] for x in run.encode(image[None])]
    codebook = quantizer.codebook(quantizer.nearest_lamb_index(0.5))
    z_hat = codebook.dequantize(codebook.choose(posterior[0], np.exp(0.5 * posterior[1]), 0.5))
    np.testing.assert_array_equal(decoded, to_uint8(run.decode(z_hat[None], height, width)[0]))


def test_arrays_that_are_no_image_are_refused(run, china):
    for wrong in (china / 255, china[..., 0], china[:0], np.zeros((4, 4, 4), np.uint8)):
        assert "an image should be uint8 [H, W, 3]" in fails(codec.compress, wrong, run, 1.0)


def test_a_file_of_another_run_is_refused_by_name(run, china):
    refined = Codec(run, golden_fit(passes=10))
    other = Encoder(refined, china).compress(1.0).data
    message = fails(codec.decompress, other, run)
    assert f"the file needs the fit {refined.fingerprint.hex()}, which {run.name} does not have" in message
    assert "try the other runs" in message


def test_of_several_fits_the_best_compresses_and_the_right_one_decompresses(tmp_path, china):
    run = make_run(tmp_path)
    old = codec.compress(china, run, 1.0)
    add_fit(run, passes=10)
    add_fit(run, passes=3)
    save_npz(fit_path(run, 10).replace(".npz", "-compression_results.npz"), {})
    new = codec.compress(china, run, 1.0)
    assert codec.codec_of(run).quantizer.passes == 10 and len(new) < len(old)
    assert codec.codec_of(run, old).quantizer.passes == 2
    assert codec.codec_of(run, new).quantizer.passes == 10
    for file in (old, new):
        assert codec.decompress(file, run).shape == china.shape


@pytest.mark.slow
def test_files_without_contexts_are_still_read_beside_a_fit_with_contexts(tmp_path, china):
    run = make_run(tmp_path, passes=4)
    old = codec.compress(china, run, 1.0)
    add_fit(run, passes=4, contexts=True)
    assert codec.codec_of(run).quantizer.contexts is not None
    assert codec.codec_of(run, old).quantizer.contexts is None
    assert codec.decompress(old, run).shape == china.shape


def test_a_missing_or_stale_fit_is_named(tmp_path, china, capsys):
    shutil.copytree(CHECKPOINTS, tmp_path, dirs_exist_ok=True)
    run = load_run(tmp_path, GOLDEN_RUN)
    assert "post_process.py" in fails(codec.compress, china, run, 1.0)
    toy_quantizer().save(fit_path(run))
    message = fails(codec.compress, china, run, 1.0)
    assert "post_process.py" in message and "other weights" in message
    os.remove(fit_path(run))
    fitting = copy_of(toy_quantizer(), provenance={"model_fingerprint": run.fingerprint})
    fitting.save(fit_path(run).replace("max_bits=10", "max_bits=4"))
    assert "8 channels" in fails(codec.compress, china, run, 1.0)
    status, out, err = command(capsys, "compress", tmp_path, GOLDEN_RUN, CHINA, tmp_path / "x.vbq")
    assert (status, out) == (1, "") and err.startswith("error: ") and not (tmp_path / "x.vbq").exists()


@pytest.mark.slow
@pytest.mark.parametrize("contexts", [False, True])
def test_mutated_files_end_in_a_picture_or_one_clear_error(run, tmp_path, contexts):
    """100,000 of them: `python tests/fuzz_codec.py`."""
    run = make_run(tmp_path, passes=4, contexts=True) if contexts else run
    outcomes, _ = fuzz_codec.fuzz(run, int(os.environ.get("CODEC_FUZZ_EXAMPLES", "3000")))
    # Nearly all layers of the decoder were reached.
    assert sum(outcomes.values()) >= 1000 and len(outcomes) > 8


# The program.


@pytest.fixture
def place(run):
    """The first two arguments of the program."""
    return os.path.dirname(run.path), run.name


def test_there_and_back(tmp_path, place, capsys, china, run):
    file, target = tmp_path / "x.vbq", tmp_path / "x.png"
    status, out, err = command(capsys, "compress", *place, CHINA, file, "--json")
    told = json.loads(out)
    data = file.read_bytes()
    assert (status, err) == (0, "") and data == codec.compress(china, run)
    assert told["bytes"] == len(data) and told["bpp"] == 8 * len(data) / china[..., 0].size
    assert told["lamb"] == codec.DEFAULT_LAMB
    assert 0 < 8 * len(data) - told["estimated_bits"] < 8 * 64

    decompressed = json.loads(command(capsys, "decompress", *place, file, target, "--json")[1])
    assert decompressed == {"file": str(target), "width": 256, "height": 192}
    decoded = read_image(target)
    np.testing.assert_array_equal(decoded, codec.decompress(data, run))
    psnr = ImageMetrics(china).evaluate(decoded)["PSNR (RGB)"]
    assert told["psnr"] == pytest.approx(psnr, abs=1e-9)

    info = json.loads(command(capsys, "info", file, "--json")[1])
    assert info == {key: value for key, value in told.items() if key not in ("psnr", "estimated_bits")}
    for argv in (["compress", *place, CHINA, file], ["info", file]):
        status, out, _ = command(capsys, *argv)
        assert status == 0 and len(out.splitlines()) == 1 and f"{len(data)} bytes" in out
        assert "lambda 1" in out and "bpp" in out
        assert ("dB" in out) == (argv[0] == "compress")
    assert "256 x 192" in command(capsys, "decompress", *place, file, target)[1]


def test_mixed_precision_writes_and_reads_the_same_files_as_float32(tmp_path, place, capsys, china):
    names = tmp_path / "exact", tmp_path / "mixed"
    for name in names:
        flags = ["--mixed_precision"] * (name.name == "mixed")
        assert command(capsys, "compress", *place, CHINA, f"{name}.vbq", *flags)[0] == 0
        for other in names:  # decodes the file of `name`
            flags = ["--mixed_precision"] * (other.name == "mixed")
            picture = f"{name}-by-{other.name}.png"
            assert command(capsys, "decompress", *place, f"{name}.vbq", picture, *flags)[0] == 0
    exact, mixed = (os.path.getsize(f"{name}.vbq") for name in names)
    assert mixed == pytest.approx(exact, rel=0.02)
    pictures = [read_image(f"{name}-by-{other.name}.png") for name in names for other in names]
    psnrs = [ImageMetrics(china).evaluate(picture)["PSNR (RGB)"] for picture in pictures]
    assert all(psnr == pytest.approx(psnrs[0], abs=0.1) for psnr in psnrs)
    assert len(set(psnrs)) == len(psnrs)  # they do differ


@pytest.mark.slow
def test_targets_on_the_command_line(tmp_path, place, capsys):
    source, file = os.path.join(GOLDEN, "test", "flower.png"), tmp_path / "x.vbq"

    def told(*options):
        return json.loads(command(capsys, "compress", *place, source, file, *options, "--json")[1])

    by_bpp = told("--bpp", 0.2)
    assert 0.198 <= by_bpp["bpp"] <= 0.2 and by_bpp["bytes"] == os.path.getsize(file)
    target = by_bpp["psnr"] - 0.3
    assert target <= told("--psnr", target)["psnr"] <= target + 0.1
    assert told("--lamb", 3)["lamb"] == 3
    best = told("--lamb", 3, "--best_table")
    assert best["lamb"] == 3 and best["lamb_index"] in range(16)
    status, out, err = command(capsys, "compress", *place, source, tmp_path / "y.vbq", "--psnr", 90)
    assert (status, out) == (1, "") and "flower.png: 90 dB cannot be reached" in err
    assert not (tmp_path / "y.vbq").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--lamb", "0"],
        ["--lamb", "nan"],
        ["--bpp", "-1"],
        ["--psnr", "x"],
        ["--lamb", "1", "--bpp", "1"],
        ["--bpp", "1", "--psnr", "30"],
    ],
)
def test_wrong_usage_exits_with_2(options, capsys):
    with pytest.raises(SystemExit) as caught:
        codec.main(["compress", "d", "r", "i.png", "o.vbq", *options])
    assert caught.value.code == 2 and capsys.readouterr().out == ""
    with pytest.raises(SystemExit) as caught:
        codec.main([])
    assert caught.value.code == 2


def picture(kind, china):
    """A file of a kind, bytes and suffix."""
    image, options, suffix = Image.fromarray(china[:50, :70]), {}, "png"
    if kind == "16-bit":
        image = Image.fromarray(china[:50, :70, 0].astype(np.uint16) * 257)
    elif kind == "EXIF-rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        options, suffix = {"exif": exif}, "jpg"
    elif kind == "single pixel":
        image = image.crop((0, 0, 1, 1))
    else:
        image = image.convert(kind)
        if kind in ("RGBA", "LA"):
            image.putalpha(100)
    file = io.BytesIO()
    image.save(file, "jpeg" if suffix == "jpg" else suffix, **options)
    return file.getvalue(), suffix


KINDS = "L", "P", "1", "RGBA", "LA", "16-bit", "EXIF-rotated", "single pixel"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_images(tmp_path, place, capsys, china, kind):
    contents, suffix = picture(kind, china)
    source = tmp_path / f"x.{suffix}"
    source.write_bytes(contents)
    status, _, err = command(capsys, "compress", *place, source, tmp_path / "x.vbq")
    assert status == 0 and err.count("transparency") == int("A" in kind)
    assert len(err.splitlines()) == int("A" in kind or kind == "16-bit") and all(
        line.startswith("note: ") for line in err.splitlines()
    )
    assert command(capsys, "decompress", *place, tmp_path / "x.vbq", tmp_path / "y.png")[0] == 0
    expected = {"EXIF-rotated": (70, 50, 3), "single pixel": (1, 1, 3)}.get(kind, (50, 70, 3))
    assert read_image(source).shape == read_image(tmp_path / "y.png").shape == expected


def test_bad_input_is_told_in_one_line(tmp_path, place, capsys, data):
    good, bad = tmp_path / "good.vbq", tmp_path / "bad.vbq"
    good.write_bytes(data)
    bad.write_bytes(data[:-1])
    (tmp_path / "text.png").write_text("no image")
    for argv, message in (
        (["info", bad], "bad.vbq: the file is cut"),
        (["info", tmp_path / "none.vbq"], "none.vbq"),
        (["info", CHINA], "not a .vbq file"),
        (["decompress", *place, bad, tmp_path / "x.png"], "bad.vbq: the file is cut"),
        (["decompress", *place, CHINA, tmp_path / "x.png"], "not a .vbq file"),
        (["decompress", *place, good, tmp_path / "x.xyz"], "x.xyz"),
        (["decompress", *place, good, tmp_path / "none" / "x.png"], "none"),
        (["decompress", place[0], "none", good, tmp_path / "x.png"], "none"),
        (["compress", *place, tmp_path / "text.png", tmp_path / "x.vbq"], "text.png"),
        (["compress", *place, CHINA, tmp_path / "none" / "x.vbq"], "none"),
        (["compress", place[0], "none", CHINA, tmp_path / "x.vbq"], "none"),
    ):
        status, out, err = command(capsys, *argv)
        assert (status, out) == (1, "") and err.startswith("error: "), argv
        assert len(err.splitlines()) == 1 and message in err, argv
    assert sorted(os.listdir(tmp_path)) == ["bad.vbq", "good.vbq", "text.png"]


@pytest.mark.slow
@pytest.mark.parametrize("place_of_failure", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_writes_leave_nothing(
    tmp_path, place, capsys, monkeypatch, data, place_of_failure, failure
):
    def interrupted(*_):
        raise failure

    (tmp_path / "in.vbq").write_bytes(data)
    monkeypatch.setattr(place_of_failure, interrupted)
    for argv in (
        ["compress", *place, CHINA, tmp_path / "x.vbq"],
        ["decompress", *place, tmp_path / "in.vbq", tmp_path / "x.png"],
    ):
        status, out, _ = command(capsys, *argv)
        assert (status, out) == (1 if isinstance(failure, OSError) else 130, "")
        assert os.listdir(tmp_path) == ["in.vbq"]


# What is written, and what is not.


def test_an_output_is_never_an_input(tmp_path, place, capsys, china, data):
    """Also through a link and in another spelling; swapped or missing arguments cost nothing either."""
    photograph, other = tmp_path / "p.png", tmp_path / "q.jpg"
    Image.fromarray(china).save(photograph)
    Image.fromarray(china).save(other)
    (tmp_path / "x.vbq").write_bytes(data)
    (tmp_path / "link.vbq").symlink_to(photograph)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    spelling = f"{tmp_path}/./p.png"
    for argv, words in (
        (["compress", *place, photograph, photograph], "input"),
        (["compress", *place, photograph, spelling], "input"),
        (["compress", *place, photograph, tmp_path / "link.vbq"], "input"),
        (["compress", *place, photograph, other], ".vbq"),
        (["decompress", *place, tmp_path / "x.vbq", tmp_path / "x.vbq"], "x.vbq"),
        (["decompress", *place, tmp_path / "x.vbq", tmp_path / "none" / "y.png"], "none"),
        (["decompress", *place, tmp_path / "x.vbq", tmp_path / "y.mpg"], ".mpg"),
        (["decompress", *place, tmp_path / "x.vbq", tmp_path / "y"], "ending"),
    ):
        status, out, err = command(capsys, *argv)
        assert (status, out) == (1, "") and words in err and len(err.splitlines()) == 1, (argv, err)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_caps_that_hold_are_no_errors(tmp_path, place, capsys):
    """A batch at one cap must not end at the first easy picture."""
    source = os.path.join(GOLDEN, "test", "flower.png")
    for flags, end in ((["--bpp", "50"], "largest"), (["--psnr", "1"], "smallest")):
        status, out, err = command(capsys, "compress", *place, source, tmp_path / "x.vbq", *flags)
        assert (
            status == 0
            and out
            and err.splitlines()
            == [f"note: {source}: the {end} file that this model makes of it already meets the target"]
        )
    largest = json.loads(
        command(capsys, "compress", *place, source, tmp_path / "x.vbq", "--bpp", 50, "--json")[1]
    )
    beyond = json.loads(
        command(capsys, "compress", *place, source, tmp_path / "x.vbq", "--lamb", 1e-6, "--json")[1]
    )
    assert largest["bpp"] >= beyond["bpp"]


def test_a_picture_that_loses_again_is_told(tmp_path, place, capsys, data):
    (tmp_path / "x.vbq").write_bytes(data)
    for ending, lines in (("png", 0), ("webp", 0), ("jpg", 1)):
        target = tmp_path / f"y.{ending}"
        status, _, err = command(capsys, "decompress", *place, tmp_path / "x.vbq", target)
        assert status == 0 and len(err.splitlines()) == lines and read_image(target).shape == (48, 40, 3)
