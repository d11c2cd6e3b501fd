"""Training: its data, that it can be stopped anywhere and goes on exactly, and bad input."""
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
import tensorflow as tf

import bls2017_vae
import train_data
import training
import utils

ROOT = os.path.dirname(os.path.abspath(bls2017_vae.__file__))
FLAGS = ["--num_filters", "4", "3", "--filter_dims", "5", "3", "--sampling_rates", "2", "2", "--patchsize", "16",
         "--batchsize", "4", "--preprocess_threads", "2", "--log_dir", "", "--save_summary_secs", "0"]


@pytest.fixture(scope="module", name="pixels")
def fixture_pixels():
    """A picture, uint8 [60, 80, 3]."""
    y, x = np.mgrid[:60, :80]
    return np.stack([2 * x + y, 3 * y, 255 - x], axis=-1).astype(np.uint8)


@pytest.fixture(name="photographs")
def fixture_photographs(tmp_path, pixels):
    """A glob of three pictures."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.roll(pixels, 20 * i, axis=i % 2)).save(folder / f"{i}.png")
    return str(folder / "*.png")


def flags_of(photographs, checkpoint_dir, *more):
    return [*FLAGS, "--train_glob", photographs, "--checkpoint_dir", str(checkpoint_dir), *more]


def run_dir_of(flags):
    args = bls2017_vae.parse_args(flags)
    return os.path.join(args.checkpoint_dir, bls2017_vae.runname(args))


def log_of(run_dir):
    """The rows of `log.csv`, one a step."""
    with open(os.path.join(run_dir, "log.csv"), encoding="utf-8") as file:
        return list(csv.DictReader(file))


def interrupt_after(monkeypatch, steps):
    """Makes training end as Ctrl-C would end it, after so many steps."""
    distribute = training.Trainer.distribute

    def counted(trainer, x):
        nonlocal steps
        if not steps:
            raise KeyboardInterrupt
        steps -= 1
        return distribute(trainer, x)
    monkeypatch.setattr(training.Trainer, "distribute", counted)


# Data.


def test_files_of_all_kinds(tmp_path, pixels):
    image = Image.fromarray(pixels)
    grey = np.asarray(image.convert("L"))
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    sixteen = grey.astype(np.uint16) * 257
    for name, picture in dict(a_rgb=image, b_grey=image.convert("L"), c_alpha=Image.fromarray(alpha),
                              d_palette=image.quantize(256), e_16=Image.fromarray(sixteen)).items():
        picture.save(tmp_path / f"{name}.png")
    image.save(tmp_path / "f.jpg", quality=95)
    np.save(tmp_path / "g.npy", pixels)
    np.save(tmp_path / "h.npy", pixels / np.float32(255))
    photographs = train_data.Photographs(str(tmp_path / "*"), 16, threads=2)
    grey = np.dstack([grey] * 3)
    for found, expected, tolerance in zip(photographs.items, (pixels, grey, pixels, pixels, grey, pixels, pixels, pixels),
                                          (0, 0, 0, 40, 0, 40, 0, 0)):
        assert found.dtype == np.uint8 and found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= tolerance
    assert len(photographs) == 8


def test_crops_are_a_function_of_seed_and_number(photographs, pixels):
    data = train_data.Photographs(photographs, 16, threads=2)
    arguments = dict(flip=True, min_scale=.5)
    crops = [data.crop(0, n, **arguments) for n in range(12)]
    assert all(crop.shape == (16, 16, 3) and crop.dtype == np.uint8 for crop in crops)
    again = train_data.Photographs(photographs, 16, threads=1, budget=0)  # nothing is kept in memory
    assert isinstance(again.items[0], str)
    for n in reversed(range(12)):
        np.testing.assert_array_equal(again.crop(0, n, **arguments), crops[n])
    batches = list(data.batches([[0, 1, 2], [3, 4, 5]], threads=2, seed=0, **arguments))
    np.testing.assert_array_equal(np.concatenate(batches), crops[:6])
    assert not np.array_equal(data.crop(1, 0), crops[0])


def test_every_photograph_is_seen_once_an_epoch(tmp_path):
    for i in range(5):
        Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / f"{i}.png")
    data = train_data.Photographs(str(tmp_path / "*.png"), 16, threads=1)
    order = [data.crop(0, n)[0, 0, 0] for n in range(50)]
    assert all(sorted(order[i:i + 5]) == list(range(5)) for i in range(0, 50, 5))
    assert len({tuple(order[i:i + 5]) for i in range(0, 50, 5)}) > 3


def test_flipped_and_unflipped_crops_are_cut_from_the_photograph(photographs, pixels):
    data = train_data.Photographs(photographs.replace("*", "0"), 16, threads=1)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (16, 16), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    found = []
    for n in range(20):
        crop = data.crop(0, n, flip=True)
        found.append([np.any(np.all(windows == version, axis=(2, 3, 4))) for version in (crop, crop[:, ::-1])])
    assert all(any(pair) for pair in found) and 4 < sum(straight for straight, _ in found) < 16


def test_large_arrays_stay_on_disk(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(train_data, "MAPPED_BYTES", 1000)
    np.save(tmp_path / "a.npy", pixels / np.float32(255))
    np.save(tmp_path / "b.npy", pixels / np.float32(255) + 1)
    np.save(tmp_path / "c.npy", pixels[..., 0])
    np.save(tmp_path / "d.npy", np.full(pixels.shape, np.nan))
    data = train_data.Photographs(str(tmp_path / "*.npy"), 16, threads=1, budget=1)
    assert len(data) == 1 and isinstance(data.items[0], np.memmap)
    monkeypatch.undo()
    np.testing.assert_array_equal(data.crop(0, 3), train_data.Photographs(str(tmp_path / "a.npy"), 16, threads=1).crop(0, 3))


def test_unusable_photographs_are_named_and_left_out(tmp_path, pixels, capsys):
    Image.fromarray(pixels).save(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "good.png").read_bytes()[:-60])
    Image.fromarray(pixels[:12]).save(tmp_path / "small.png")
    np.save(tmp_path / "array.png.npy", pixels[..., 0])
    assert len(train_data.Photographs(str(tmp_path / "*"), 16, threads=3)) == 1
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 5
    for name in ("empty.png", "text.png", "truncated.png", "small.png", "array.png.npy"):
        assert any(name in line and line.startswith("warning: left out") for line in warnings), name
    assert any("at least 16 x 16 pixels" in line and "80 x 12" in line for line in warnings)


# The run directory.


def test_run_directory_and_tensorboard(tmp_path, photographs, capsys):
    flags = flags_of(photographs, tmp_path / "runs", "--last_step", "3", "--verbose", "--log_dir", str(tmp_path / "logs"))
    assert bls2017_vae.main(flags) == 0
    output = capsys.readouterr()
    assert all(word in output.out for word in ("step 3", "loss", "psnr", "steps/s")) and "%" not in output.err
    run_dir = run_dir_of(flags)
    assert sorted(os.listdir(run_dir)) == ["args.json", "checkpoint", "log.csv", "model.ckpt-3.data-00000-of-00001",
                                           "model.ckpt-3.index", "record.txt"]
    with open(os.path.join(run_dir, "args.json"), encoding="utf-8") as file:
        assert json.load(file) == vars(bls2017_vae.parse_args(flags))
    with open(os.path.join(run_dir, "record.txt"), encoding="utf-8") as file:
        record = file.read()
    assert all(word in record for word in ("start at step 0", "tensorflow 2.14", "git commit", "command:"))
    assert [row["step"] for row in log_of(run_dir)] == ["1", "2", "3"]
    (events,) = (tmp_path / "logs" / os.path.basename(run_dir)).iterdir()
    tags = {}
    for event in tf.compat.v1.train.summary_iterator(str(events)):
        for value in event.summary.value:
            tags.setdefault(value.tag, []).append(value)
    assert set(tags) == {*training.METRICS, "original", "reconstruction"}
    assert len(tags["loss"]) == 3
    assert len(tags["original"][0].tensor.string_val) == 2 + 2  # width, height, and two pictures
    assert bls2017_vae.main(flags) == 0 and "already at step 3" in capsys.readouterr().out


EVERYTHING = ["--last_step", "8", "--learned_prior", "--ema_decay", "0.9", "--clip_norm", "1000", "--flip", "--min_scale",
              "0.5", "--lr_schedule", "cosine", "--warmup_steps", "2"]


@pytest.fixture(scope="module", name="whole")
def fixture_whole(tmp_path_factory, pixels):
    """An uninterrupted run with every flag that has a state, and its pictures."""
    folder = tmp_path_factory.mktemp("whole")
    for i in range(3):
        Image.fromarray(np.roll(pixels, 20 * i, axis=i % 2)).save(folder / f"{i}.png")
    flags = flags_of(str(folder / "*.png"), folder / "runs", *EVERYTHING)
    assert bls2017_vae.main(flags) == 0
    return flags


def losses(rows):
    return [row["loss"] for row in rows]


def test_resumed_run_equals_an_uninterrupted_one(tmp_path, whole, monkeypatch):
    flags = [*whole, "--checkpoint_dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        assert utils.run_main(bls2017_vae.main, flags) == 130
    assert bls2017_vae.load_run(*os.path.split(run_dir_of(flags))).step == 5
    assert bls2017_vae.main(flags) == 0
    rows = log_of(run_dir_of(flags))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "6", "7", "8"]  # the interrupted step's was not yet read
    expected = losses(log_of(run_dir_of(whole)))
    assert losses(rows) == expected[:4] + expected[5:]
    one, two = (training.read_checkpoint(os.path.join(run_dir_of(f), "model.ckpt-8")) for f in (flags, whole))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name not in ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE"):
            np.testing.assert_array_equal(value, two[name], err_msg=name)


def test_learned_prior_and_average_are_trained(whole):
    run_dir = run_dir_of(whole)
    arrays = training.read_checkpoint(os.path.join(run_dir, "model.ckpt-8"))
    weights, average = (training.named_weights(arrays, part) for part in ("weights", "average"))
    assert weights.keys() == average.keys() and any(name.startswith("prior/") for name in weights)
    assert np.abs(weights["prior/factor_0"]).max() > 1e-4  # starts at zero
    run = bls2017_vae.load_run(*os.path.split(run_dir))
    for name, value in run.model.named_weights().items():
        np.testing.assert_array_equal(value, average[name])
        assert not np.array_equal(value, weights[name]) or not np.any(value)


def test_goes_on_from_weights_alone(tmp_path, photographs, whole):
    flags = flags_of(photographs, tmp_path, "--last_step", "8")
    run_dir = run_dir_of(flags)
    os.makedirs(run_dir)
    weights = training.named_weights(training.latest_state(run_dir_of(whole))[2])
    utils.save_npz(os.path.join(run_dir, "weights.npz"), {**weights, "global_step": 6})
    assert bls2017_vae.main(flags) == 0
    assert [row["step"] for row in log_of(run_dir)] == ["7", "8"]
    assert bls2017_vae.load_run(*os.path.split(run_dir)).step == 8


def test_killed_run_goes_on(tmp_path, photographs):
    flags = flags_of(photographs, tmp_path, "--last_step", "100000", "--save_checkpoint_secs", "0", "--save_summary_secs", "9")
    run_dir = run_dir_of(flags)
    with subprocess.Popen([sys.executable, "bls2017_vae.py", *flags], cwd=ROOT, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if os.path.isdir(run_dir) and any(name.endswith("0.index") for name in os.listdir(run_dir)):
                break
            time.sleep(.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
    step, _, _ = training.latest_state(run_dir)
    assert step >= 10
    os.makedirs(os.path.join(run_dir, "model.ckpt-99_temp"))  # what a kill in the middle of writing would leave
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 3)
        assert utils.run_main(bls2017_vae.main, flags) == 130
    assert bls2017_vae.load_run(*os.path.split(run_dir)).step == step + 3
    assert not any(name.endswith("_temp") for name in os.listdir(run_dir))
    with open(os.path.join(run_dir, "record.txt"), encoding="utf-8") as file:
        record = file.read()
    assert "start at step 0" in record and f"start at step {step}" in record


def test_torn_checkpoint_is_passed_over(tmp_path, photographs, whole, capsys, monkeypatch):
    flags = flags_of(photographs, tmp_path, "--last_step", "9")
    for steps in (2, 3):
        with monkeypatch.context() as patch:
            interrupt_after(patch, steps)
            assert utils.run_main(bls2017_vae.main, flags) == 130
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
    assert utils.run_main(bls2017_vae.main, flags) == 1  # rather than starting all over
    assert "damaged" in capsys.readouterr().err


def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path, photographs, capsys, monkeypatch):
    flags = flags_of(photographs, tmp_path, "--last_step", "50")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert utils.run_main(bls2017_vae.main, flags) == 130
    run_dir = run_dir_of(flags)
    capsys.readouterr()
    assert utils.run_main(bls2017_vae.main, [*flags, "--learning_rate", "1e30", "--save_checkpoint_secs", "0"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: expected finite") or error.startswith("error: expected a finite loss")
    assert error.count("\n") == 1 and "last checkpoint is kept" in error
    step, _, arrays = training.latest_state(run_dir)
    assert step < 6 and all(np.all(np.isfinite(value)) for value in training.named_weights(arrays).values())


@pytest.mark.parametrize("flags, words", [
    (["--train_glob", "{tmp}/none/*.png"], ["none/*.png"]),
    (["--train_glob", "{tmp}/photographs/*.png", "--patchsize", "64"], ["64 x 64", "3 files"]),
    (["--checkpoint_dir", "{tmp}/photographs/0.png/runs"], ["0.png"]),
    (["--log_dir", "{tmp}/photographs/0.png"], ["0.png"])])
def test_bad_input_is_told_in_one_line_and_nothing_is_overwritten(tmp_path, photographs, capsys, flags, words):
    base = flags_of(photographs, tmp_path / "runs", "--last_step", "9")
    run_dir = run_dir_of(base)
    os.makedirs(run_dir)
    with open(os.path.join(run_dir, "args.json"), "w", encoding="utf-8") as file:
        file.write("kept")
    assert utils.run_main(bls2017_vae.main, [*base, *(flag.format(tmp=tmp_path) for flag in flags)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: left out")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and all(word in lines[0] for word in words)
    assert os.listdir(run_dir) == ["args.json"]
    with open(os.path.join(run_dir, "args.json"), encoding="utf-8") as file:
        assert file.read() == "kept"


def test_checkpoint_of_another_model_is_refused(tmp_path, photographs, whole, capsys):
    flags = flags_of(photographs, tmp_path, "--num_filters", "5", "3", "--last_step", "9")
    run_dir = run_dir_of(flags)
    os.makedirs(run_dir)
    weights = training.named_weights(training.latest_state(run_dir_of(whole))[2])
    utils.save_npz(os.path.join(run_dir, "weights.npz"), weights)
    assert utils.run_main(bls2017_vae.main, flags) == 1
    assert "weights.npz: expected the weights of this model" in capsys.readouterr().err
    assert os.listdir(run_dir) == ["weights.npz"]


# Several devices and machines.

TWO_DEVICES = """
import sys, tensorflow as tf, bls2017_vae
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.exit(bls2017_vae.main(sys.argv[1:]))
"""
DIES = """
import os, signal, sys, bls2017_vae, training
distribute, steps = training.Trainer.distribute, 4
def dying(trainer, x):
    global steps
    steps -= 1
    if steps < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return distribute(trainer, x)
