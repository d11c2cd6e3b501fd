"""benchmarks/peers.py: every codec in a process of its own, the table, the figure, and what is left out."""

import os
import re
import sys
import types

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

sys.path.insert(0, os.path.join(ROOT, "benchmarks"))
import peer_codecs
import peer_runs
import peers
from codec_runs import GOLDEN_RUN, flower, make_run
from peer_runs import Outcome, Peer

from utils import evaluate_compression_jpg, evaluate_compression_webp
from vbq.bd_rates import bd_rate
from vbq.command import UserError, run_main
from vbq.files import find_images

FEW = {"JPEG": (10, 50, 90), "WEBP": (10, 90), "AVIF": (30, 60), "JPEG2000": (0.5, 2)}


@pytest.fixture
def images(tmp_path, china):
    """A glob of two pictures."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, image in (("a", china), ("b", flower())):
        Image.fromarray(image).save(folder / f"{name}.png")
    return str(folder / "*.png")


def cells(text):
    """The rows of the table by their first cells: dict of lists of str."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows[2:]}


@pytest.mark.slow
def test_all_codecs_that_need_no_further_package(tmp_path, images, monkeypatch, capsys):
    monkeypatch.setattr(peers, "SETTINGS", FEW)
    checkpoints, out = tmp_path / "checkpoints", tmp_path / "results" / "new"
    make_run(str(checkpoints))
    run = ["--checkpoint_dir", str(checkpoints), "--runname", GOLDEN_RUN]
    small = ["--lambs", "0.5", "2", "--joint_steps", "1", "--joint_images", "1", "--compressai_qualities"]
    small.append("--mixed_precision")
    assert run_main(peers.main, ["--images", images, "--out", str(out), *run, *small]) == 0
    text = capsys.readouterr().out
    assert (out / "peers.md").read_text(encoding="utf-8") == text
    rows = cells(text)
    assert list(rows) == [
        *("VBQ", "VBQ, 1 joint steps", "VBQ, mixed precision", "VBQ, mixed precision, 1 joint steps"),
        *("JPEG", "WebP", "AVIF", "JPEG 2000"),
    ]
    for label, row in rows.items():
        psnr_rate, ms_ssim_rate, encode, decode, threads, peak, install, pictures, what = row
        assert float(encode) > 0 and float(decode) > 0 and int(threads) >= 1
        # A process of Pillow alone has no TensorFlow in it, neither in memory nor on disk.
        ours = label.startswith("VBQ")
        assert ours or (psnr_rate == ms_ssim_rate == "0 (the anchor)") == (label == "JPEG")
        assert ours or label == "JPEG" or psnr_rate.endswith(" %") and ms_ssim_rate.endswith(" %")
        assert (float(peak) > 200) == ours and (float(install) > 500) == ours and float(peak) > 20
        assert pictures == ("1" if "joint" in label else "2")
        assert what.startswith(("lambda 0.5 2; fit of 2 passes", "quality ", "bits per pixel 0.5 2; Pillow"))
    with Image.open(out / "peers.png") as figure:
        assert figure.height > 1000  # two rows


@pytest.mark.parametrize(
    "kind, evaluate", [("JPEG", evaluate_compression_jpg), ("WEBP", evaluate_compression_webp)]
)
def test_rates_and_qualities_are_those_of_the_baselines(tmp_path, images, kind, evaluate):
    peer = Peer(kind, "Pillow", {"format_": kind}, (20, 80), 2)
    ((_, result, arrays),) = peer_runs.measure_all([peer], find_images(images))
    assert len(result["records"]) == 4 and all(one["encode"] > 0 for one in result["records"])
    for row, path in enumerate(find_images(images)):
        expected = evaluate(path, [20, 80])
        for key, values in expected.items():
            np.testing.assert_allclose(arrays[key][row], values, rtol=1e-9, err_msg=key)


