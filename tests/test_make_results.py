"""tools/make_results.py: the curves, their comparison and the figures."""

import os

import make_results
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from shipped import PAPER_RUN, RUN

from quantizers import QUANTIZERS
from vbq import plots
from vbq.command import UserError
from vbq.files import find_images
from vbq.images import read_image
from vbq.results import results_path


def curve(rate, psnr):
    return {"BPP": np.array(rate), "PSNR (RGB)": np.array(psnr)}


def test_committed_result_files_give_the_committed_tables():
    curves = make_results.load_curves()
    assert list(curves) == [
        *make_results.VARIANTS,
        *(kind.label for kind in QUANTIZERS[1:]),
        *plots.PUBLISHED,
    ]
    for name, text in (
        ("table.txt", plots.text_table(list(curves.values()))),
        ("bd_rates.md", make_results.comparison(curves)),
    ):
        with open(os.path.join(ROOT, "results", name), encoding="utf-8") as file:
            assert file.read() == text + "\n"


def test_published_curves_are_read_and_drawn(tmp_path):
    curves = make_results.published_curves()
    assert any("balle-2017" in label for label in curves)
    assert all(points.shape[0] == 2 for points in curves.values())
    ours = curve([0.2, 0.5, 1], [28.0, 31.0, 34.0])
    path = tmp_path / "figure.png"
    make_results.draw_published(str(path), {make_results.PAPER: ours, make_results.BEST: ours})
    with Image.open(path) as image:
        assert image.size[0] > 500


def test_every_variant_is_evaluated_on_crops_and_only_its_result_files_are_kept(tmp_path, monkeypatch):
    (tmp_path / "kodak").mkdir()
    for i in range(24):
        Image.new("RGB", (48, 32), (i, i, i)).save(tmp_path / "kodak" / f"kodim{i + 1:02d}.png")
    seen = []

    def main(argv):
        args = make_results.post_process.parse_args(argv)
        paths = find_images(args.test_glob)
        assert len(paths) == 24 and read_image(paths[7]).tolist() == [[[7, 7, 7]] * 32] * 16
        os.makedirs(args.out, exist_ok=True)
        options = make_results.post_process.fit_options(args), args.joint_steps
        names = [kind.result_name(*options) for kind in QUANTIZERS]
        for path in (results_path(args.out, name) for name in names):
            with open(path, "w", encoding="utf-8") as file:
                file.write(str(len(seen)))
        (tmp_path / args.out / "bd_rates.md").touch()
        seen.append((args.runname, names[0]))
        assert not (tmp_path / "results").exists()  # results are replaced when all are there

    monkeypatch.setattr(make_results.post_process, "main", main)
    monkeypatch.setattr(make_results, "RESULTS", str(tmp_path / "results"))
    make_results.evaluate(make_results.kodak_images(str(tmp_path / "kodak")))
    assert [run for run, _ in seen] == [PAPER_RUN] * 2 + [RUN] * 6
    found = {
        str(path.relative_to(tmp_path / "results")): path.read_text()
        for path in (tmp_path / "results").rglob("*")
        if path.is_file()
    }
    expected = {(make_results.FOLDERS[run], name): str(i) for i, (run, name) in enumerate(seen)}
    expected |= {(make_results.FOLDERS[PAPER_RUN], kind.__name__): "0" for kind in QUANTIZERS[1:]}
    assert found == {results_path(*place): text for place, text in expected.items()}


def test_results_need_the_kodak_images_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(make_results, "RESULTS", str(tmp_path / "results"))
    for i in range(24):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i:02d}.png")
    for folder in "", "none", str(tmp_path):
        with pytest.raises(
            UserError, match=f"--kodak '{folder}': this folder should hold the 24 Kodak images"
        ):
            make_results.main(["--kodak", folder, "--reuse"])
    assert not (tmp_path / "results").exists()
