"""The PyTorch trainer against the TensorFlow model: same loss, same gradients, same state."""

import os
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
from vbq.command import run_main
from vbq.config import ModelConfig
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


@pytest.mark.parametrize("dense_below", [0, 10, 1000])
@pytest.mark.parametrize(
    "filters, sizes, strides", [((6, 5, 4), (9, 5, 5), (4, 2, 2)), ((5, 4), (5, 3), (2, 3))]
)
def test_loss_and_gradients_are_those_of_tensorflow(filters, sizes, strides, dense_below):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    config = ModelConfig(filters, sizes, strides, likelihood_variance=0.01)
    vae = VAE(config)
    assert {k: v.shape for k, v in vae.named_weights().items()} == train_state.weight_shapes(config)
    for variable in vae.named_variables.values():
        variable.assign_add(0.05 * rng.standard_normal(variable.shape))  # GDN starts at too symmetric a point
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
    config = ModelConfig((40, 40, 40), (9, 5, 5), (4, 2, 2))
    mine = train_state.initial(config, seed=0)["weights"]
    for name, theirs in VAE(config).named_weights().items():
        assert mine[name].std() == pytest.approx(theirs.std(), rel=0.05, abs=1e-7), name
        assert mine[name].mean() == pytest.approx(theirs.mean(), abs=0.01), name


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
def test_state_goes_to_tensorflow_and_back(tmp_path, photos):
    argv = [*TINY, "--train_glob", photos, "--checkpoint_dir", str(tmp_path)]
    argv += ["--last_step", "3", "--ema_decay", "0.5"]
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
    assert int(trainer.optimizer.iterations) == int(trainer.step) == 3
    # Files for use come from either.
    convert_checkpoint.main(["to-weights", run_dir])
    assert load_npz(os.path.join(run_dir, "weights.npz"))["sequential/layer_0/bias"].dtype == np.float16


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


def test_a_new_run_starts_from_another_runs_weights(tmp_path, photos, capsys):
    argv = [*TINY, "--train_glob", photos, "--checkpoint_dir", str(tmp_path), "--device", "cpu"]
    short, long = ([*argv, "--last_step", str(steps)] for steps in (2, 3))
    assert run_main(train_torch.main, short) == 0
    name = os.path.basename(run_dir_of(short))
    capsys.readouterr()
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


def test_positionals_in_the_wrong_order_are_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        convert_checkpoint.main([str(tmp_path), "to-torch"])
    assert error.value.code == 2
    assert run_main(convert_checkpoint.main, ["to-torch", str(tmp_path / "none")]) == 1
    assert run_main(convert_checkpoint.main, ["to-tensorflow", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "invalid choice" in lines[0] and "no such run directory" in lines[1]
    assert "neither a checkpoint" in lines[2] and os.listdir(tmp_path) == []


def test_bad_input_is_one_line(tmp_path, capsys):
    argv = ["--checkpoint_dir", str(tmp_path / "runs"), "--train_glob", str(tmp_path / "none*.png")]
    for extra, expected in (([], "none*.png"), (["--learned_prior"], "learned_prior")):
        assert run_main(train_torch.main, [*argv, *extra]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and expected in error
    assert not (tmp_path / "runs").exists()
