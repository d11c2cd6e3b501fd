"""The states of a run on disk."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import GOLDEN, GOLDEN_RUN
from small_runs import TINY

from vbq.checkpoints import CHECKPOINTS_KEPT, Saver, latest_state, named_weights, read_checkpoint
from vbq.command import UserError
from vbq.files import save_npz
from vbq.trainer import Trainer
from vbq.transforms import VAE


def make_saver(run_dir):
    """A saver of a variable, which it returns, too, with that of the step."""
    os.makedirs(run_dir, exist_ok=True)
    step, weight = tf.Variable(0, dtype=tf.int64), tf.Variable([1.0, 2.0])
    checkpoint = tf.train.Checkpoint(weights={"a/b": weight}, step=step)
    return Saver(str(run_dir), checkpoint, step, [weight]), step, weight


def test_a_directory_without_states_has_none(tmp_path):
    assert latest_state(str(tmp_path)) is None and latest_state(str(tmp_path / "none")) is None


def test_the_last_checkpoints_are_kept_and_read_by_name(tmp_path):
    saver, step, weight = make_saver(tmp_path / "run")
    for number in range(1, CHECKPOINTS_KEPT + 3):
        step.assign(number)
        weight.assign([number, 0.5])
        saver.save()
    names = {name for name in os.listdir(tmp_path / "run") if name.endswith(".index")}
    assert names == {f"model.ckpt-{number}.index" for number in range(3, CHECKPOINTS_KEPT + 3)}
    run_dir = tmp_path / "run[1]*"  # TensorFlow would take this for a pattern
    (tmp_path / "run").rename(run_dir)
    found, path, arrays = latest_state(str(run_dir))
    assert found == number and path == str(run_dir / f"model.ckpt-{number}")
    np.testing.assert_array_equal(named_weights(arrays)["a/b"], [number, 0.5])
    assert named_weights(arrays, "average") == {}


def test_unfinished_checkpoints_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / "model.ckpt-99_temp").mkdir()
    make_saver(tmp_path)
    assert os.listdir(tmp_path) == []


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    saver, step, weight = make_saver(tmp_path)
    step.assign(5)
    weight.assign([np.nan, 0])
    with pytest.raises(UserError, match="weights are not finite at step 5; the last checkpoint is kept"):
        saver.save()
    assert os.listdir(tmp_path) == []


def test_the_later_of_weights_and_checkpoint_counts(tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(os.path.join(GOLDEN, "checkpoints", GOLDEN_RUN), run_dir)
    weights = VAE(TINY).named_weights()
    save_npz(run_dir / "weights.npz", {**weights, "global_step": 1600})
    step, path, arrays = latest_state(str(run_dir))
    assert step == 1600 and path.endswith("weights.npz") and weights.keys() < arrays.keys()
    save_npz(run_dir / "weights.npz", {**weights, "global_step": 1400})
    assert latest_state(str(run_dir))[0] == 1500


def test_a_damaged_state_is_named_and_the_one_before_it_is_taken(tmp_path, capsys):
    saver, step, _ = make_saver(tmp_path)
    for number in (2, 5):
        step.assign(number)
        saver.save()
    data = tmp_path / "model.ckpt-5.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-4])
    (tmp_path / "weights.npz").write_bytes(b"PK")
    assert latest_state(str(tmp_path))[0] == 2
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2 and all(line.startswith("warning: left out: ") for line in warnings)
    assert "weights.npz" in warnings[0] and "model.ckpt-5: the checkpoint is damaged" in warnings[1]
    for number in (2, 5):
        (tmp_path / f"model.ckpt-{number}.index").write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):  # rather than no state, and a training that starts anew
        latest_state(str(tmp_path))


def test_state_of_a_trainer_has_weights_and_average_by_name(tmp_path):
    trainer = Trainer(TINY, tf.distribute.get_strategy(), ema_decay=0.5)
    trainer.saver(str(tmp_path)).save()
    arrays = read_checkpoint(str(tmp_path / "model.ckpt-0"))
    for part in ("weights", "average"):
        weights = named_weights(arrays, part)
        assert weights.keys() == trainer.weights.keys()
        for name, variable in trainer.weights.items():
            np.testing.assert_array_equal(weights[name], variable)
