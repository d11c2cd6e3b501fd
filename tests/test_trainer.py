"""A model in training: where it starts from, and a step that fails."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from small_runs import TINY

from vbq.command import UserError
from vbq.trainer import Trainer

LEARNED = dataclasses.replace(TINY, learned_prior=True)


def make_trainer(config=TINY, **options):
    return Trainer(config, tf.distribute.get_strategy(), **options)


def save(folder, trainer):
    """Makes a run directory of the state of a trainer."""
    folder.mkdir()
    (folder / "args.json").write_text(json.dumps(dataclasses.asdict(trainer.model.config)))
    trainer.step.assign(9)
    trainer.saver(str(folder)).save()


def test_start_from_another_run_takes_its_average_and_nothing_else(tmp_path):
    other = make_trainer(ema_decay=0.5)
    for variable in other.average.values():
        variable.assign_add(tf.ones_like(variable))
    save(tmp_path / "run", other)
    trainer = make_trainer(LEARNED, ema_decay=0.9)
    prior = {k: v for k, v in trainer.model.named_weights().items() if k.startswith("prior/")}
    assert trainer.start_from(str(tmp_path / "run"))  # the prior is still to be fitted
    assert int(trainer.step) == 0 and int(trainer.optimizer.iterations) == 0
    for part in (trainer.weights, trainer.average):
        for name, value in {**other.average, **prior}.items():  # the prior that it lacks stays as it was
            np.testing.assert_array_equal(part[name], value, err_msg=name)


def test_start_from_another_run_takes_its_learned_prior(tmp_path):
    other = make_trainer(LEARNED)
    save(tmp_path / "run", other)
    for config in (LEARNED, TINY):
        trainer = make_trainer(config)
        assert not trainer.start_from(str(tmp_path / "run"))
        for name, variable in trainer.weights.items():
            np.testing.assert_array_equal(variable, other.weights[name], err_msg=name)


def test_a_prior_that_is_fitted_lowers_the_kl_and_changes_nothing_else():
    trainer = make_trainer(LEARNED, ema_decay=0.9)
    before = trainer.model.named_weights()
    crops = np.random.default_rng(0).integers(256, size=(20, 4, 16, 16, 3), dtype=np.uint8)
    noise = np.random.default_rng(1).standard_normal((4, 4, 4, 3), np.float32)

    def kl():
        return float(trainer.model.loss(crops[-1] / np.float32(255), noise)["kl"])

    kl_before = kl()
    trainer.fit_prior(crops[:-1])
    assert kl() < kl_before - 10  # nats per crop, of 48 latents
    for name, value in trainer.model.named_weights().items():
        assert np.array_equal(value, before[name]) != name.startswith("prior/"), name
        np.testing.assert_array_equal(trainer.average[name], value)
    once = trainer.model.named_weights()
    trainer.fit_prior(crops[:-1])
    for name, value in trainer.model.named_weights().items():
        np.testing.assert_array_equal(value, once[name], err_msg=name)


def test_runs_that_cannot_be_started_from_are_told(tmp_path):
    save(tmp_path / "run", make_trainer())
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "args.json").write_text(json.dumps(dataclasses.asdict(TINY)))
    for config, name, words in (
        (TINY, "none", "none: no such run"),
        (TINY, "empty", "neither a checkpoint"),
        (dataclasses.replace(TINY, num_filters=(4, 4)), "run", r"--num_filters 4 3, but this run has 4 4"),
    ):
        with pytest.raises(UserError, match=words) as error:
            make_trainer(config).start_from(str(tmp_path / name))
        assert str(error.value).startswith("--init_run: ")


def test_a_step_that_fails_changes_no_weight():
    trainer = make_trainer()
    before = trainer.model.named_weights()
    kernel = trainer.model.synthesis_layers[0][0].kernel_parameter
    call = type(kernel).__call__

    def failing(parameter, compute_dtype=None):
        """A kernel whose gradient is an error; that of the last layer's is computed long before."""
        value = call(parameter, compute_dtype)
        if parameter is not kernel:
            return value

        @tf.custom_gradient
        def identity(x):
            return tf.identity(x), lambda dy: tf.debugging.check_numerics(dy + np.nan, "fails")

        return identity(value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(kernel), "__call__", failing)
        with pytest.raises(tf.errors.InvalidArgumentError):
            trainer.train_step(np.zeros((2, 16, 16, 3), np.uint8), tf.constant(0.1), tf.constant(0.1))
    assert int(trainer.step) == 0
    for name, value in trainer.model.named_weights().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
