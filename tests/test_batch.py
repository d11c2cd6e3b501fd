"""Batches: what names stand for, names of outputs that never collide, checks before any work."""

import os

import pytest
from codec_runs import fails
from PIL import Image

from vbq.batch import Job, find_inputs, is_batch, output_names, plan, process
from vbq.command import UserError


def touch(folder, *names):
    """Makes files, each with a picture or, if it ends in .vbq, with a byte; returns their paths."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".vbq":
            path.write_bytes(b"x")
        else:
            Image.new("RGB", (4, 3)).save(path)
    return [str(folder / name) for name in names]


# What names stand for.


def test_folders_globs_and_names(tmp_path):
    paths = touch(tmp_path, "b.png", "a.JPG", "in/c.png", "in/d.vbq", "in/.e.png", "f[1].png")
    (tmp_path / "in" / "text.txt").write_text("no image")
    folder = str(tmp_path / "in")
    assert find_inputs([folder]) == [paths[2]]
    assert find_inputs([folder], compressed=True) == [paths[3]]
    assert find_inputs([str(tmp_path / "*.png"), folder]) == sorted([paths[0], paths[5], paths[2]])
    assert find_inputs([f"{tmp_path}/**/*.vbq"], compressed=True) == [paths[3]]
    assert find_inputs([paths[5]]) == [paths[5]]  # a name that exists is no glob


def test_the_own_output_is_no_image_of_a_glob(tmp_path):
    """Otherwise a shard that starts later would have another list."""
    paths = touch(tmp_path, "a.png", "a.vbq")
    assert find_inputs([str(tmp_path / "*")]) == [paths[0]]
    assert find_inputs([str(tmp_path / "*")], compressed=True) == [paths[1]]


def test_a_file_is_worked_on_once_however_often_it_is_named(tmp_path):
    (path,) = touch(tmp_path, "a.png")
    assert find_inputs([path, str(tmp_path), f"{tmp_path}/./a.png", f"{tmp_path}/*.png"]) == [path]


def test_names_that_stand_for_nothing(tmp_path):
    touch(tmp_path, "a.png")
    assert "no image files match" in fails(find_inputs, [str(tmp_path / "*.jpg")])
    assert f"no .vbq files are in the folder {tmp_path}" in fails(find_inputs, [str(tmp_path)], True)
    assert f"no .vbq files match {tmp_path}" in fails(find_inputs, [str(tmp_path / "*.png")], True)
    missing = str(tmp_path / "missing.png")
    assert find_inputs([missing]) == [missing]  # like a damaged file, it must not stop the others
    glob = str(tmp_path / "*.jpg")
    assert find_inputs([glob, missing]) == sorted([glob, missing])  # nor must these


def test_what_is_a_batch(tmp_path):
    (path,) = touch(tmp_path, "a[1].png")
    for patterns, out, expected in (
        ([path], "x.vbq", False),
        ([path], None, False),
        ([path, path], "x.vbq", True),
        ([path], str(tmp_path), True),
        ([path], "new/", True),
        ([str(tmp_path)], "new", True),
        ([str(tmp_path / "*.png")], "new", True),
        ([str(tmp_path)], None, True),
    ):
        assert is_batch(patterns, out) == expected, (patterns, out)


# Names of outputs.


@pytest.mark.parametrize(
    "paths, expected",
    [
        (["/p/a.png", "/p/b.tar.png"], ["a", "b.tar"]),
        (["/p/a.jpg", "/p/a.png", "/p/b.png"], ["a.jpg", "a.png", "b"]),
        (["/p/x/a.png", "/p/y/a.png"], ["x-a.png", "y-a.png"]),
        (["/p/x/z/a.png", "/p/y/z/a.png"], ["x-z-a.png", "y-z-a.png"]),
        (["/p/a.jpg", "/p/a.jpg.png", "/p/a.png"], ["p-a.jpg", "p-a.jpg.png", "a.png"]),
        (["/p/A.png", "/p/a.png"], ["A", "a-2"]),
        (["/p/A.png", "/p/a-2.png", "/p/a.png"], ["A", "a-2", "a-3"]),
        (["/p/caf\u00e9.png", "/p/cafe\u0301.png"], ["caf\u00e9", "cafe\u0301-2"]),
        (["/p/stra\u00dfe.png", "/p/STRASSE.png"], ["stra\u00dfe", "STRASSE-2"]),
        (["/p/a\nb.png"], ["a\nb"]),
        (["/a.png", "/a.jpg"], ["a.png", "a.jpg"]),
        (
            ["/x-a/b.png", "/x/a-b.png", "/y/b.png", "/y/a-b.png"],
            ["x-a-b.png", "x-a-b.png-2", "y-b.png", "y-a-b.png"],
        ),
        ([], []),
    ],
)
def test_names_of_outputs(paths, expected):
    assert output_names(paths) == expected


# Plans.


def test_every_file_is_in_exactly_one_shard_under_the_name_of_the_whole(tmp_path):
    sources = touch(tmp_path, *(f"{i}.png" for i in range(7)), *(f"{i}.jpg" for i in range(3)))
    sources.sort()
    out = str(tmp_path / "out")
    whole = plan(sources, out, ".vbq")
    assert [job.source for job in whole] == sources and len({job.target for job in whole}) == 10
    shards = [plan(sources, out, ".vbq", (i, 3)) for i in (1, 2, 3)]
    assert [shards[i % 3][i // 3] for i in range(10)] == whole
    assert sum(map(len, shards)) == 10
    assert plan(sources[:1], out, ".vbq", (2, 2)) == []


def test_the_folder_is_made(tmp_path):
    sources = touch(tmp_path, "a.png")
    out = f"{tmp_path}/new/folder.png/"
    assert plan(sources, out, ".vbq") == [Job(sources[0], os.path.join(out, "a.vbq"))]
    assert os.path.isdir(out)


def test_what_is_no_folder_is_refused(tmp_path):
    sources = touch(tmp_path, "a.png", "b.png")
    (tmp_path / "file").write_text("x")
    for out, words in (
        (tmp_path / "file", "it is a file"),
        (tmp_path / "b.png", "it is a file"),
        (tmp_path / "c.png", "the name of a file"),
        (tmp_path / "c.VBQ", "the name of a file"),
        (tmp_path / "file" / "out", "cannot make the folder"),
    ):
        assert words in fails(plan, sources, str(out), ".vbq")
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png", "file"]


def test_no_input_is_replaced(tmp_path):
    """Also through a link, also one that another shard reads, also one whose own name would not change."""
    sources = touch(tmp_path, "a.vbq", "b.vbq")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.vbq").symlink_to(sources[0])
    assert "it is an input" in fails(plan, sources, str(tmp_path / "out"), ".vbq")
    assert "it is an input" in fails(plan, sources, str(tmp_path), ".vbq")
    assert "it is an input" in fails(plan, sources, str(tmp_path / "out"), ".vbq", (2, 2))


def test_what_cannot_be_replaced_is_told_before_any_work(tmp_path):
    sources = touch(tmp_path, "a.png")
    (tmp_path / "out" / "a.vbq").mkdir(parents=True)
    assert "a.vbq: it is a directory" in fails(plan, sources, str(tmp_path / "out"), ".vbq")


def test_a_note_names_what_is_replaced(tmp_path, capsys):
    sources = touch(tmp_path, *(f"{i}.png" for i in range(8)))
    out = str(tmp_path / "out")
    touch(tmp_path / "out", "0.vbq", "3.vbq")
    plan(sources, out, ".vbq", (1, 3))
    assert capsys.readouterr().err == f"note: replaces in {out}: 0.vbq, 3.vbq\n"
    touch(tmp_path / "out", *(f"{i}.vbq" for i in range(8)))
    plan(sources, out, ".vbq")
    assert capsys.readouterr().err.endswith("0.vbq, 1.vbq, 2.vbq, 3.vbq, 4.vbq and 3 more\n")


# Work.


def test_one_bad_file_stops_neither_the_others_nor_a_batch(capsys):
    def finish(job, value):
        if job.source == "c":
            raise UserError("c: not again")
        return {"file": job.target, "value": value}

    def prepare(job):
        if job.source == "b":
            raise UserError("b: bad")
        return job.source * 2

    jobs = [Job(name, name.upper()) for name in "abcd"]
    found = list(process(jobs, prepare, finish))
    assert found == [
        {"input": "a", "file": "A", "value": "aa"},
        {"input": "b", "file": "b", "error": "b: bad"},
        {"input": "c", "file": "c", "error": "c: not again"},
        {"input": "d", "file": "D", "value": "dd"},
    ]
    assert capsys.readouterr().err == "error: b: bad\nerror: c: not again\n"
    assert list(process(jobs[:1], prepare, finish, alone=True)) == [{"file": "A", "value": "aa"}]
    assert fails(lambda: list(process(jobs[1:2], prepare, finish, alone=True))) == "b: bad"


def test_a_full_disk_ends_a_batch():
    done = []

    def finish(job, value):
        done.append(value)
        raise UserError("cannot write x") from OSError(28, "No space left on device")

    jobs = [Job(name, name.upper()) for name in "abcd"]
    assert fails(lambda: list(process(jobs, lambda job: job.source, finish))) == "cannot write x"
    assert done == ["a"]


def test_what_comes_before_the_first_good_file_happens_once_or_never():
    begun = []

    def prepare(job):
        if job.source != "good":
            raise UserError("bad")

    def begin():
        begun.append(1)

    list(process([Job("bad"), Job("bad")], prepare, lambda *_: {}, begin))
    assert not begun
    list(process([Job("bad"), Job("good"), Job("good")], prepare, lambda *_: {}, begin))
    assert begun == [1]

    def fail():
        raise UserError("no such run")

    assert fails(lambda: list(process([Job("good")] * 2, prepare, lambda *_: {}, fail))) == "no such run"


def test_at_most_one_file_is_prepared_ahead():
    prepared, most = [], []

    def finish(job, value):
        most.append(len(prepared) - len(most))
        return {}

    list(process([Job(str(i)) for i in range(9)], prepared.append, finish))
    assert len(most) == 9 and max(most) <= 2  # the one that is finished, and the next
