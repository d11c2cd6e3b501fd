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


@pytest.mark.parametrize("name", ["run[1]", "ru*", "ru?"])
def test_old_checkpoints_are_deleted_whatever_the_path_and_no_others(tmp_path, name):
    """TensorFlow takes these paths for patterns: it would keep all, or delete those of the run beside."""
    beside = tmp_path / "run1"
    for folder in (beside, tmp_path / "run", tmp_path / name):
        saver, step, _ = make_saver(folder)
        for number in range(1, 6):
            step.assign(number)
            saver.save()
    for folder in (beside, tmp_path / "run", tmp_path / name):
        files = [f"model.ckpt-{n}.{end}" for n in (3, 4, 5) for end in ("data-00000-of-00001", "index")]
        assert sorted(os.listdir(folder)) == ["checkpoint", *files]
        assert latest_state(str(folder))[0] == 5
    assert tf.train.latest_checkpoint(str(beside)) == str(beside / "model.ckpt-5")
    state = tf.train.get_checkpoint_state(str(beside))
    assert [os.path.basename(path)[-1] for path in state.all_model_checkpoint_paths] == ["3", "4", "5"]


def test_the_checkpoint_just_written_is_kept_beside_damaged_ones_of_later_steps(tmp_path):
    for number in (90, 91, 92):
        (tmp_path / f"model.ckpt-{number}.index").write_bytes(b"")
    saver, step, _ = make_saver(tmp_path)
    for number in (3, 4):
        step.assign(number)
        saver.save()
    assert latest_state(str(tmp_path))[0] == 4
    assert not (tmp_path / "model.ckpt-3.index").exists()


def test_a_checkpoint_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    saver, step, _ = make_saver(tmp_path)
    step.assign(2)
    saver.save()
    files = sorted(os.listdir(tmp_path))

    def full(path):
        os.makedirs(f"{path}_temp")
        raise tf.errors.ResourceExhaustedError(None, None, f"{path}_temp/part;\nNo space left on device")

    monkeypatch.setattr(saver.checkpoint, "write", full)
    step.assign(3)
    with pytest.raises(
        UserError, match=r"checkpoint of step 3: .* No space left .* kept, that of step 2"
    ) as e:
        saver.save()
    assert "\n" not in str(e.value) and sorted(os.listdir(tmp_path)) == files
    assert "No space left" in saver.save_rest()  # and raises nothing


def test_of_one_step_the_checkpoint_counts_because_it_has_the_optimizer(tmp_path):
    saver, step, _ = make_saver(tmp_path)
    step.assign(5)
    saver.save()
    save_npz(tmp_path / "weights.npz", {"a/b": np.zeros(2), "global_step": 5})
    assert latest_state(str(tmp_path))[1] == str(tmp_path / "model.ckpt-5")


def original_prior(scope):
    """The variables of a learned prior as the original names them."""
    widths = (1, 3, 3, 3, 1)
    shapes = {f"matrix_{i}": (3, widths[i + 1], widths[i]) for i in range(4)}
    shapes |= {f"bias_{i}": (3, widths[i + 1], 1) for i in range(4)}
    shapes |= {f"factor_{i}": (3, 3, 1) for i in range(3)}
    return {scope + name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("scope", ["", "prior/", "vae/deep_factorized/"])
def test_learned_prior_of_the_original_is_found_in_any_scope(scope):
    arrays = original_prior(scope)
    arrays |= {name + "/Adam": value for name, value in arrays.items()}
    names = set(original_prior("prior/"))
    assert {name for name in named_weights(arrays) if name in names} == names
    del arrays[scope + "factor_2"]
    assert "prior/matrix_0" not in named_weights(arrays) or scope == "prior/"
    with pytest.raises(ValueError, match="several learned priors: a/matrix_0 and b/matrix_0"):
        named_weights(original_prior("a/") | original_prior("b/"))


def test_unfinished_checkpoints_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / "model.ckpt-99_temp").mkdir()
    make_saver(tmp_path)
    assert os.listdir(tmp_path) == []


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    saver, step, weight = make_saver(tmp_path)
    step.assign(5)
    weight.assign([np.nan, 0])
    with pytest.raises(UserError, match="weights are not finite at step 5; there is no checkpoint yet"):
        saver.save()
    assert os.listdir(tmp_path) == []
    weight.assign([1, 0])
    saver.save()
    step.assign(6)
    weight.assign([np.inf, 0])
    with pytest.raises(UserError, match="not finite at step 6; the last checkpoint is kept, that of step 5"):
        saver.save()


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