training.Trainer.distribute = dying
bls2017_vae.main(sys.argv[1:])
"""
LIVES = "import sys, bls2017_vae, utils; sys.exit(utils.run_main(bls2017_vae.main, sys.argv[1:]))"


def start(code, flags, **environment):
    return subprocess.Popen([sys.executable, "-c", code, *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, **environment})


def start_workers(codes, flags):
    ports = []
    for _ in codes:
        with socket.socket() as server:
            server.bind(("localhost", 0))
            ports.append(server.getsockname()[1])
    cluster = dict(worker=[f"localhost:{port}" for port in ports])
    return [start(code, flags, TF_CONFIG=json.dumps(dict(cluster=cluster, task=dict(type="worker", index=i))))
            for i, code in enumerate(codes)]


@pytest.mark.slow
def test_two_devices_and_two_workers_give_the_losses_of_one(tmp_path, whole):
    """Also when one of the workers is killed, and all are started again."""
    mirrored = [*whole, "--strategy", "mirrored", "--checkpoint_dir", str(tmp_path / "mirrored"),
                "--log_dir", str(tmp_path / "logs")]
    multiworker = [*whole, "--strategy", "multiworker", "--checkpoint_dir", str(tmp_path / "multiworker"),
                   "--save_checkpoint_secs", "0"]
    chief, victim, devices = [*start_workers([LIVES, DIES], multiworker), start(TWO_DEVICES, mirrored)]
    _, error = chief.communicate(timeout=200)
    assert chief.returncode == 1 and error.startswith("error: expected 2 workers, lost one"), error[-2000:]
    assert victim.communicate(timeout=200) and victim.returncode == -signal.SIGKILL
    processes = [devices, *start_workers([LIVES, LIVES], multiworker)]
    for process in processes:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error[-2000:]
    expected = {row["step"]: float(row["loss"]) for row in log_of(run_dir_of(whole))}
    for flags in (mirrored, multiworker):
        found = {row["step"]: float(row["loss"]) for row in log_of(run_dir_of(flags))}
        assert len(found) >= 7  # what the lost step had to say is lost
        assert found == pytest.approx({step: expected[step] for step in found}, rel=1e-4)
        weights, reference = (training.named_weights(training.latest_state(run_dir_of(f))[2]) for f in (flags, whole))
        for name, value in reference.items():
            np.testing.assert_allclose(weights[name], value, atol=1e-4, err_msg=name)
