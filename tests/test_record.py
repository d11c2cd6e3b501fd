"""`args.json` and `record.txt`."""

import json
import os

import numpy as np
import pytest

from vbq import record
from vbq.command import UserError
from vbq.record import append_record, changed_flags, neighbours, read_flags, write_flags
from vbq.threads import cores

FLAGS = {"batchsize": 4, "num_filters": [4, 3], "seed": 0, "verbose": False, "learned_prior": False}


def test_changed_flags_are_named_with_old_and_new_value():
    changed = FLAGS | {"batchsize": 8, "num_filters": [4, 4], "verbose": True, "log_dir": "x"}
    assert changed_flags(FLAGS, changed) == ["--batchsize 4 -> 8", "--num_filters 4 3 -> 4 4"]
    assert changed_flags(FLAGS, FLAGS | {"num_filters": (4, 3), "seed": 0.0}) == []
    assert changed_flags({"init_run": None}, {"init_run": "a"}) == ["--init_run (none) -> a"]


def test_flags_of_the_prior_matter_if_there_is_one():
    earlier, flags = ({"prior_lr": rate, "learned_prior": True} for rate in (0.1, 0.2))
    assert changed_flags(earlier, flags) == ["--prior_lr 0.1 -> 0.2"]
    assert changed_flags(earlier | {"learned_prior": False}, flags | {"learned_prior": False}) == []


def test_args_json_keeps_the_history(tmp_path):
    run_dir = str(tmp_path / "runs" / "run")
    assert write_flags(run_dir, FLAGS) == "" and read_flags(run_dir) == FLAGS
    assert write_flags(run_dir, FLAGS | {"verbose": True}, 50) == ""
    assert read_flags(run_dir) == FLAGS | {"verbose": True}
    write_flags(run_dir, FLAGS, 60)
    second, third = FLAGS | {"batchsize": 8}, FLAGS | {"batchsize": 8, "seed": 1}
    warning = write_flags(run_dir, second, 100)
    assert warning == f"{run_dir}: goes on with other flags than before: --batchsize 4 -> 8"
    assert read_flags(run_dir) == {**second, "first_step": 100, "history": [{**FLAGS, "first_step": 0}]}
    assert write_flags(run_dir, second, 150) == ""
    assert "--seed 0 -> 1" in write_flags(run_dir, third, 200)
    history = [{**FLAGS, "first_step": 0}, {**second, "first_step": 100}]
    assert read_flags(run_dir) == {**third, "first_step": 200, "history": history}
    # The step before the changes is restored, because later checkpoints are damaged.
    assert "--batchsize 4 -> 8, --seed 0 -> 1" in write_flags(run_dir, third, 100)
    assert read_flags(run_dir) == {**third, "first_step": 100, "history": history[:1]}
    assert write_flags(run_dir, FLAGS, 90) == "" and read_flags(run_dir) == FLAGS
    assert write_flags(run_dir, third) == "" and read_flags(run_dir) == third  # a new run


def test_flags_that_an_older_file_lacks_had_their_defaults(tmp_path):
    write_flags(str(tmp_path), FLAGS)
    flags = FLAGS | {"flip": True, "min_scale": 1.0}
    assert "--flip False -> True" in write_flags(
        str(tmp_path), flags, 5, defaults={"flip": False, "min_scale": 1.0}
    )


def test_a_damaged_file_is_told_and_replaced(tmp_path):
    (tmp_path / "args.json").write_text("{")
    assert "is replaced" in write_flags(str(tmp_path), FLAGS, 5)
    assert read_flags(str(tmp_path)) == FLAGS
    (tmp_path / "args.json").write_text(json.dumps(FLAGS | {"history": 3, "first_step": []}))
    assert "--seed 0 -> 1" in write_flags(str(tmp_path), FLAGS | {"seed": 1}, 5)


def test_neighbours_differ_in_last_step_only_and_have_a_state(tmp_path):
    for name, file in {
        "a-last_step=10": "model.ckpt-10.index",
        "a-last_step=9": "weights.npz",
        "a-last_step=30": "args.json",
        "b-last_step=10": "weights.npz",
        "a-last_step=x": "weights.npz",
        "a-last_step=10-more": "weights.npz",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(b"")
    assert neighbours(str(tmp_path / "a-last_step=40")) == ["a-last_step=9", "a-last_step=10"]
    assert neighbours(str(tmp_path / "a-last_step=10")) == ["a-last_step=9"]
    assert neighbours(str(tmp_path / "a")) == neighbours(str(tmp_path / "none" / "a-last_step=1")) == []


def test_record_says_how_each_start_came_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "PACKAGES", ("numpy", "no-such-package"))
    for step in (0, 7):
        append_record(str(tmp_path), FLAGS, step, data="3 photographs")
    text = (tmp_path / "record.txt").read_text()
    assert text.count("start at step 0, 3 photographs") == text.count("start at step 7, 3 photographs") == 1
    assert f", numpy {np.__version__}; " in text and f"{cores()} cores" in text


def test_a_full_disk_is_told_with_the_file(tmp_path):
    os.symlink("/dev/full", tmp_path / "record.txt")
    with pytest.raises(UserError, match="cannot write .*record.txt: No space left on device"):
        append_record(str(tmp_path), FLAGS, 0, data="3 photographs")
