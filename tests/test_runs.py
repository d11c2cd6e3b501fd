"""Loading a run, and its functions."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import GOLDEN, GOLDEN_RUN
from small_runs import TINY

import bls2017_vae
from vbq import runs
from vbq.command import UserError
from vbq.files import load_npz, save_npz
from vbq.priors import DeepFactorizedPrior
from vbq.trainer import Trainer
from vbq.transforms import VAE

CHECKPOINTS = os.path.join(GOLDEN, "checkpoints")


@pytest.fixture(scope="module", name="run")
def fixture_run():
    return runs.load_run(CHECKPOINTS, GOLDEN_RUN)


@pytest.fixture(scope="module", name="expected")
def fixture_expected():
    return load_npz(os.path.join(GOLDEN, "expected.npz"))


def test_tensorflow_1_checkpoint_gives_the_originals_figures(run, expected, golden, china):
    assert run.step == 1500 and run.name == GOLDEN_RUN
    assert (run.num_channels, run.stride, run.margin, run.likelihood_variance) == (8, 16, 2, 0.001)
    mean, logvar = run.encode(china[None])
    np.testing.assert_allclose(mean, expected["mean"], atol=1e-4)
    np.testing.assert_allclose(logvar, expected["logvar"], atol=1e-4)
    np.testing.assert_allclose(run.decode(expected["mean"]), expected["x_hat_of_mean"], atol=1e-4)
    images = np.load(os.path.join(golden, "val_imgs_uint8.npy"), mmap_mode="r")
    for found, name in zip(run.encode(images), ("val_mean", "val_logvar")):
        np.testing.assert_allclose(found, expected[name], atol=1e-4)


def test_scripts_name_is_the_same():
    assert bls2017_vae.load_run is runs.load_run and bls2017_vae.Run is runs.Run


def test_fingerprint_is_pinned(run):
    assert run.fingerprint == "7371ca1f2772eba39f9b9db7429c8782b40b3ee167458ed7d8195b90b2d749ce"


def test_sides_that_are_no_multiple_of_the_stride_are_extended_and_cropped_again(run, china):
    odd = china[:100, :90]
    mean, _ = run.encode(odd[None])
    padded, _ = run.encode(np.pad(odd, [(0, 12), (0, 6), (0, 0)], mode="edge")[None])
    np.testing.assert_array_equal(mean, padded)
    x_hat = run.decode(mean, 100, 90)
    assert x_hat.shape == (1, 100, 90, 3) and x_hat.dtype == np.float32
    np.testing.assert_array_equal(x_hat, run.decode(mean)[:, :100, :90])


def test_uint8_and_float_images_and_any_batch_give_the_same(run, china, monkeypatch):
    images = np.stack([china, china[::-1]])
    mean, _ = run.encode(images)
    np.testing.assert_allclose(run.encode(images / 255)[0], mean, atol=1e-5)
    monkeypatch.setattr(runs, "BATCH_PIXELS", 1)
    np.testing.assert_allclose(run.encode(images)[0], mean, atol=1e-5)
    assert run.decode(mean).shape == images.shape


def test_likelihood_gradient_is_the_models(run, china):
    z, _ = run.encode(china[None])
    x_hat, gradient = run.likelihood_gradient(z, china[None])
    np.testing.assert_allclose(x_hat, run.decode(z), atol=1e-5)
    x = china[None].astype(np.float32) / np.float32(255)
    np.testing.assert_allclose(gradient, run.likelihood_gradient(z, x)[1], rtol=1e-4, atol=1e-3)
    assert gradient.shape == z.shape


def make_run(folder, name="run", **state):
    """A run directory with `args.json` and, if there is a state, `weights.npz`."""
    path = folder / name
    path.mkdir()
    (path / "args.json").write_text(json.dumps(dataclasses.asdict(TINY)))
    if state:
        save_npz(path / "weights.npz", state)
    return path


def test_run_of_weights_alone_in_half_precision(tmp_path):
    weights = VAE(TINY).named_weights()
    half = {name: value.astype(np.float16) for name, value in weights.items()}
    make_run(tmp_path, "run [ab]*", global_step=7, **half)
    run = runs.load_run(tmp_path, "run [ab]*")  # a name, not a glob
    assert run.step == 7 and run.stride == 4
    name = "sequential/layer_1/kernel_rdft"
    np.testing.assert_allclose(run.model.named_weights()[name], weights[name], atol=1e-3)


def test_bad_runs_are_told_in_one_line(tmp_path, golden):
    def failure(name):
        with pytest.raises(UserError) as error:
            runs.load_run(str(tmp_path), name)
        assert "\n" not in str(error.value) and name in str(error.value)
        return str(error.value)

    assert "no such run" in failure("missing")
    make_run(tmp_path, "empty")
    assert "has neither a checkpoint" in failure("empty")
    (make_run(tmp_path, "garbled") / "args.json").write_text("{")
    assert "args.json" in failure("garbled")
    (make_run(tmp_path, "list") / "args.json").write_text("[]")
    assert "args.json" in failure("list")
    (make_run(tmp_path, "incomplete") / "args.json").write_text("{}")
    assert "num_filters" in failure("incomplete")
    (make_run(tmp_path, "damaged") / "weights.npz").write_bytes(b"PK")
    assert "weights.npz" in failure("damaged")
    shutil.copytree(os.path.join(CHECKPOINTS, GOLDEN_RUN), tmp_path / "misfit")
    shutil.copy(tmp_path / "empty" / "args.json", tmp_path / "misfit")
    assert "the weights do not fit the model in args.json" in failure("misfit")


def save_as_original(folder, step, **arrays):
    """Writes a checkpoint as TensorFlow 1.15 does, and the original's `args.json`."""
    folder.mkdir()
    flags = {**dataclasses.asdict(TINY), "learned_prior": True, "history": [], "first_step": 0}
    (folder / "args.json").write_text(json.dumps(flags))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [tf.compat.v1.get_variable(n, initializer=v) for n, v in arrays.items()]
        session.run([variable.initializer for variable in variables])
        tf.compat.v1.train.Saver(variables).save(session, str(folder / "model.ckpt"), global_step=step)


