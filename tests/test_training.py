"""Training can be stopped anywhere and continues exactly, on one device and on several; and bad input."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from small_runs import TINY, flags_of, log_of, run_dir_of, save_photographs, train_interrupted, weights_of

import bls2017_vae
from vbq.checkpoints import Saver, latest_state, named_weights, read_checkpoint
from vbq.command import run_main
from vbq.files import save_npz
from vbq.trainer import METRICS
from vbq.transforms import VAE

EVERYTHING = shlex.split("""
    --last_step 8 --learned_prior --ema_decay 0.9 --clip_norm 1000 --flip --min_scale 0.5
    --lr_schedule cosine --warmup_steps 2
""")


@pytest.fixture(name="photographs")
def fixture_photographs(tmp_path):
    """A glob of three pictures."""
    return save_photographs(str(tmp_path / "photographs"))


@pytest.fixture(scope="module", name="whole")
def fixture_whole(tmp_path_factory):
    """Flags of an uninterrupted run with every flag that has a state."""
    folder = tmp_path_factory.mktemp("whole")
    flags = flags_of(save_photographs(str(folder)), folder / "runs", *EVERYTHING)
    assert bls2017_vae.main(flags) == 0
    return flags


def losses(rows):
    return [row["loss"] for row in rows]


# The run directory.


@pytest.mark.slow
def test_run_directory_and_tensorboard(tmp_path, photographs, capsys):
    (tmp_path / "photographs" / "3.png").write_bytes(b"no picture")
    flags = flags_of(
        photographs, tmp_path / "runs", "--last_step", "3", "--verbose", "--log_dir", str(tmp_path / "logs")
    )
    assert bls2017_vae.main(flags) == 0
    output = capsys.readouterr()
    assert [line.split()[:3] for line in output.out.splitlines()] == [["step", n, "loss"] for n in "123"]
    (warning,) = output.err.splitlines()  # and no progress bar, because this is no terminal
    assert warning.startswith("warning: left out: ") and "3.png" in warning
    run_dir = run_dir_of(flags)
    assert sorted(os.listdir(run_dir)) == [
        "args.json",
        "checkpoint",
        "log.csv",
        "model.ckpt-3.data-00000-of-00001",
        "model.ckpt-3.index",
        "record.txt",
    ]
    with open(os.path.join(run_dir, "args.json"), encoding="utf-8") as file:
        assert json.load(file) == vars(bls2017_vae.parse_args(flags))
    with open(os.path.join(run_dir, "record.txt"), encoding="utf-8") as file:
        record = file.read()
    assert all(word in record for word in ("start at step 0", "tensorflow 2.14", "git commit", "command:"))
    rows = log_of(run_dir)
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert list(rows[0]) == ["step", *METRICS, "steps_per_second", "loss_per_pixel"]
    (events,) = (tmp_path / "logs" / os.path.basename(run_dir)).iterdir()
    check_tensorboard(str(events))
    assert bls2017_vae.main(flags) == 0 and "already at step 3" in capsys.readouterr().out


def check_tensorboard(path):
    """Asserts that a file of TensorBoard has all metrics of three steps, and two pictures."""
    tags = {}
    for record in tf.data.TFRecordDataset(path):
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
            tags.setdefault(value.tag, []).append(value)
    assert set(tags) == {*METRICS, "loss_per_pixel", "original", "reconstruction"}
    assert len(tags["loss"]) == 3
    assert len(tags["original"][0].tensor.string_val) == 2 + 2  # width, height, and two pictures


def test_every_line_of_progress_has_its_row_also_the_first_and_the_last(tmp_path, photographs, capsys):
    flags = flags_of(photographs, tmp_path, "--last_step", "4", "--verbose", "--save_summary_secs", "9999")
    assert bls2017_vae.main(flags) == 0
    rows = log_of(run_dir_of(flags))
    assert [row["step"] for row in rows] == ["1", "4"]  # all within ten seconds
    for line, row in zip(capsys.readouterr().out.splitlines(), rows, strict=True):
        found = re.fullmatch(
            r"step (\d+)  loss (\S+) nats per crop, (\S+) per pixel  psnr (\S+) dB  (\S+) steps/s", line
        )
        names = ("step", "loss", "loss_per_pixel", "psnr", "steps_per_second")
        assert [float(text) for text in found.groups()] == pytest.approx(
            [float(row[name]) for name in names], rel=1e-3, abs=0.01
        )
        pixels = 16**2  # of a crop
        assert float(row["loss_per_pixel"]) == pytest.approx(float(row["loss"]) / pixels, rel=1e-4)


def test_row_of_a_step_is_written_before_its_checkpoint(tmp_path, photographs, monkeypatch):
    flags = flags_of(photographs, tmp_path, "--last_step", "3", "--save_checkpoint_secs", "0")
    found, save = [], Saver.save

    def checked(saver):
        found.append((int(saver.step.numpy()), log_of(saver.run_dir)[-1]["step"]))
        save(saver)

    monkeypatch.setattr(Saver, "save", checked)
    assert bls2017_vae.main(flags) == 0
    assert found == [(1, "1"), (2, "2"), (3, "3"), (3, "3")]  # the last one at the end


# Stopping and continuing.


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, whole):
    flags = [*whole, "--checkpoint_dir", str(tmp_path)]
    train_interrupted(flags, 5)
    assert bls2017_vae.load_run(*os.path.split(run_dir_of(flags))).step == 5
    assert bls2017_vae.main(flags) == 0
    rows = log_of(run_dir_of(flags))
    # The metrics of step 5 were not yet read when the run was interrupted.
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "6", "7", "8"]
    expected = losses(log_of(run_dir_of(whole)))
    assert losses(rows) == expected[:4] + expected[5:]
    one, two = (read_checkpoint(os.path.join(run_dir_of(f), "model.ckpt-8")) for f in (flags, whole))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name not in ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE"):
            np.testing.assert_array_equal(value, two[name], err_msg=name)


@pytest.mark.slow
def test_learned_prior_and_average_are_trained(whole):
    run_dir = run_dir_of(whole)
    arrays = read_checkpoint(os.path.join(run_dir, "model.ckpt-8"))
    weights, average = (named_weights(arrays, part) for part in ("weights", "average"))
    assert weights.keys() == average.keys() and any(name.startswith("prior/") for name in weights)
    assert np.abs(weights["prior/factor_0"]).max() > 1e-4  # starts at zero
    run = bls2017_vae.load_run(*os.path.split(run_dir))
    for name, value in run.model.named_weights().items():
        np.testing.assert_array_equal(value, average[name])
        assert not np.array_equal(value, weights[name]) or not np.any(value)


@pytest.mark.slow
def test_continues_from_weights_alone(tmp_path, photographs, whole, capsys):
    flags = flags_of(photographs, tmp_path, "--last_step", "8")
    run_dir = run_dir_of(flags)
    os.makedirs(run_dir)
    save_npz(os.path.join(run_dir, "weights.npz"), {**weights_of(whole), "global_step": 6})
    capsys.readouterr()
    assert bls2017_vae.main(flags) == 0
    # Without --verbose, too.
    assert capsys.readouterr() == ("", f"{run_dir}: resumes at step 6 of 8\n")
    assert [row["step"] for row in log_of(run_dir)] == ["7", "8"]
    assert bls2017_vae.load_run(*os.path.split(run_dir)).step == 8


def has_checkpoint(run_dir):
    """Whether a run has a whole checkpoint of step 10 or later: writing of a later one has begun."""
    names = os.listdir(run_dir) if os.path.isdir(run_dir) else []
    return any(int(step) > 10 for name in names for step in re.findall(r"ckpt-(\d+)\.index$", name))


@pytest.mark.slow
def test_killed_run_continues(tmp_path, photographs):
    flags = flags_of(
        photographs,
        tmp_path,
        *("--last_step", "100000", "--save_checkpoint_secs", "0", "--save_summary_secs", "9"),
    )
    run_dir = run_dir_of(flags)
    with subprocess.Popen(
        [sys.executable, "bls2017_vae.py", *flags], cwd=ROOT, stderr=subprocess.PIPE
    ) as process:
        while process.poll() is None and not has_checkpoint(run_dir):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
    step, _, _ = latest_state(run_dir)
    assert step >= 10
    os.makedirs(
        os.path.join(run_dir, "model.ckpt-99_temp")
    )  # what a kill in the middle of writing would leave
    train_interrupted(flags, 3)
    assert bls2017_vae.load_run(*os.path.split(run_dir)).step == step + 3
    assert not any(name.endswith("_temp") for name in os.listdir(run_dir))
    with open(os.path.join(run_dir, "record.txt"), encoding="utf-8") as file:
        record = file.read()
    assert "start at step 0" in record and f"start at step {step}" in record


@pytest.mark.slow
def test_torn_checkpoint_is_left_out(tmp_path, photographs, capsys):
    flags = flags_of(photographs, tmp_path, "--last_step", "9")
    for steps in (2, 3):
        train_interrupted(flags, steps)
    run_dir = run_dir_of(flags)
    data = os.path.join(run_dir, "model.ckpt-5.data-00000-of-00001")
    with open(data, "r+b") as file:
        file.truncate(os.path.getsize(data) // 2)
    capsys.readouterr()
    assert bls2017_vae.load_run(*os.path.split(run_dir)).step == 2
    assert "model.ckpt-5" in capsys.readouterr().err
    for name in ("model.ckpt-2", "model.ckpt-5"):
        with open(os.path.join(run_dir, f"{name}.index"), "wb"):
            pass
    assert run_main(bls2017_vae.main, flags) == 1  # rather than starting anew
    assert "damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path, photographs, capsys):
    flags = flags_of(photographs, tmp_path, "--last_step", "50")
    train_interrupted(flags, 2)
    run_dir = run_dir_of(flags)
    capsys.readouterr()
    bad = [*flags, "--learning_rate", "1e30", "--save_checkpoint_secs", "0"]
    assert run_main(bls2017_vae.main, bad) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(("error: weights are not finite at step", "error: the loss is "))
    assert "last checkpoint is kept, that of step" in error
    step, _, arrays = latest_state(run_dir)
    assert step < 6 and all(np.all(np.isfinite(value)) for value in named_weights(arrays).values())


# Bad input.


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--train_glob", "{tmp}/none/*.png"], ["none/*.png"]),
        (["--train_glob", "{tmp}/photographs/*.png", "--patchsize", "64"], ["64 x 64", "3 files"]),
        (["--checkpoint_dir", "{tmp}/photographs/0.png/runs"], ["0.png"]),
        (["--log_dir", "{tmp}/photographs/0.png"], ["0.png"]),
    ],
)
def test_bad_input_is_told_in_one_line_and_nothing_is_overwritten(
    tmp_path, photographs, capsys, flags, words
):
    base = flags_of(photographs, tmp_path / "runs", "--last_step", "9")
    run_dir = run_dir_of(base)
    os.makedirs(run_dir)
    with open(os.path.join(run_dir, "args.json"), "w", encoding="utf-8") as file:
        file.write("kept")
    assert run_main(bls2017_vae.main, [*base, *(flag.format(tmp=tmp_path) for flag in flags)]) == 1
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if not line.startswith("warning: left out")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and all(word in lines[0] for word in words)
    assert os.listdir(run_dir) == ["args.json"]
    with open(os.path.join(run_dir, "args.json"), encoding="utf-8") as file:
        assert file.read() == "kept"


def test_checkpoint_of_another_model_is_refused(tmp_path, photographs, capsys):
    flags = flags_of(photographs, tmp_path, "--num_filters", "5", "3", "--last_step", "9")
    run_dir = run_dir_of(flags)
    os.makedirs(run_dir)
    save_npz(os.path.join(run_dir, "weights.npz"), VAE(TINY).named_weights())
    assert run_main(bls2017_vae.main, flags) == 1
    assert "weights.npz: the weights are those of another model" in capsys.readouterr().err
    assert os.listdir(run_dir) == ["weights.npz"]


# Several devices and machines.

TWO_DEVICES = """
import sys, tensorflow as tf, bls2017_vae
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.exit(bls2017_vae.main(sys.argv[1:]))
"""
DIES = """
import os, signal, sys, bls2017_vae
from vbq.trainer import Trainer
distribute, steps = Trainer.distribute, 4
def dying(trainer, x):
    global steps
    steps -= 1
    if steps < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return distribute(trainer, x)
