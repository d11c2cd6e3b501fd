"""The PyTorch trainer against the TensorFlow model: same loss, same gradients, same state."""

import dataclasses
import math
import os
import pathlib
import re
import shlex
import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import convert_checkpoint
import torch_training
import train_state
import train_torch
from PIL import Image
from torch_model import Model

import bls2017_vae
from vbq.command import UserError, run_main
from vbq.config import ModelConfig, TrainingConfig
from vbq.files import load_npz
from vbq.record import read_flags
from vbq.run_lock import run_lock
from vbq.trainer import Trainer, make_strategy
from vbq.transforms import VAE

TINY = shlex.split("""
    --num_filters 6 5 4 --patchsize 32 --batchsize 2 --likelihood_variance 0.01
""")


@pytest.fixture(name="photos")
def fixture_photos(tmp_path):
    """A folder with two smooth pictures and a file that is none."""
    y, x = np.mgrid[:80, :96] / 96
    for i, name in enumerate(("a.png", "b.png")):
        picture = np.stack([x, y, (x + i) / 2], axis=-1)
        Image.fromarray(np.uint8(255 * picture)).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"not a picture")
    return str(tmp_path / "*.png")


def run_dir_of(argv):
    args = train_torch.build_parser().parse_args(argv)
    return os.path.join(args.checkpoint_dir, bls2017_vae.runname(args))


@pytest.mark.parametrize("dense_below, learned_prior", [(0, False), (10, False), (1000, False), (10, True)])
@pytest.mark.parametrize(
    "filters, sizes, strides", [((6, 5, 4), (9, 5, 5), (4, 2, 2)), ((5, 4), (5, 3), (2, 3))]
)
def test_loss_and_gradients_are_those_of_tensorflow(filters, sizes, strides, dense_below, learned_prior):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    config = ModelConfig(filters, sizes, strides, learned_prior, likelihood_variance=0.01)
    vae = VAE(config)
    assert {k: v.shape for k, v in vae.named_weights().items()} == train_state.weight_shapes(config)
    for name, variable in vae.named_variables.items():  # GDN and the prior start at too symmetric a point
        size = 0.5 if name.startswith("prior/") else 0.05
        variable.assign_add(size * rng.standard_normal(variable.shape))
    side = config.stride * 4
    x, noise = (
        rng.random((2, side, side, 3), np.float32),
        rng.standard_normal((2, 4, 4, filters[-1]), np.float32),
    )
    with tf.GradientTape() as tape:
        expected = vae.loss(x, noise)
    expected_gradients = tape.gradient(expected["loss"], vae.named_variables)

    model = Model(config, torch.device("cpu"), dense_below)
    weights = {k: torch.tensor(v, requires_grad=True) for k, v in vae.named_weights().items()}
    found = model.loss(weights, torch.tensor(x), torch.tensor(noise))
    for name in ("loss", "likelihood", "kl", "mse"):
        assert found[name].item() == pytest.approx(float(expected[name]), rel=1e-4)
    for name, gradient in zip(weights, torch.autograd.grad(found["loss"], list(weights.values()))):
        reference = expected_gradients[name].numpy()
        assert np.linalg.norm(gradient.numpy() - reference) <= 1e-4 * np.linalg.norm(reference), name


def test_bfloat16_changes_loss_and_gradients_by_its_rounding():
    config = ModelConfig((12, 10, 8), (9, 5, 5), (4, 2, 2), learned_prior=True, likelihood_variance=0.01)
    model, generator = Model(config, torch.device("cpu")), torch.Generator().manual_seed(0)
    start = train_state.initial(config, seed=0)["weights"]
    weights = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    x, noise = torch.rand(2, 64, 64, 3, generator=generator), torch.randn(2, 4, 4, 8, generator=generator)

    def loss_and_gradients(dtype):
        loss = model.loss(weights, x, noise, dtype)["loss"]
        return loss, torch.autograd.grad(loss, list(weights.values()))

    (exact, expected), (loss, found) = map(loss_and_gradients, (torch.float32, torch.bfloat16))
    assert 0 < abs(loss - exact) <= 1e-2 * abs(exact)
    for name, one, other in zip(weights, found, expected):
        assert one.dtype == torch.float32 and (one - other).norm() <= 0.05 * other.norm(), name


