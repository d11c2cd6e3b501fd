"""`log.csv` and TensorBoard's files: they go on where the training does, and do not end it."""

import os

import numpy as np
import pytest
import tensorflow as tf
from small_runs import TINY

from vbq.command import UserError
from vbq.log import log_to_terminal
from vbq.side_outputs import SideOutputs, cut_events
from vbq.transforms import VAE

IMAGES = np.zeros((2, 16, 16, 3), np.uint8)


def steps_of(folder):
    """The steps of the losses in a folder of TensorBoard, in the order of the files and of their records."""
    steps = []
    for name in sorted(os.listdir(folder)):
        for record in tf.data.TFRecordDataset(os.path.join(folder, name)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            steps += [event.step for value in event.summary.value if value.tag == "loss"]
    return steps


def write(outputs, steps):
    for step in steps:
        means = {"loss": 1 / step, "steps_per_second": 2.0}
        outputs.write_row(step, means)
        outputs.write_summary(step, means, VAE(TINY), IMAGES)


def test_both_go_on_at_the_step_that_was_restored(tmp_path):
    run_dir, board = tmp_path / "run", tmp_path / "board"
    run_dir.mkdir()
    write(SideOutputs(str(run_dir), str(board), 0), [1, 2, 3, 4])
    with open(run_dir / "log.csv", "a", encoding="utf-8") as file:
        file.write("5,0.2")  # torn by a kill
    for path in board.iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    write(SideOutputs(str(run_dir), str(board), 2), [3, 4, 5])
    assert steps_of(board) == [1, 2, 3, 4, 5]
    rows = (run_dir / "log.csv").read_text().splitlines()
    assert rows[0] == "step,loss,steps_per_second"
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3", "4", "5"]
    assert sorted(os.listdir(tmp_path)) == ["board", "run"] and os.listdir(run_dir) == ["log.csv"]


def test_the_log_of_an_earlier_version_gets_the_columns_that_it_lacks(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"step,psnr,loss\r\n1,30,0.5\r\n2,31,0.25\r\n9,3")
    outputs = SideOutputs(str(tmp_path), "", 2)
    for step in (3, 4):
        outputs.write_row(step, {"loss": 1 / step, "psnr": 32.0, "loss_per_pixel": -0.125})
    assert path.read_bytes().decode() == (
        "step,psnr,loss,loss_per_pixel\r\n1,30,0.5,\r\n2,31,0.25,\r\n"
        "3,32,0.333333,-0.125\r\n4,32,0.25,-0.125\r\n"
    )
    SideOutputs(str(tmp_path), "", 4).write_row(5, {"loss": 1.0, "psnr": 1.0})  # by that earlier version
    assert path.read_text().splitlines()[-1] == "5,1,1,"


def test_a_log_that_is_no_text_does_not_end_the_training(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"st\xffep,loss\r\n1,0.5\r\n")
    SideOutputs(str(tmp_path), "", 1).write_row(2, {"loss": 0.25})
    assert b"0.25" in (tmp_path / "log.csv").read_bytes()


def test_tensorboard_reads_increasing_steps(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (tmp_path / "run").mkdir()
    for first, steps in ((0, [1, 2, 3, 4]), (2, [3, 4, 5])):
        write(SideOutputs(str(tmp_path / "run"), str(tmp_path / "board"), first), steps)
    events = accumulator.EventAccumulator(str(tmp_path / "board"), purge_orphaned_data=False)
    events.Reload()
    assert [event.step for event in events.Tensors("loss")] == [1, 2, 3, 4, 5]


def test_events_of_other_runs_in_the_folder_stay(tmp_path):
    board = tmp_path / "board"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(SideOutputs(str(tmp_path / name), str(board), 0), [1, 2])
    write(SideOutputs(str(tmp_path / "two"), str(board), 1), [2])
    assert sorted(steps_of(board)) == [1, 1, 2, 2]


def test_a_damaged_file_of_events_is_left_as_it_is(tmp_path, capsys):
    log_to_terminal()
    path = tmp_path / "events.tfevents"
    path.write_bytes(b"\5" + b"\0" * 11 + b"\xff" * 9)
    cut_events(str(path), 0)
    assert path.stat().st_size == 21 and "is damaged" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_is_given_up_with_one_warning(tmp_path, capsys):
    log_to_terminal()
    (tmp_path / "run").mkdir()
    outputs = SideOutputs(str(tmp_path / "run"), "", 0)
    os.symlink("/dev/full", tmp_path / "run" / "log.csv")
    write(outputs, [1, 2, 3])
    assert capsys.readouterr().err == (
        "warning: log.csv is given up, the training goes on: No space left on device\n"
    )
    assert outputs.outputs == {}


def test_a_full_disk_costs_tensorboard_only(tmp_path, capsys, monkeypatch):
    log_to_terminal()
    (tmp_path / "run").mkdir()
    outputs = SideOutputs(str(tmp_path / "run"), str(tmp_path / "board"), 0)
    text = "{{function_node __wrapped__Flush}} events; No space left on device\n\tFailed to flush"
    full = tf.errors.ResourceExhaustedError(None, None, text)

    def fail(*_, **__):
        raise full

    monkeypatch.setattr(outputs.outputs["TensorBoard"].writer, "flush", fail)
    write(outputs, [1, 2])
    warning = "warning: TensorBoard is given up, the training goes on: events; No space left on device\n"
    assert capsys.readouterr().err == warning
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 3
    monkeypatch.setattr(tf.summary, "create_file_writer", fail)
    assert list(SideOutputs(str(tmp_path / "run"), str(tmp_path / "board"), 2).outputs) == ["log.csv"]
    assert capsys.readouterr().err == warning


def test_a_place_that_is_none_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--log_dir: cannot write .*file/board"):
        SideOutputs(str(tmp_path), str(tmp_path / "file" / "board"), 0)
