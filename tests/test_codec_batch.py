"""Batches of codec.py: several files, folders and globs, bad ones among them, shards, sums, interruptions."""

import io
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from codec_runs import command, make_run
from PIL import Image

import codec
from vbq.image_codec import Encoder
from vbq.images import read_image


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The golden run with the paper's quantizer."""
    return make_run(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def place(run):
    """The first two arguments of the program."""
    return os.path.dirname(run.path), run.name


@pytest.fixture
def photos(tmp_path, china):
    """A folder of three photographs of different sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate("abc"):
        Image.fromarray(china[: 32 + 16 * i, :48]).save(folder / f"{name}.png")
    return folder


def lines_of(out):
    return [json.loads(line) for line in out.splitlines()]


def test_there_and_back(tmp_path, place, photos, run, capsys):
    out, back = tmp_path / "out", tmp_path / "back"
    status, text, err = command(capsys, "compress", *place, photos, out, "--json")
    *told, summed = lines_of(text)
    assert (status, err) == (0, "") and sorted(os.listdir(out)) == ["a.vbq", "b.vbq", "c.vbq"]
    for name, line in zip("abc", told):
        data = codec.compress(photos / f"{name}.png", run)
        assert (out / f"{name}.vbq").read_bytes() == data and line["bytes"] == len(data)
        assert (line["input"], line["file"]) == (str(photos / f"{name}.png"), str(out / f"{name}.vbq"))
    sizes = [line["bytes"] for line in told]
    pixels = sum(line["width"] * line["height"] for line in told)
    assert summed == {
        "files": 3,
        "failed": 0,
        "bytes": sum(sizes),
        "bpp": 8 * sum(sizes) / pixels,
        "psnr": pytest.approx(np.mean([line["psnr"] for line in told])),
    }

    status, text, err = command(capsys, "info", out / "*.vbq", "--json")
    *infos, summed_info = lines_of(text)
    assert (status, err) == (0, "") and [line["file"] for line in infos] == [line["file"] for line in told]
    assert summed_info == {key: summed[key] for key in ("files", "failed", "bytes", "bpp")}

    status, text, err = command(capsys, "decompress", *place, out, back)
    assert (status, err) == (0, "") and text.splitlines()[-1] == "3 files, 0 failed"
    for name in "abc":
        decoded = codec.decompress(out / f"{name}.vbq", run)
        np.testing.assert_array_equal(read_image(back / f"{name}.png"), decoded)


def test_files_globs_and_one_file_into_a_folder(tmp_path, place, photos, capsys):
    out = tmp_path / "out"
    for sources in ([photos / "a.png", photos / "b.png"], [f"{photos}/[ab].png"]):
        status, text, _ = command(capsys, "compress", *place, *sources, out)
        assert status == 0 and sorted(os.listdir(out)) == ["a.vbq", "b.vbq"]
        assert len(text.splitlines()) == 3 and text.splitlines()[2].startswith("2 files, 0 failed, ")
        shutil.rmtree(out)
    status, text, _ = command(capsys, "compress", *place, photos / "a.png", f"{out}/")
    assert status == 0 and os.listdir(out) == ["a.vbq"] and len(text.splitlines()) == 2
    status, text, err = command(capsys, "compress", *place, photos / "a.png", out)
    assert status == 0 and err == f"note: replaces in {out}: a.vbq\n"


def test_a_bad_file_among_three(tmp_path, place, photos, capsys):
    (photos / "b.png").write_bytes(b"no image")
    out = tmp_path / "out"
    status, text, err = command(capsys, "compress", *place, photos, out, "--json")
    first, bad, last, summed = lines_of(text)
    message = f"{photos}/b.png is damaged or not an image: its format is unknown"
    assert status == 1 and err == f"error: {message}\n" and sorted(os.listdir(out)) == ["a.vbq", "c.vbq"]
    assert bad == {"input": f"{photos}/b.png", "file": f"{photos}/b.png", "error": message}
    assert (summed["files"], summed["failed"]) == (3, 1)
    assert summed["bytes"] == first["bytes"] + last["bytes"]

    (out / "b.vbq").write_bytes((out / "a.vbq").read_bytes()[:-1])
    for argv, rest in ((["decompress", *place, out, tmp_path / "back"], ""), (["info", out], " bytes, ")):
        status, text, err = command(capsys, *argv)
        assert status == 1 and err.startswith(f"error: {out}/b.vbq: the file is cut") and err.count("\n") == 1
        assert len(text.splitlines()) == 3
        assert text.splitlines()[-1].startswith("3 files, 1 failed") and rest in text
    assert sorted(os.listdir(tmp_path / "back")) == ["a.png", "c.png"]


def test_a_missing_file_does_not_stop_the_others(tmp_path, place, photos, capsys):
    sources = [photos / "none.png", photos / "a.png"]
    status, text, err = command(capsys, "compress", *place, *sources, tmp_path / "out")
    assert status == 1 and err == f"error: no such file: {photos}/none.png\n"
    assert os.listdir(tmp_path / "out") == ["a.vbq"] and text.splitlines()[-1].startswith("2 files, 1 failed")


def test_where_every_file_is_bad_the_model_is_not_loaded(tmp_path, place, photos, capsys, monkeypatch):
    monkeypatch.setattr(codec, "load_run", None)
    for path in photos.iterdir():
        path.write_bytes(b"x")
        (tmp_path / f"{path.stem}.vbq").write_bytes(b"x")
    status, text, err = command(capsys, "compress", *place, photos, tmp_path / "out")
    assert (status, text, len(err.splitlines())) == (1, "3 files, 3 failed\n", 3)
    status, text, err = command(capsys, "decompress", *place, f"{tmp_path}/*.vbq", tmp_path / "out")
    assert (status, text, len(err.splitlines())) == (1, "3 files, 3 failed\n", 3)


def test_a_missing_run_ends_a_batch_with_one_line(tmp_path, place, photos, capsys):
    status, text, err = command(capsys, "compress", place[0], "none", photos, tmp_path / "out")
    assert (status, text) == (1, "") and err == f"error: {place[0]}/none: no such run\n"


def test_names_that_collide(tmp_path, place, photos, china, capsys):
    Image.fromarray(china[:16, :16]).save(photos / "a.bmp")
    (tmp_path / "more").mkdir()
    shutil.copy(photos / "b.png", tmp_path / "more" / "b.png")
    status, _, err = command(capsys, "compress", *place, photos, tmp_path / "more", tmp_path / "out")
    assert (status, err) == (0, "")
    expected = ["a.bmp.vbq", "a.png.vbq", "c.vbq", "more-b.png.vbq", "photos-b.png.vbq"]
    assert sorted(os.listdir(tmp_path / "out")) == expected


def test_shards_write_the_files_of_the_whole(tmp_path, place, photos, china, capsys):
    Image.fromarray(china[:16, :16]).save(photos / "a.bmp")
    command(capsys, "compress", *place, photos, tmp_path / "whole")
    names = []
    for i in (1, 2, 3):
        status, text, err = command(
            capsys, "compress", *place, photos, tmp_path / "out", "--shard", f"{i}/3", "--json"
        )
        names += [line["file"] for line in lines_of(text)[:-1]]
        assert (status, err) == (0, "")
    assert sorted(map(os.path.basename, names)) == sorted(os.listdir(tmp_path / "out"))
    for name in os.listdir(tmp_path / "whole"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    status, text, err = command(capsys, "compress", *place, photos, tmp_path / "out", "--shard", "9/9")
    assert (status, text, err) == (0, "0 files, 0 failed\n", "")
    status, text, err = command(
        capsys, "compress", *place, photos / "a.png", tmp_path / "x.vbq", "--shard", "1/2"
    )
    assert (status, text) == (1, "") and "--shard is for several files" in err


def test_what_cannot_be_written_is_told_before_any_work(tmp_path, place, photos, capsys, monkeypatch):
    monkeypatch.setattr(codec, "load_run", None)
    a, b = photos / "a.png", photos / "b.png"
    (photos / "c.vbq").symlink_to(a)
    for argv, words in (
        (["compress", *place, a, b], "its name should end in .vbq"),
        (["compress", *place, a, b, photos / "c.png"], "it is a file"),
        (["compress", *place, a, b, tmp_path / "new.vbq"], "the name of a file"),
        (["compress", *place, photos, photos], "it is an input"),
        (["compress", *place, tmp_path / "*.gif", tmp_path / "out"], "no image files match"),
        (["decompress", *place, tmp_path, tmp_path / "out"], "no .vbq files are in the folder"),
        (["decompress", *place, photos, tmp_path / "out", "--format", "xyz"], "--format xyz"),
        (["decompress", *place, photos, tmp_path / "out", "--format", "pdf"], "--format pdf"),
        (["info", tmp_path], "no .vbq files are in the folder"),
    ):
        status, out, err = command(capsys, *argv)
        assert (status, out) == (1, "") and words in err and len(err.splitlines()) == 1, (argv, err)
    assert sorted(os.listdir(tmp_path)) == ["photos"]


def test_an_empty_folder_does_not_stop_the_others(tmp_path, place, photos, capsys):
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    status, text, err = command(capsys, "compress", *place, photos / "a.png", empty, photos / "*.gif", out)
    assert status == 1 and sorted(os.listdir(out)) == ["a.vbq"] and text.endswith(" dB\n")
    assert "error: no file to work on is in the folder" in err and "error: no file to work on matches" in err
    status, text, _ = command(capsys, "info", out, empty)
    assert status == 1 and "2 files, 1 failed" in text


def test_other_formats(tmp_path, place, photos, run, capsys):
    command(capsys, "compress", *place, photos, tmp_path / "out")
    for name in ("webp", ".BMP"):
        status, text, err = command(
            capsys, "decompress", *place, tmp_path / "out", tmp_path / name, "--format", name
        )
        ending = name.lower().removeprefix(".")
        assert (status, err) == (0, "")
        assert sorted(os.listdir(tmp_path / name)) == [f"{stem}.{ending}" for stem in "abc"]
    decoded = codec.decompress(tmp_path / "out" / "a.vbq", run)
    np.testing.assert_array_equal(read_image(tmp_path / "webp" / "a.webp"), decoded)
    source = tmp_path / "out" / "a.vbq"
    status, _, err = command(capsys, "decompress", *place, source, tmp_path / "x.png", "--format", "webp")
    assert status == 1 and "x.png: its name should end in .webp" in err


def test_a_name_with_a_line_break_takes_one_line(tmp_path, place, photos, capsys):
    os.rename(photos / "a.png", photos / "a\nb.png")
    (photos / "b.png").write_bytes(b"x")
    status, text, err = command(capsys, "compress", *place, photos, tmp_path / "out")
    assert status == 1 and len(text.splitlines()) == 3 and len(err.splitlines()) == 1
    assert "a\\nb.vbq: 48 x 32 pixels" in text and "a\nb.vbq" in os.listdir(tmp_path / "out")


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_ends_a_batch_leaves_whole_files(tmp_path, place, photos, capsys, monkeypatch, failure):
    replace, calls = os.replace, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise failure
        replace(*args)

    monkeypatch.setattr("os.replace", interrupted)
    status, text, err = command(capsys, "compress", *place, photos, tmp_path / "out")
    is_full = isinstance(failure, OSError)
    assert status == (1 if is_full else 130) and len(text.splitlines()) == 1
    assert err.count("\n") == 1 and ("b.vbq: No space left" in err) == is_full
    assert os.listdir(tmp_path / "out") == ["a.vbq"]
    monkeypatch.undo()
    assert command(capsys, "info", tmp_path / "out" / "a.vbq")[0] == 0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_batches_and_searches_show_their_progress_on_a_terminal(tmp_path, place, photos, capsys, monkeypatch):
    terminal = Terminal()
    capsys.readouterr()
    monkeypatch.setattr(sys, "stderr", terminal)
    argv = ["compress", *place, photos, tmp_path / "out", "--bpp", "1"]
    assert codec.main([str(arg) for arg in argv]) == 0
    out, shown = capsys.readouterr().out, terminal.getvalue()
    assert len(out.splitlines()) == 4 and "3/3" in shown and "search: " in shown and " bpp" in shown
    terminal.truncate(0)
    argv = ["compress", *place, photos / "a.png", tmp_path / "x.vbq", "--psnr", "15"]
    assert codec.main([str(arg) for arg in argv]) == 0
    assert "search: " in terminal.getvalue() and " dB" in terminal.getvalue()


def test_one_file_has_one_line_and_no_sum(tmp_path, place, photos, run, capsys):
    """One line, no sum; the first problem ends the program."""
    file = tmp_path / "x.vbq"
    status, text, err = command(capsys, "compress", *place, photos / "a.png", file, "--json")
    assert (status, err) == (0, "") and text.count("\n") == 1 and "input" not in json.loads(text)
    encoder = Encoder(codec.codec_of(run), read_image(photos / "a.png"))
    assert file.read_bytes() == encoder.compress(1.0).data
    status, text, err = command(capsys, "info", tmp_path / "none.vbq", "--json")
    assert (status, text) == (1, "") and err.startswith("error: cannot read ")


def test_pictures_beside_the_files_are_not_replaced(tmp_path, place, photos, capsys):
    """The name of a picture is implied by that of the file: it could be the original."""
    before = (photos / "a.png").read_bytes()
    assert command(capsys, "compress", *place, photos, photos)[0] == 0
    os.symlink(photos, tmp_path / "link")
    for out in (photos, f"{tmp_path / 'link'}/"):
        status, text, err = command(capsys, "decompress", *place, photos, out)
        assert (status, text) == (1, "") and "it exists, beside the files to decode" in err
    assert (photos / "a.png").read_bytes() == before
    assert command(capsys, "compress", *place, photos, photos)[0] == 0  # its own files may be made again


def test_two_results_never_share_a_file(tmp_path, place, photos, capsys):
    out = tmp_path / "out"
    out.mkdir()
    os.symlink("b.vbq", out / "a.vbq")
    status, text, err = command(capsys, "compress", *place, photos, out)
    assert (status, text) == (1, "") and "which is written as well" in err
    assert os.listdir(out) == ["a.vbq"]


def test_a_photograph_is_not_replaced_through_a_link(tmp_path, place, photos, capsys):
    before = (photos / "a.png").read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    os.symlink(photos / "a.png", out / "b.vbq")
    for target in (out, out / "b.vbq"):
        status, text, err = command(capsys, "compress", *place, photos / "b.png", target)
        assert (status, text) == (1, "") and "should end in .vbq, and it is a link to" in err
    assert (photos / "a.png").read_bytes() == before


def test_a_pipe_is_read_once(tmp_path, place, photos, run, capsys):
    data = codec.compress(photos / "a.png", run)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as writer:
        writer.submit(pipe.write_bytes, data)
        status, _, err = command(capsys, "decompress", *place, pipe, tmp_path / "a.png")
    assert (status, err) == (0, "") and (tmp_path / "a.png").exists()


def test_without_a_standard_error_there_is_no_bar(tmp_path, place, photos, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    argv = ["compress", *place, str(photos), str(tmp_path / "out")]
    assert codec.main(argv) == 0 and len(os.listdir(tmp_path / "out")) == 3
