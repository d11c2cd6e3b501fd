"""compress and decompress as functions: forms of images, targets, wrong arguments, one fit for all calls."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from codec_runs import CHECKPOINTS, add_fit, copy_of, fails, fit_path, golden_fit, make_run
from conftest import GOLDEN, GOLDEN_RUN, ROOT
from PIL import Image

import codec
from quantizers import ChannelwisePriorCDFQuantizer
from vbq.image_codec import Encoder

CHINA = os.path.join(GOLDEN, "test", "china.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The golden run with the paper's quantizer."""
    return make_run(tmp_path_factory.mktemp("checkpoints"))


def test_a_path_a_picture_and_an_array_lead_to_the_same_file(run, china, tmp_path):
    expected = codec.compress(china, run)
    with Image.open(CHINA) as picture:
        for image in (CHINA, os.fspath(CHINA), picture, Image.fromarray(china)):
            assert codec.compress(image, run) == expected
    (tmp_path / "x.vbq").write_bytes(expected)
    decoded = codec.decompress(expected, run)
    for data in (tmp_path / "x.vbq", str(tmp_path / "x.vbq"), bytearray(expected), memoryview(expected)):
        np.testing.assert_array_equal(codec.decompress(data, run), decoded)


def test_targets_are_those_of_the_encoder(run, china):
    image = china[:64, :64]
    encoder = Encoder(codec.codec_of(run), image)
    assert codec.compress(image, run) == encoder.compress(1.0).data
    assert codec.compress(image, run, 3) == codec.compress(image, run, lamb=np.float32(3))
    assert codec.compress(image, run, bpp=1.0) == encoder.search_bpp(1.0).data
    assert codec.compress(image, run, psnr=15) == encoder.search_psnr(15).data
    refined = Encoder(codec.codec_of(run), image, joint_steps=2)
    assert codec.compress(image, run, lamb=2, joint_steps=2) == refined.compress(2).data


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"lamb": 1, "bpp": 1}, "at most one of lamb, bpp and psnr can be given, not lamb and bpp"),
        ({"lamb": 1, "bpp": 1, "psnr": 30}, "not lamb and bpp and psnr"),
        ({"lamb": "1"}, "lamb should be a number, but is of type str"),
        ({"psnr": [30]}, "psnr should be a number, but is of type list"),
        ({"bpp": True}, "bpp should be a number, but is of type bool"),
        ({"joint_steps": True}, "joint_steps should be an integer, but is of type bool"),
        ({"joint_steps": 1.5}, "joint_steps should be an integer, but is of type float"),
        ({"joint_steps": None}, "joint_steps should be an integer, but is of type NoneType"),
        ({"image": [[1, 2, 3]]}, "but is of type list"),
        ({"image": b"x.png"}, "but is of type bytes"),
        ({"image": None}, "but is of type NoneType"),
        ({"run": CHECKPOINTS}, "run should be what load_run returns, but is of type str"),
    ],
)
def test_wrong_types(run, china, arguments, words):
    with pytest.raises(TypeError) as caught:
        codec.compress(**{"image": china, "run": run, **arguments})
    assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"lamb": 0}, "lamb should be a number > 0, but is 0"),
        ({"bpp": float("nan")}, "bpp should be a number > 0, but is nan"),
        ({"psnr": float("inf")}, "psnr should be a number > 0, but is inf"),
        ({"lamb": 10**400}, "lamb should be a number > 0, but is 1000"),
        ({"bpp": 5e-324}, "cannot be reached"),
        ({"joint_steps": -1}, "joint_steps should be an integer >= 0, but is -1"),
        ({"image": "missing.png"}, "no such file: missing.png"),
        ({"image": CHINA, "psnr": 90}, "china.png: 90 dB cannot be reached"),
        ({"image": np.zeros((4, 4), np.uint8)}, "an image should be uint8 [H, W, 3]"),
    ],
)
def test_wrong_values(run, china, arguments, words):
    assert words in fails(lambda: codec.compress(**{"image": china, "run": run, **arguments}))


def test_wrong_arguments_of_decompress(run, tmp_path):
    for data in (None, [1], 5):
        with pytest.raises(TypeError, match="data should be bytes or a path, but is of type"):
            codec.decompress(data, run)
    with pytest.raises(TypeError, match="run should be what load_run returns"):
        codec.decompress(b"", "run")
    (tmp_path / "x.vbq").write_bytes(b"VBQ")
    assert "x.vbq: the file is cut" in fails(codec.decompress, tmp_path / "x.vbq", run)
    assert "cannot read" in fails(codec.decompress, tmp_path / "missing.vbq", run)
    assert fails(codec.decompress, b"VBQ", run).startswith("the file is cut")


def test_many_calls_read_and_digest_a_fit_once_until_its_file_changes(tmp_path, china, monkeypatch):
    run, image = make_run(tmp_path), china[:32, :32]
    calls = []
    load, digest = ChannelwisePriorCDFQuantizer.load, ChannelwisePriorCDFQuantizer._digest

    def counted_load(path):
        calls.append("load")
        return load(path)

    def counted_digest(self, fingerprint):
        calls.append("digest")
        return digest(self, fingerprint)

    monkeypatch.setattr(ChannelwisePriorCDFQuantizer, "load", counted_load)
    monkeypatch.setattr(ChannelwisePriorCDFQuantizer, "_digest", counted_digest)
    old = codec.compress(image, run)
    once = list(calls)
    assert sorted(once) == ["digest", "load"]
    for _ in range(5):
        assert codec.compress(image, run) == old
        codec.decompress(old, run)
    assert calls == once
    other = copy_of(golden_fit(passes=3), passes=2, shifts=None)
    copy_of(other, provenance={"model_fingerprint": run.fingerprint}).save(fit_path(run))
    os.utime(fit_path(run), ns=(1, 1))
    assert codec.compress(image, run)[4:12] != old[4:12]  # the fingerprint of the new fit
    assert "the file needs the fit " in fails(codec.decompress, old, run)
    add_fit(run)
    os.utime(fit_path(run), ns=(2, 2))
    assert codec.compress(image, run) == old


def test_tensorflow_prints_nothing_in_a_fresh_python(tmp_path):
    shutil.copytree(CHECKPOINTS, tmp_path, dirs_exist_ok=True)
    code = "import sys; from vbq.runs import load_run; load_run(*sys.argv[1:])"
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), GOLDEN_RUN],
        cwd=ROOT,
        env=env,
        capture_output=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (b"", b"")


def test_codec_has_all_that_a_notebook_needs():
    from vbq.runs import load_run

    assert codec.load_run is load_run