Trainer.distribute = dying
bls2017_vae.main(sys.argv[1:])
"""
LIVES = """
import sys, bls2017_vae
from vbq.command import run_main
sys.exit(run_main(bls2017_vae.main, sys.argv[1:]))
"""


def start(code, flags, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, *flags],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def start_workers(codes, flags):
    ports = []
    for _ in codes:
        with socket.socket() as server:
            server.bind(("localhost", 0))
            ports.append(server.getsockname()[1])
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    tasks = [{"cluster": cluster, "task": {"type": "worker", "index": i}} for i in range(len(codes))]
    return [start(code, flags, TF_CONFIG=json.dumps(task)) for code, task in zip(codes, tasks)]


@pytest.mark.slow
def test_two_devices_and_two_workers_give_the_losses_of_one(tmp_path, whole):
    """Also when one of the workers is killed, and all are started again."""
    mirrored = [
        *whole,
        *("--strategy", "mirrored", "--checkpoint_dir", str(tmp_path / "mirrored")),
        *("--log_dir", str(tmp_path / "logs")),
    ]
    multiworker = [
        *whole,
        *("--strategy", "multiworker", "--checkpoint_dir", str(tmp_path / "multiworker")),
        *("--save_checkpoint_secs", "0"),
    ]
    chief, victim, devices = [*start_workers([LIVES, DIES], multiworker), start(TWO_DEVICES, mirrored)]
    _, error = chief.communicate(timeout=1800)
    assert chief.returncode == 1 and error.startswith("error: lost one of the 2 workers"), error[-2000:]
    assert victim.communicate(timeout=1800) and victim.returncode == -signal.SIGKILL
    processes = [devices, *start_workers([LIVES, LIVES], multiworker)]
    for process in processes:
        _, error = process.communicate(timeout=1800)
        assert process.returncode == 0, error[-2000:]
    expected = {row["step"]: float(row["loss"]) for row in log_of(run_dir_of(whole))}
    reference = weights_of(whole)
    for flags in (mirrored, multiworker):
        found = {row["step"]: float(row["loss"]) for row in log_of(run_dir_of(flags))}
        assert len(found) >= 7  # only the metrics of the step at which a worker died may be lost
        assert found == pytest.approx({step: expected[step] for step in found}, rel=1e-4)
        weights = weights_of(flags)
        for name, value in reference.items():
            np.testing.assert_allclose(weights[name], value, atol=1e-4, err_msg=name)
