"""What ends a training, and how the next start goes on: nothing is lost, and nothing is silently other."""

import os
import signal

import numpy as np
import pytest
import tensorflow as tf
from small_runs import (
    end_after,
    flags_of,
    log_of,
    run_dir_of,
    save_photographs,
    train_interrupted,
    weights_of,
)

import bls2017_vae
from vbq.checkpoints import latest_state, read_checkpoint
from vbq.command import UserError, run_main
from vbq.config import ModelConfig
from vbq.record import read_flags
from vbq.run_lock import LOCK_NAME, run_lock
from vbq.trainer import Trainer

pytestmark = pytest.mark.slow  # whole evaluations or trainings

TINY_AS_TRAINED = ModelConfig.of(vars(bls2017_vae.parse_args(flags_of("", ""))))


@pytest.fixture(name="photographs")
def fixture_photographs(tmp_path):
    """A glob of three pictures."""
    return save_photographs(str(tmp_path / "photographs"))


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_its_step_is_told(tmp_path, photographs, capsys, number, status):
    flags = flags_of(photographs, tmp_path, "--last_step", "9")
    with pytest.MonkeyPatch.context() as patch:
        end_after(patch, 3, lambda: os.kill(os.getpid(), number))
        try:
            found = run_main(bls2017_vae.main, flags)
        except SystemExit as error:
            found = error.code
    assert found == status
    run_dir = run_dir_of(flags)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{run_dir}: step 3 is saved, and the same command goes on from there"
    assert latest_state(run_dir)[0] == 3 and LOCK_NAME not in os.listdir(run_dir)


def raise_error(error):
    raise error


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (UserError("none of the photographs can be read any more"), "any more; step 3 is saved, and the"),
        (ZeroDivisionError("a bug"), None),
        (tf.errors.ResourceExhaustedError(None, None, "out of memory"), None),
    ],
)
def test_whatever_ends_a_training_leaves_a_checkpoint(tmp_path, photographs, capsys, error, words):
    flags = flags_of(photographs, tmp_path, "--last_step", "9")
    with pytest.MonkeyPatch.context() as patch:
        end_after(patch, 3, lambda: raise_error(error))
        if words:
            assert run_main(bls2017_vae.main, flags) == 1
        else:
            with pytest.raises(type(error)):  # a bug keeps its traceback
                bls2017_vae.main(flags)
    text = capsys.readouterr().err
    assert "step 3 is saved" in text and "None:" not in text and (not words or words in text)
    assert latest_state(run_dir_of(flags))[0] == 3


def test_side_outputs_that_cannot_be_written_do_not_end_the_training(tmp_path, photographs, capsys):
    flags = flags_of(photographs, tmp_path, "--last_step", "4")
    os.makedirs(run_dir_of(flags))
    os.symlink("/dev/full", os.path.join(run_dir_of(flags), "log.csv"))
    assert bls2017_vae.main(flags) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning == "warning: log.csv is given up, the training goes on: No space left on device"
    assert latest_state(run_dir_of(flags))[0] == 4


def test_a_second_process_is_refused_and_touches_nothing(tmp_path, photographs, capsys):
    flags = flags_of(photographs, tmp_path, "--last_step", "9")
    run_dir = run_dir_of(flags)
    with run_lock(run_dir):
        assert run_main(bls2017_vae.main, flags) == 1
        assert os.listdir(run_dir) == [LOCK_NAME]
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "trains there already" in error