def test_adam_is_that_of_tensorflow(tmp_path):
    import tensorflow as tf

    rng = np.random.default_rng(1)
    weights = {"a": rng.standard_normal((3, 2), np.float32)}
    gradients = [rng.standard_normal((3, 2), np.float32) for _ in range(4)]
    variable = tf.Variable(weights["a"])
    optimizer = tf.keras.optimizers.legacy.Adam(0.01, epsilon=torch_training.EPSILON)
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient), variable)])
    tensor, m, v = torch.tensor(weights["a"]), [torch.zeros(3, 2)], [torch.zeros(3, 2)]
    for t, gradient in enumerate(gradients, 1):
        rate = torch.tensor(torch_training.adam_rate(0.01, t))
        torch_training.adam([tensor], [torch.tensor(gradient)], m, v, rate)
    np.testing.assert_allclose(tensor.numpy(), variable.numpy(), rtol=1e-5, atol=1e-7)


def test_start_has_the_spread_of_tensorflows():
    config = ModelConfig((40, 40, 40), (9, 5, 5), (4, 2, 2), learned_prior=True, prior_init_scale=7.0)
    mine = train_state.initial(config, seed=0)["weights"]
    for name, theirs in VAE(config).named_weights().items():
        few = "bias_" in name  # the prior's: 120 uniform numbers or less
        assert mine[name].std() == pytest.approx(theirs.std(), rel=0.3 if few else 0.05, abs=1e-7), name
        assert mine[name].mean() == pytest.approx(theirs.mean(), abs=0.1 if few else 0.01), name
    plain = train_state.initial(dataclasses.replace(config, learned_prior=False), seed=0)["weights"]
    for name, value in plain.items():  # does not depend on the prior
        np.testing.assert_array_equal(mine[name], value)