def test_images_of_the_size_of_kodaks_lose_their_edges(tmp_path):
    pixels = np.arange(512 * 768 * 3).reshape(512, 768, 3).astype(np.uint8)
    paths = [str(tmp_path / name) for name in ("wide.png", "high.png", "other.png")]
    for path, image in zip(paths, (pixels, pixels.transpose(1, 0, 2), pixels[:300])):
        Image.fromarray(image).save(path)
    names = peer_runs.write_pictures(paths, tmp_path)
    found = [np.load(tmp_path / f"{name}.npy") for name in names]
    np.testing.assert_array_equal(found[0], pixels[8:-8, 8:-8])
    np.testing.assert_array_equal(found[1], pixels[8:-8, 8:-8].transpose(1, 0, 2))
    np.testing.assert_array_equal(found[2], pixels[:300])


def test_jpeg_2000_has_the_size_that_was_asked_for(china):
    codec = peer_codecs.Pillow("JPEG2000")
    data = codec.encode(china, 1.0)
    assert 8 * len(data) / china[..., 0].size == pytest.approx(1, abs=0.05)
    assert codec.decode(data).shape == china.shape


def a_python(path, script):
    """An executable file that stands for a Python with other packages."""
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_what_is_not_installed_is_left_out(tmp_path, images, monkeypatch, capsys):
    monkeypatch.setattr(peers.features, "check", lambda feature: feature not in ("avif", "jpg_2000"))
    without = a_python(
        tmp_path / "python", "echo 'ModuleNotFoundError: No module named compressai' >&2; exit 1"
    )
    found = peers.peers_of(peers.parse_args(["--images", images, "--compressai_python", without]), 24)
    assert [one.label for one in found] == ["VBQ", "VBQ, 20 joint steps", "JPEG", "WebP"]
    assert [one.pictures for one in found] == [24, 6, 24, 24]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("note: AVIF is left out: this Pillow (") and "JPEG 2000" in lines[1]
    assert "No module named compressai; install it with `python -m pip install compressai`" in lines[2]


def test_compressai_runs_in_the_python_that_has_it(tmp_path, images):
    python = a_python(tmp_path / "python", "exit 0")
    found = peers.peers_of(peers.parse_args(["--images", images, "--compressai_python", python]), 24)
    models = [one for one in found if one.codec == "CompressAI"]
    assert [one.label for one in models] == [
        f"bmshj2018-{model}, quality {quality}"
        for model in ("factorized", "hyperprior")
        for quality in (4, 6)
    ]
    assert {one.python for one in models} == {python} and {one.pictures for one in models} == {4}
    assert {one.python for one in found if one not in models} == {sys.executable}
    assert peers.why_no_compressai(a_python(tmp_path / "silent", "exit 3")).endswith("ended with status 3")
    with pytest.raises(UserError, match="cannot be started: No such file"):
        peers.why_no_compressai(str(tmp_path / "nothing"))


def test_pictures_of_compressai_are_padded_and_cropped_again(monkeypatch, china):
    torch = pytest.importorskip("torch")
    seen = []

    class Model(torch.nn.Module):
        def update(self):
            pass

        def compress(self, x):
            seen.append(tuple(x.shape))
            return {"strings": [[b""]], "shape": x}

        def decompress(self, strings, shape):
            return {"x_hat": shape}

    zoo = types.SimpleNamespace(bmshj2018_factorized=lambda quality, pretrained: Model())
    monkeypatch.setitem(sys.modules, "compressai", types.SimpleNamespace(zoo=zoo, __version__="1.0"))
    codec = peer_codecs.CompressAI("bmshj2018_factorized", 4)
    image = np.ascontiguousarray(china[:100, :130])
    np.testing.assert_array_equal(codec.decode(codec.encode(image, 4)), image)
    assert seen == [(1, 3, 128, 192)]
    assert codec.version.startswith("CompressAI 1.0, PyTorch ")