def test_learned_prior_of_the_original_is_restored_and_trained_on(tmp_path):
    model = VAE(dataclasses.replace(TINY, learned_prior=True))
    rng = np.random.default_rng(1)
    weights = {
        name: rng.standard_normal(value.shape).astype(np.float32)
        for name, value in model.named_weights().items()
    }
    variables = {name.replace("prior/", "deep_factorized/"): value for name, value in weights.items()}
    slots = {f"{name}/Adam": np.zeros_like(value) for name, value in variables.items()}
    save_as_original(tmp_path / "run", 7, **variables, **slots, global_step=np.int64(7))
    run = runs.load_run(str(tmp_path), "run")
    assert run.step == 7 and run.config.learned_prior
    arrays = {name.removeprefix("prior/"): v for name, v in weights.items() if name.startswith("prior/")}
    z = rng.standard_normal((50, 3))
    expected = DeepFactorizedPrior.from_arrays(arrays).log_prob(z.T).T
    np.testing.assert_allclose(run.model.prior.log_prob(z.astype(np.float32)), expected, rtol=1e-4, atol=1e-4)
    trainer = Trainer(run.config, tf.distribute.get_strategy(), ema_decay=0.5)
    assert trainer.restore(str(tmp_path / "run")) and int(trainer.step) == 7
    for part in (trainer.weights, trainer.average):
        for name, value in weights.items():
            np.testing.assert_array_equal(part[name], value, err_msg=name)
    shifted = {**variables, "deep_factorized/matrix_1": np.zeros((3, 2, 3), np.float32)}
    save_as_original(tmp_path / "other", 7, **shifted)
    with pytest.raises(UserError, match="prior/matrix_1: expected shape"):
        runs.load_run(str(tmp_path), "other")


def test_run_names_are_no_patterns(tmp_path):
    shutil.copytree(os.path.join(CHECKPOINTS, GOLDEN_RUN), tmp_path / "run[1]*")
    assert runs.load_run(str(tmp_path), "run[1]*").step == 1500
    with pytest.raises(UserError, match="no such run"):
        runs.load_run(str(tmp_path), "run*")


def test_many_runs_in_one_process_print_nothing(caplog):
    """TensorFlow takes the functions of several runs for one function that is traced too often."""
    for _ in range(6):
        runs.load_run(CHECKPOINTS, GOLDEN_RUN).encode(np.zeros((1, 16, 16, 3), np.uint8))
    assert not [record for record in caplog.records if "retracing" in record.getMessage()]
