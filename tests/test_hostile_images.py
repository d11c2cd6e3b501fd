"""Hostile and odd images and command lines: each ends in a result or in one line that says what is wrong."""

import collections
import functools

import hostile_images
import numpy as np
import pytest
from PIL import Image

import bls2017_vae
import codec
import post_process
from vbq.command import UserError
from vbq.images import read_image_with_notes

MUTATED = 6000
PARTS = 6

# Pillow's warnings, which a run of the program does not show.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@functools.cache
def files():
    """Names and bytes of image files of every kind."""
    return {name: data for name, data in hostile_images.well_formed() if data}


def read(data, path):
    """Pixels and notes of a file with these bytes, or its UserError; anything else fails."""
    path.write_bytes(data)
    try:
        pixels, notes = read_image_with_notes(path)
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error) and len(str(error)) < 500
        return error
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
    assert pixels.flags.writeable and all(isinstance(note, str) and "\n" not in note for note in notes)
    return pixels, notes


@pytest.mark.slow
def test_every_format_is_in_the_table():
    kinds = {name.split()[0] for name in files()}
    assert kinds == set(hostile_images.formats()) and {"PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"} < kinds


@pytest.mark.slow
@pytest.mark.parametrize("kind", hostile_images.formats())
def test_well_formed_files(kind, tmp_path):
    for name, data in files().items():
        if name.split()[0] == kind:
            result = read(data, tmp_path / "x")
            unreadable = isinstance(result, UserError)
            if kind == "EPS":  # needs Ghostscript
                continue
            if kind == "SPIDER":  # floats of 0 to 255, where [0, 1] is expected
                assert unreadable == (name != "SPIDER F")
            else:
                assert not unreadable, (name, result)
                if "metadata" not in name and kind not in ("ICO", "ICNS", "PALM"):
                    assert sorted(result[0].shape) == [3, hostile_images.HEIGHT, hostile_images.WIDTH], name


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_mutated_files(part, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 10**6
    )  # a mutated header may claim large images, which take time
    rng = np.random.default_rng(part)
    ends = collections.Counter()
    for i in range(part, MUTATED, PARTS):
        data = hostile_images.mutated(list(files().values())[i % len(files())], rng)
        ends[type(read(data, tmp_path / "x")).__name__] += 1
    assert ends["tuple"] > 200 and ends["UserError"] > 200, ends


@pytest.mark.slow
def test_truncated_files(tmp_path):
    for data in files().values():
        for keep in (0, 1, 7, len(data) // 3, len(data) - 1):
            read(data[:keep], tmp_path / "x")


HUGE = "9" * 400
GLOB = [f"photographs/{i:05d}.png" for i in range(1000)]
CODEC = ["compress", "ck", "run", "x.png", "x.vbq"]
POST_PROCESS = ["ck", "run", "val.npy", "test.png"]


def parsers():
    import convert_checkpoint
    import make_crops
    import make_results
    import reference_stats

    return {
        "bls2017_vae": bls2017_vae.parse_args,
        "post_process": post_process.parse_args,
        "codec": codec.parse_args,
        "make_crops": make_crops.parse_args,
        "reference_stats": reference_stats.parse_args,
        "convert_checkpoint": convert_checkpoint.main,
        "make_results": make_results.main,
    }


NUMBERS = {
    "bls2017_vae": (
        [],
        ["--seed", "--batchsize", "--patchsize", "--last_step", "--num_filters", "--learning_rate"],
    ),
    "post_process": (POST_PROCESS, ["--seed", "--max_bits", "--lambs", "--quantization_levels", "--passes"]),
    "codec": (CODEC, ["--lamb", "--bpp", "--psnr", "--joint_steps"]),
    "make_crops": (["x", "y.npy"], ["--seed", "--count", "--size"]),
}
BAD_NUMBERS = [
    HUGE,
    f"-{HUGE}",
    "9" * 5000,
    "-1",
    "nan",
    "inf",
    "1e999",
    "",
    "x" * 5000,
    "1\n2",
    "\udcff",
    "0x10",
]
COMMAND_LINES = [
    ("bls2017_vae", ["--seed", "5000000000"]),
    ("bls2017_vae", ["--train_glob", *GLOB]),
    ("bls2017_vae", ["--unknown", "x" * 5000]),
    ("bls2017_vae", ["--num_filters", "8", "--filter_dims", "5", "5", "--sampling_rates", "2"]),
    ("bls2017_vae", ["--patchsize", "33"]),
    ("bls2017_vae", ["--strategy", "x" * 5000]),
    ("post_process", []),
    ("post_process", ["ck", "run", "val.npy", *GLOB]),
    ("post_process", [*POST_PROCESS, "--seed", "5000000000"]),
    ("post_process", [*POST_PROCESS, "--shard", "0/2"]),
    ("post_process", [*POST_PROCESS, "--shard", f"{HUGE}/1"]),
    ("post_process", [*POST_PROCESS, "--shard", "x" * 5000]),
    ("post_process", [*POST_PROCESS, "--lambs"]),
    ("codec", []),
    ("codec", ["unknown"]),
    ("codec", ["x" * 5000]),
    ("codec", [*CODEC, "--bpp", "1", "--psnr", "30"]),
    ("make_crops", []),
    ("make_crops", GLOB),
    ("make_crops", [*GLOB, "--count", "3"]),
    ("reference_stats", []),
    ("reference_stats", ["jpeg", *GLOB]),
    ("reference_stats", ["\udcff\n"]),
    ("convert_checkpoint", []),
    ("convert_checkpoint", ["to-nowhere\n", "run"]),
    ("make_results", []),
    ("make_results", ["--kodak", *GLOB]),
    *(
        (script, [*given, flag, text])
        for script, (given, flags) in NUMBERS.items()
        for flag in flags
        for text in BAD_NUMBERS
    ),
    *(
        (script, [*given, flag, "0"])
        for script, flag in (("make_crops", "--count"), ("codec", "--lamb"))
        for given in [NUMBERS[script][0]]
    ),
]


@pytest.mark.parametrize("script, argv", COMMAND_LINES, ids=lambda value: ascii(value)[:60])
def test_hostile_command_lines(script, argv, capsys):
    with pytest.raises(SystemExit) as exit:
        parsers()[script](argv)
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and out == ""
    assert err.endswith("\n") and err.count("\n") == 1 and len(err) < 600, err
    if len(argv) > 500:
        assert "quotes" in err