def test_a_restart_names_changed_flags_and_cuts_the_log(tmp_path, photographs, capsys):
    """Also TensorBoard's events, as after a kill: rows of steps that have no checkpoint are there."""
    logs = tmp_path / "logs"
    flags = flags_of(photographs, tmp_path, "--last_step", "8", "--log_dir", str(logs))
    train_interrupted(flags, 5)
    run_dir = run_dir_of(flags)
    for end in ("index", "data-00000-of-00001"):
        os.rename(f"{run_dir}/model.ckpt-5.{end}", f"{run_dir}/model.ckpt-2.{end}")
    set_step(f"{run_dir}/model.ckpt-2", 2)
    assert [row["step"] for row in log_of(run_dir)] == ["1", "2", "3", "4"]
    capsys.readouterr()
    more = ["--batchsize", "2", "--seed", "3", "--save_checkpoint_secs", "99", "--min_scale", "0.5"]
    assert bls2017_vae.main([*flags, *more]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"{run_dir}: resumes at step 2 of 8",
        f"warning: {run_dir}: goes on with other flags than before: "
        "--seed 0 -> 3, --batchsize 4 -> 2, --min_scale 1.0 -> 0.5",
    ]
    assert [int(row["step"]) for row in log_of(run_dir)] == list(range(1, 9))
    assert tensorboard_steps(logs / os.path.basename(run_dir)) == list(range(1, 9))
    args = read_flags(run_dir)
    assert (args["batchsize"], args["first_step"]) == (2, 2)
    assert [(entry["batchsize"], entry["first_step"]) for entry in args["history"]] == [(4, 0)]
    assert bls2017_vae.load_run(*os.path.split(run_dir)).config == TINY_AS_TRAINED


def set_step(path, step):
    """Rewrites a checkpoint with another step in it."""
    arrays = read_checkpoint(path)
    assert arrays["step/.ATTRIBUTES/VARIABLE_VALUE"] >= step
    # `Trainer.restore` takes the step from the file's name, and then that of the checkpoint.
    trainer = Trainer(TINY_AS_TRAINED, tf.distribute.get_strategy())
    trainer.checkpoint.restore(path).expect_partial()
    trainer.step.assign(step)
    trainer.checkpoint.save_counter.assign(1)
    trainer.checkpoint.write(path)


def tensorboard_steps(folder):
    """The steps of the losses in a folder of TensorBoard, in the order of its files."""
    steps = []
    for path in sorted(folder.iterdir()):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            steps += [event.step for value in event.summary.value if value.tag == "loss"]
    return steps


def test_a_new_run_starts_from_the_weights_of_its_neighbour_if_asked_to(tmp_path, photographs, capsys):
    short, long = (flags_of(photographs, tmp_path, "--last_step", str(n)) for n in (2, 3))
    assert bls2017_vae.main(short) == 0
    neighbour, run_dir = os.path.basename(run_dir_of(short)), run_dir_of(long)
    capsys.readouterr()
    train_interrupted(long, 0)
    text = capsys.readouterr().err
    assert f"starts at step 0, though {neighbour} differs from it in --last_step only" in text
    assert f"--init_run {neighbour}" in text and "no step is saved" in text
    init = [*long, "--init_run", neighbour, "--learning_rate", "1e-30"]
    assert bls2017_vae.main(init) == 0
    assert capsys.readouterr().err == ""
    assert read_flags(run_dir)["init_run"] == neighbour and latest_state(run_dir)[0] == 3
    for name, value in weights_of(short).items():
        np.testing.assert_array_equal(weights_of(long)[name], value)
    assert run_main(bls2017_vae.main, [*long, "--last_step", "4", "--init_run", "none"]) == 1
    assert "--init_run: " in (text := capsys.readouterr().err) and "none: no such run" in text
    assert not os.path.exists(run_dir_of([*long, "--last_step", "4"]))


def test_a_learned_prior_that_is_new_starts_at_its_fit(tmp_path, photographs, capsys):
    plain = flags_of(photographs, tmp_path, "--last_step", "2")
    assert bls2017_vae.main(plain) == 0
    name = os.path.basename(run_dir_of(plain))
    learned = flags_of(photographs, tmp_path, "--last_step", "1", "--learned_prior", "--prior_lr", "1e-30")
    learned += ["--learning_rate", "1e-30"]
    assert bls2017_vae.main(learned) == 0
    (default,) = log_of(run_dir_of(learned))
    learned += ["--prior_init_scale", "1", "--init_run", name]  # another run's name
    capsys.readouterr()
    assert bls2017_vae.main(learned) == 0
    run_dir = run_dir_of(learned)
    assert capsys.readouterr().err == (
        f"{run_dir}: {name} has no learned prior; it is fitted to that run's latents\n"
    )
    (fitted,) = log_of(run_dir)
    assert float(fitted["kl"]) < float(default["kl"]) - 10
    weights = weights_of(learned)
    for key, value in weights_of(plain).items():
        np.testing.assert_array_equal(weights[key], value)