def test_the_row_of_a_model_of_compressai_has_its_published_curve():
    peer = Peer("a model", "CompressAI", {"architecture": "bmshj2018_hyperprior", "quality": 4}, (4,), 2)
    records = [{"encode": t, "decode": 2 * t} for t in (1.0, 3.0, 2.0)]
    result = {"records": records, "version": "v", "threads": 2, "peak": 3e9, "installed": 5e9}
    rate, ms_ssim, *rest, what = cells(peers.report([Outcome(peer, result, None)]))["a model"]
    published = peers.published_curves()
    jpeg, model = (
        {"BPP": bpp, "PSNR (RGB)": psnr}
        for bpp, psnr in (published[f"{name} (CompressAI)"] for name in ("jpeg", "bmshj2018-hyperprior"))
    )
    assert rate == f"{bd_rate(jpeg, model, 'PSNR (RGB)')[0]:+.1f} % (published)" and rate.startswith("-")
    assert ms_ssim == "not published"
    assert rest == ["2", "4", "2", "3000", "5000", "2"]
    assert what == "random weights; v"


def test_published_curves_are_dashed():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    peers.draw_published(axes)
    assert [line.get_label() for line in axes.get_lines()] == [
        f"bmshj2018-{name} (CompressAI), published, 768 x 512" for name in ("factorized", "hyperprior")
    ]
    assert all(line.get_linestyle() != "-" for line in axes.get_lines())


def test_rates_are_compared_on_the_same_pictures():
    def outcome(label, bpp):
        psnr = np.tile([30.0, 34.0, 38.0], (len(bpp), 1))
        keys = "MS-SSIM (RGB)", "MS-SSIM (RGB) (dB)", "PSNR (RGB)"
        arrays = {"settings": np.arange(3), "BPP": np.array(bpp), **dict.fromkeys(keys, psnr)}
        return Outcome(Peer(label, "Pillow", {}, (1, 2, 3), len(bpp)), {}, arrays)

    few, jpeg = outcome("few", [[0.5, 1, 2]]), outcome("JPEG", [[1, 2, 4], [7, 9, 11]])
    assert peers.measured_rates(few.peer, [few, jpeg]) == ["-50.0 %", "-50.0 %"]
    assert peers.measured_rates(jpeg.peer, [few, jpeg])[0] == "0 (the anchor)"
    assert list(peer_runs.curves_of([few, jpeg], 2)) == ["JPEG"]


def test_a_codec_that_fails_is_left_out_and_the_others_are_kept(images, capsys):
    jpeg = Peer("JPEG", "Pillow", {"format_": "JPEG"}, (50,), 1, required=True)
    wrong = Peer("wrong", "Pillow", {"format_": "PCX"}, (50,), 1)
    outcomes = peer_runs.measure_all([jpeg, wrong], find_images(images))
    assert [one.peer for one in outcomes] == [jpeg]
    assert capsys.readouterr().err == "note: left out: wrong: status 1; KeyError: 'PCX'\n"
    with pytest.raises(RuntimeError, match="Traceback"):
        peer_runs.measure_all([wrong._replace(required=True)], find_images(images))


def test_a_run_that_does_not_exist(tmp_path, images, capsys):
    flags = ["--images", images, "--runname", "nothing", "--compressai_qualities"]
    assert run_main(peers.main, [*flags, "--checkpoint_dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: VBQ: ") and "nothing" in error and error.count("\n") == 1


def test_results_need_a_folder(tmp_path, images, capsys):
    (tmp_path / "file").touch()
    assert run_main(peers.main, ["--images", images, "--out", str(tmp_path / "file" / "x")]) == 1
    assert "cannot make the folder" in capsys.readouterr().err


def test_size_of_what_is_to_install():
    names = {one.name.lower() for one in peer_codecs.requirements_of(["matplotlib"])}
    assert {"matplotlib", "numpy", "pillow"} <= names and "pytest" not in names
    alone, more = (
        peer_codecs.installed_bytes(["pillow"]),
        peer_codecs.installed_bytes(["matplotlib", "pillow"]),
    )
    assert 5e6 < alone < more - 50e6


def test_help_says_every_default(capsys):
    with pytest.raises(SystemExit) as status:
        peers.parse_args(["--help"])
    assert status.value.code == 0
    flags = capsys.readouterr().out.partition("options:")[2].split("\n  -")[2:]
    assert len(flags) == 11
    assert all(re.search(r"\((no )?default", " ".join(flag.split())) for flag in flags), flags