def test_a_step_with_a_learned_prior_is_that_of_tensorflow(tmp_path, photos, monkeypatch):
    """All of the step: two learning rates, the norm over all gradients, and the moving average."""
    flags = "--learned_prior --prior_lr 0.05 --learning_rate 0.01 --warmup_steps 3 --clip_norm 50"
    argv = [*TINY, *shlex.split(flags), "--ema_decay", "0.5", "--train_glob", photos]
    args = vars(train_torch.build_parser().parse_args(argv))
    model_config, config = ModelConfig.of(args), TrainingConfig.of(args)
    rng = np.random.default_rng(0)
    x = rng.integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
    theirs = Trainer(model_config, make_strategy("none"), clip_norm=50.0, ema_decay=0.5)
    noise = rng.standard_normal((2, 2, 2, 4), np.float32)
    monkeypatch.setattr(theirs, "_inputs", lambda x, _: (x / np.float32(255), noise))
    monkeypatch.setattr(torch_training, "random_crops", lambda *_: torch.tensor(x / np.float32(255)))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: torch.tensor(noise))

    device = torch.device("cpu")
    state = train_state.from_weights(theirs.model.named_weights())
    state["ema"] = {name: value.numpy() for name, value in theirs.average.items()}
    ours = torch_training.Trainer(Model(model_config, device), state, None, config, device)
    list(ours.train(3, np.inf))
    for step in range(3):
        rate = config.rate(step)
        theirs.train_step(tf_pixels(x), np.float32(rate), np.float32(5 * rate))
    state = ours.state()
    for slot, expected in (("weights", theirs.model.named_weights()), ("ema", theirs.average)):
        for name, value in expected.items():
            np.testing.assert_allclose(state[slot][name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def tf_pixels(x):
    import tensorflow as tf

    return tf.constant(x, tf.float32)


@pytest.mark.slow
def test_slices_equal_one_run_and_load_run_reads_the_result(tmp_path, photos, capsys):
    more = "--last_step 6 --flip --ema_decay 0.5 --clip_norm 1e6 --lr_schedule cosine --min_scale 0.5"
    argv = [*TINY, "--train_glob", photos, *shlex.split(more), "--device", "cpu"]
    whole, sliced = [[*argv, "--checkpoint_dir", str(tmp_path / name)] for name in ("whole", "sliced")]
    train_torch.main(whole)
    assert "left out" in capsys.readouterr().err  # the file that is no picture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_training, "LOG_STEPS", 2)
        train_torch.main([*sliced, "--max_seconds", "0.000001"])  # one interval
        assert train_state.load(run_dir_of(sliced))["global_step"] == 2
        train_torch.main(sliced)
    with open(os.path.join(run_dir_of(sliced), "record.txt"), encoding="utf-8") as file:
        assert re.findall("start at step [0-9]+, .*", file.read()) == [
            f"start at step {step}, 12 photographs and scales" for step in (0, 2)
        ]
    a, b = train_state.load(run_dir_of(whole)), train_state.load(run_dir_of(sliced))
    assert a["global_step"] == b["global_step"] == 6
    for slot in train_state.SLOTS:
        for name in a[slot]:
            np.testing.assert_array_equal(a[slot][name], b[slot][name])
    run = bls2017_vae.load_run(*os.path.split(run_dir_of(whole)))
    assert run.step == 6
    for name, value in run.model.named_weights().items():
        np.testing.assert_array_equal(value, a["ema"][name])


def test_parts_are_small_and_a_torn_save_is_ignored(tmp_path):
    state = train_state.initial(ModelConfig((6, 5, 4), (9, 5, 5), (4, 2, 2)), seed=0)
    train_state.save(str(tmp_path), state, part_bytes=20000)
    folder = tmp_path / train_state.FOLDER
    assert len(os.listdir(folder)) > 3 and all(path.stat().st_size <= 20000 for path in folder.iterdir())
    first = sorted(folder.iterdir())[0]
    (folder / ("9-1-of-2.npz")).write_bytes(first.read_bytes())  # killed before the second part
    loaded = train_state.load(str(tmp_path))
    assert loaded["global_step"] == 0
    for slot in train_state.SLOTS:
        for name, value in state[slot].items():
            np.testing.assert_array_equal(loaded[slot][name], value)


@pytest.mark.slow
def test_state_goes_to_tensorflow_and_back(tmp_path, photos, monkeypatch):
    argv = [*TINY, "--train_glob", photos, "--checkpoint_dir", str(tmp_path)]
    argv += ["--last_step", "3", "--ema_decay", "0.5", "--learned_prior"]
    train_torch.main([*argv, "--device", "cpu"])
    run_dir = run_dir_of(argv)
    before = train_state.load(run_dir)
    convert_checkpoint.main(["to-tensorflow", run_dir])
    after = convert_checkpoint.read_tensorflow(run_dir)
    assert after["global_step"] == 3
    for slot in train_state.SLOTS:
        assert before[slot].keys() == after[slot].keys()
        for name, value in before[slot].items():
            np.testing.assert_array_equal(after[slot][name], value)
    # TensorFlow continues from there: its next step has Adam's moments, not a fresh start.
    trainer = Trainer(ModelConfig.of(read_flags(run_dir)), make_strategy("none"), ema_decay=0.5)
    trainer.restore(run_dir)
    assert int(trainer.optimizer.iterations) == int(trainer.prior_optimizer.iterations) == 3
    assert int(trainer.step) == 3
    variable = trainer.weights["prior/matrix_1"]
    moment = trainer.prior_optimizer.get_slot(variable, "m")
    np.testing.assert_array_equal(moment, before["adam_m"]["prior/matrix_1"])
    # The later state counts, and a state of the same step is not replaced.
    with pytest.raises(UserError, match="is that of step 3 by tools/train_torch.py already"):
        convert_checkpoint.main(["to-torch", run_dir])
    damaged = os.path.join(run_dir, "model.ckpt-4.index")
    open(damaged, "wb").close()
    with pytest.raises(UserError, match="of step 4 is damaged; delete its files, and .* goes on from step 3"):
        convert_checkpoint.main(["to-torch", run_dir])
    os.remove(damaged)
    train_state.save(run_dir, before | {"global_step": 2, "adam_step": 2})
    convert_checkpoint.main(["to-weights", run_dir])
    assert load_npz(os.path.join(run_dir, "weights.npz"))["global_step"] == 3
    convert_checkpoint.main(["to-torch", run_dir])
    assert train_state.load(run_dir)["adam_step"] == 3
    # Files for use come from either. They are rounded: small kernels to float16, large ones to fewer steps.
    exact = train_state.result(before)
    name, small = max(exact, key=lambda name: exact[name].size), "sequential/layer_1/kernel_rdft"
    monkeypatch.setattr(train_state, "MOST_EXACT", exact[name].size - 1)
    convert_checkpoint.main(["to-weights", run_dir])
    found = load_npz(os.path.join(run_dir, "weights.npz"))
    assert {x.dtype for name, x in found.items() if name != "global_step"} == {np.dtype(np.float16)}
    np.testing.assert_array_equal(found[small], exact[small].astype(np.float16))
    error = np.abs(found[name].astype(np.float64) - exact[name]).max()
    assert 1 / 600 < error / exact[name].std() < 1 / 250
    assert len(np.unique(found[name])) < len(np.unique(exact[name].astype(np.float16)))
    assert bls2017_vae.load_run(*os.path.split(run_dir)).model.prior


def train_until(argv, step, event):
    """Trains, and calls `event` in place of the step after `step`."""
    one_step = torch_training.Trainer._one_step

    def counted(trainer):
        if trainer.step == step:
            event()
        one_step(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_training.Trainer, "_one_step", counted)
        return run_main(train_torch.main, argv)


def test_whatever_ends_a_slice_leaves_a_state_and_the_next_one_goes_on(tmp_path, photos, capsys):
    argv = [*TINY, "--train_glob", photos, "--checkpoint_dir", str(tmp_path), "--last_step", "4"]
    argv += ["--device", "cpu"]
    run_dir = run_dir_of(argv)
    assert train_until(argv, 1, lambda: os.kill(os.getpid(), signal.SIGINT)) == 130
    assert f"{run_dir}: step 2 is saved" in capsys.readouterr().err  # the step was finished first
    assert train_state.load(run_dir)["global_step"] == 2
    with open(os.path.join(run_dir, "train_torch.csv"), "w", encoding="utf-8") as file:
        file.write("1,1,1,1,1\n2,1,1,1,1\n3,1,1,1,1\n4,1")  # as after a kill
    assert run_main(train_torch.main, [*argv, "--seed", "5", "--part_mb", "3"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert f"{run_dir}: resumes at step 2 of 4" in lines
    assert f"warning: {run_dir}: goes on with other flags than before: --seed 0 -> 5" in lines
    with open(os.path.join(run_dir, "train_torch.csv"), encoding="utf-8") as file:
        assert [line.split(",")[0] for line in file] == ["1", "2", "4"]
    assert read_flags(run_dir)["history"][0]["seed"] == 0
    with run_lock(run_dir):
        assert run_main(train_torch.main, argv) == 1
        assert run_main(convert_checkpoint.main, ["to-weights", run_dir]) == 1
    assert capsys.readouterr().err.count("trains there already") == 2


def test_a_signal_after_a_divergence_keeps_the_state_before(tmp_path, photos, capsys):
    argv = [*TINY, "--train_glob", photos, "--checkpoint_dir", str(tmp_path), "--device", "cpu"]
    argv += ["--last_step", "9"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_training, "LOG_STEPS", 2)
        assert run_main(train_torch.main, [*argv, "--max_seconds", "0.000001"]) == 0
    diverging = [*argv, "--learning_rate", "1e30"]
    assert train_until(diverging, 5, lambda: os.kill(os.getpid(), signal.SIGINT)) == 1
    assert "not finite in" in capsys.readouterr().err
    state = train_state.load(run_dir_of(argv))
    assert state["global_step"] == 2
    with pytest.raises(UserError, match="weights are not finite at step 2; it is not saved"):
        train_state.save(run_dir_of(argv), state | {"weights": {"a": np.array([1, np.nan])}})
    assert train_state.load(run_dir_of(argv))["global_step"] == 2


def test_a_skipped_step_does_not_cost_the_state_at_a_signal(tmp_path, photos):
    argv = [*TINY, "--train_glob", photos, "--checkpoint_dir", str(tmp_path), "--device", "cpu"]
    argv += ["--last_step", "9", "--clip_norm", "1e6"]
    loss = Model.loss

    def at_step_3(model, weights, x, noise, dtype):
        out = loss(model, weights, x, noise, dtype)
        calls.append(out)
        return out | {"loss": out["loss"] * math.nan} if len(calls) == 4 else out

    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "loss", at_step_3)
        assert train_until(argv, 5, lambda: os.kill(os.getpid(), signal.SIGINT)) == 130
    state = train_state.load(run_dir_of(argv))
    assert state["global_step"] == 6 and all(np.isfinite(x).all() for x in state["weights"].values())


def test_what_a_resumed_run_starts_anew(tmp_path, photos):
    argv = [*TINY, "--train_glob", photos, "--checkpoint_dir", str(tmp_path), "--device", "cpu"]
    argv += ["--last_step", "60", "--warmup_steps", "0"]
    run_dir = run_dir_of(argv)
    state = train_state.initial(
        ModelConfig((6, 5, 4), (9, 5, 5), (4, 2, 2), likelihood_variance=0.01), seed=0
    )
    os.makedirs(run_dir)
    train_state.save_weights(run_dir, state | {"global_step": 50})
    assert (
        train_until([*argv, "--learning_rate", "1e-3"], 51, lambda: os.kill(os.getpid(), signal.SIGINT))
        == 130
    )
    resumed, kernel = train_state.load(run_dir), "sequential/layer_1/kernel_rdft"
    assert (resumed["global_step"], resumed["adam_step"]) == (52, 2)  # with weights alone, Adam starts anew
    moved = np.abs(resumed["weights"][kernel] - state["weights"][kernel])
    assert 1.8e-3 < moved.max() <= 2.1e-3  # two steps of the learning rate
    train_state.save(run_dir, resumed | {"ema": state["weights"]})  # not an average: `averaged` is False
    assert run_main(train_torch.main, [*argv, "--learning_rate", "1e-30", "--ema_decay", "0.9"]) == 0
    finished = train_state.load(run_dir)
    np.testing.assert_array_equal(finished["ema"][kernel], resumed["weights"][kernel])


def test_a_finished_run_stays_as_it_is(tmp_path, photos, capsys):
    argv = [*TINY, "--train_glob", photos, "--checkpoint_dir", str(tmp_path), "--device", "cpu"]
    argv += ["--last_step", "2"]
    assert run_main(train_torch.main, [*argv, "--ema_decay", "0.5"]) == 0
    before = contents(run_dir_of(argv))
    assert run_main(train_torch.main, argv) == 0
    assert f"{run_dir_of(argv)}: already at step 2" in capsys.readouterr().out
    assert contents(run_dir_of(argv)) == before


def contents(folder):
    """The bytes of all files in a folder, by path."""
    return {path: path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}


def test_a_later_tensorflow_checkpoint_is_not_passed_over(tmp_path, photos, capsys):
    argv = [*TINY, "--train_glob", photos, "--checkpoint_dir", str(tmp_path), "--device", "cpu"]
    argv += ["--last_step", "9"]
    run_dir = run_dir_of(argv)
    assert run_main(train_torch.main, argv) == 0
    for number in (8, 10):
        open(os.path.join(run_dir, f"model.ckpt-{number}.index"), "wb").close()
    before = contents(run_dir)
    another = [*argv[:-1], "12", "--init_run", os.path.basename(run_dir)]
    capsys.readouterr()
    assert run_main(train_torch.main, argv) == run_main(train_torch.main, another) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("the TensorFlow checkpoint of step 10; hand it" in line for line in lines)
    assert contents(run_dir) == before
    os.remove(os.path.join(run_dir, "model.ckpt-10.index"))
    assert run_main(train_torch.main, argv) == 0


def test_progress_is_printed_at_the_same_steps_after_an_interruption(tmp_path, photos, capsys, monkeypatch):
    monkeypatch.setattr(torch_training, "LOG_STEPS", 3)
    argv = [*TINY, "--train_glob", photos, "--checkpoint_dir", str(tmp_path), "--device", "cpu"]
    argv += ["--last_step", "10"]
    assert train_until(argv, 3, lambda: os.kill(os.getpid(), signal.SIGINT)) == 130
    assert run_main(train_torch.main, argv) == 0
    with open(os.path.join(run_dir_of(argv), "train_torch.csv"), encoding="utf-8") as file:
        assert [line.split(",")[0] for line in file] == ["3", "6", "9", "10"]


def test_a_loss_that_is_not_finite_is_told_and_not_saved(tmp_path, photos, capsys):
    argv = [*TINY, "--train_glob", photos, "--checkpoint_dir", str(tmp_path), "--last_step", "4"]
    argv += ["--device", "cpu", "--learning_rate", "1e30"]
    assert run_main(train_torch.main, argv) == 1
    assert "no state is saved yet" in capsys.readouterr().err
    assert train_state.load(run_dir_of(argv)) is None


def test_a_table_that_cannot_be_written_is_given_up(tmp_path, capsys):
    os.symlink("/dev/full", tmp_path / "train_torch.csv")
    log = train_torch.Log(str(tmp_path), 0)
    for step in (1, 2):
        log.write(step, [1, 2, 3, 4])
    assert capsys.readouterr().err.count("train_torch.csv is given up, the training goes on: No space") == 1


def test_photographs_that_cannot_be_used_are_named(tmp_path, photos, capsys):
    with pytest.raises(UserError, match="no photograph of at least 88 x 88 pixels"):
        torch_training.load_photos(photos, 88, 1.0, False, torch.device("cpu"), 1)
    lines = capsys.readouterr().err.splitlines()
    small = torch_training.load_photos(photos, 8, 0.2, False, torch.device("cpu"), 1)
    assert sorted(set(small.height.tolist()))[:2] == [16, 24]  # 0.2 and 0.3 of 80
    assert len(lines) == 3 and all(line.startswith("warning: left out: ") for line in lines)
    for name, words in (("a.png", "but has 96 x 80"), ("b.png", "88 x 88 pixels"), ("c.png", "damaged")):
        assert sum(name in line and words in line for line in lines) == 1


def test_a_new_run_starts_from_another_runs_weights(tmp_path, photos, capsys):
    argv = [*TINY, "--train_glob", photos, "--checkpoint_dir", str(tmp_path), "--device", "cpu"]
    short, long = ([*argv, "--last_step", str(steps)] for steps in (2, 3))
    assert run_main(train_torch.main, [*short, "--verbose"]) == 0
    name = os.path.basename(run_dir_of(short))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 2  ")]
    loss, per_pixel = re.match(r"step 2  loss (\S+) nats per crop, (\S+) per pixel  psnr ", line).groups()
    assert float(per_pixel) == pytest.approx(float(loss) / 32**2, rel=1e-3)
    assert run_main(train_torch.main, [*long, "--init_run", name, "--learning_rate", "1e-30"]) == 0
    before, after = (train_state.load(run_dir_of(each)) for each in (short, long))
    assert after["global_step"] == 3
    for key, value in before["weights"].items():
        np.testing.assert_array_equal(after["weights"][key], value)
    more = [*argv, "--last_step", "5"]
    assert run_main(train_torch.main, [*more, "--init_run", "none"]) == 1
    assert run_main(train_torch.main, [*more, "--num_filters", "6", "5", "3", "--init_run", name]) == 1
    lines = capsys.readouterr().err.splitlines()[-2:]
    assert lines[0].endswith("none: no such run") and "has --num_filters 6 5 4, but this run" in lines[1]


def test_a_learned_prior_that_is_new_starts_at_its_fit(tmp_path, photos, capsys):
    argv = [*TINY, "--train_glob", photos, "--checkpoint_dir", str(tmp_path), "--device", "cpu"]
    argv += ["--learning_rate", "1e-3", "--last_step"]
    plain, learned = [*argv, "2"], [*argv, "1", "--learned_prior", "--prior_lr", "1e-30"]
    assert run_main(train_torch.main, plain) == 0
    name = os.path.basename(run_dir_of(plain))
    weights = train_state.load(run_dir_of(plain))["weights"]
    learned += ["--init_run", name, "--learning_rate", "1e-30"]
    capsys.readouterr()
    assert run_main(train_torch.main, learned) == 0
    assert f"{name} has no learned prior; it is fitted to that run's latents" in capsys.readouterr().err
    fitted = train_state.load(run_dir_of(learned))["weights"]
    for key, value in weights.items():
        np.testing.assert_array_equal(fitted[key], value)
    config = ModelConfig.of(vars(train_torch.build_parser().parse_args(learned)))
    default = train_state.initial(config, seed=0)["weights"]
    assert kl_of(config, fitted, photos) < kl_of(config, {**default, **weights}, photos) - 1
    # The run that has the prior hands it on, also to one without.
    for more in (["--prior_lr", "0.5"], []):
        last = [*argv, "3", "--learned_prior", *more] if more else [*argv, "3"]
        last += ["--init_run", os.path.basename(run_dir_of(learned)), "--learning_rate", "1e-30"]
        assert run_main(train_torch.main, last) == 0
        assert train_state.has_prior(train_state.load(run_dir_of(last))["weights"]) == bool(more)
    assert "no learned prior" not in capsys.readouterr().err


def kl_of(config, weights, photos):
    """The KL term of 64 crops, in nats per crop."""
    device = torch.device("cpu")
    torch.manual_seed(5)
    crops = torch_training.random_crops(
        torch_training.load_photos(photos.replace("*", "a"), 32, 1.0, False, device, 1), 64, 32, False
    )
    tensors = {name: torch.tensor(value) for name, value in weights.items()}
    noise = torch.randn(64, 2, 2, config.num_channels)
    return float(Model(config, device).loss(tensors, crops, noise)["kl"])


def test_a_state_of_another_model_is_refused(tmp_path, photos, capsys):
    argv = [*TINY, "--train_glob", photos, "--checkpoint_dir", str(tmp_path), "--learned_prior"]
    run_dir = run_dir_of(argv)
    train_state.save(run_dir, train_state.initial(ModelConfig((6, 5, 4), (9, 5, 5), (4, 2, 2)), 0))
    assert run_main(train_torch.main, [*argv, "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the weights are those of another model: prior/matrix_0: expected shape (4, 3, 1), found" in error


def test_positionals_in_the_wrong_order_are_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        convert_checkpoint.main([str(tmp_path), "to-torch"])
    assert error.value.code == 2
    assert run_main(convert_checkpoint.main, ["to-torch", str(tmp_path / "none")]) == 1
    assert run_main(convert_checkpoint.main, ["to-tensorflow", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "invalid choice" in lines[0] and "no such run directory" in lines[1]
    assert "neither a checkpoint" in lines[2] and os.listdir(tmp_path) == []


def test_bad_input_is_one_line(tmp_path, photos, capsys):
    argv = ["--checkpoint_dir", str(tmp_path / "runs"), "--train_glob", str(tmp_path / "none*.png")]
    assert run_main(train_torch.main, argv) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "none*.png" in error
    assert run_main(train_torch.main, [*argv, "--train_glob", photos, "--device", "abacus"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--device: PyTorch has no device 'abacus'" in error
    assert not (tmp_path / "runs").exists()
