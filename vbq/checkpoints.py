"""The states of a run on disk.

A state is a checkpoint of this program, a checkpoint of the original program (TensorFlow 1.15), or
`weights.npz`, a file of named weights. All are read into a dict of arrays by their names in the file.
"""

import contextlib
import glob
import os
import re
import shutil
import tempfile
import time

import tensorflow as tf

from vbq.command import UserError, note
from vbq.files import load_npz

CHECKPOINT_NAME = "model.ckpt"
WEIGHTS_NAME = "weights.npz"
CHECKPOINTS_KEPT = 3


@contextlib.contextmanager
def literal(path):
    """Yields a path to the same checkpoint that has none of the characters `[`, `*` and `?`.

    TensorFlow would take a path with these characters for a pattern.

    Args:
      path: str, prefix of the checkpoint's files.
    """
    if glob.escape(path) == path:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, "run")
        os.symlink(os.path.abspath(os.path.dirname(path)), link)
        yield os.path.join(link, os.path.basename(path))


def read_checkpoint(path):
    """Reads every tensor of a checkpoint, which verifies their checksums.

    Args:
      path: str, prefix of the checkpoint's files.

    Returns:
      dict of arrays.

    Raises:
      UserError: the checkpoint is damaged.
    """
    try:
        with literal(path) as name:
            reader = tf.train.load_checkpoint(name)
            return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"{path}: the checkpoint is damaged: {str(error).splitlines()[0]}") from error


def latest_state(run_dir):
    """Reads the latest state of a run.

    If the latest state is damaged, a warning names it and the state before it is taken.

    Args:
      run_dir: str. The files in it tell which checkpoints there are. The file `checkpoint` does not: its
        paths are wrong once the directory has been moved.

    Returns:
      int step, str path, dict of arrays; or None if there is no state.

    Raises:
      UserError: there are states, but all are damaged.
    """
    steps, damage = _find_states(run_dir)
    for path in sorted(steps, key=steps.get, reverse=True):
        try:
            arrays = load_npz(path) if path.endswith(".npz") else read_checkpoint(path)
            break
        except UserError as error:
            damage.append(error)
    else:
        if damage:
            raise damage[0]
        return None
    for error in damage:
        # Not through absl.logging: all commands that load a run come here, and only a training sets up its
        # logging.
        note(f"warning: left out: {error}")
    return steps[path], path, arrays


def _find_states(run_dir):
    """Returns the steps of a run's states by path, and the errors of those whose step cannot be read."""
    steps, damage = {}, []
    for name in os.listdir(run_dir) if os.path.isdir(run_dir) else []:
        path = os.path.join(run_dir, name)
        match = re.fullmatch(re.escape(CHECKPOINT_NAME) + r"-(\d+)\.index", name)
        if match:
            steps[path.removesuffix(".index")] = int(match[1])
        elif name == WEIGHTS_NAME:
            try:
                steps[path] = int(load_npz(path).get("global_step", 0))
            except UserError as error:
                damage.append(error)
    return steps, damage


def named_weights(arrays, part="weights"):
    """Picks the named weights (see `vbq.transforms.VAE.named_variables`) from a state.

    Args:
      arrays: dict of arrays.
      part: str, "weights", or "average" for their moving average.

    Returns:
      dict of arrays; empty if the state has no such part.
    """
    if not any(name.startswith("weights/") for name in arrays):
        # The original's checkpoints and `weights.npz` have the weights' own names.
        return arrays if part == "weights" else {}
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    return {
        name.removeprefix(part + "/").removesuffix(suffix).replace(".S", "/"): value
        for name, value in arrays.items()
        if name.startswith(part + "/") and name.endswith(suffix) and ".OPTIMIZER_SLOT" not in name
    }


class Saver:
    """Writes the checkpoints of a training, and keeps the last `CHECKPOINTS_KEPT` of them."""

    def __init__(self, run_dir, checkpoint, step, weights, secs=0):
        """Removes what a killed run has left unfinished.

        Args:
          run_dir: str.
          checkpoint: tf.train.Checkpoint, what is saved.
          step: tf.Variable, int64, the number of the checkpoint.
          weights: list of tf.Variable, which must be finite to be saved.
          secs: float, seconds between two checkpoints.
        """
        for name in os.listdir(run_dir):
            if name.startswith(CHECKPOINT_NAME) and name.endswith("_temp"):
                shutil.rmtree(os.path.join(run_dir, name), ignore_errors=True)
        self.step, self.weights, self.secs, self.last = step, weights, secs, time.monotonic()
        self.manager = tf.train.CheckpointManager(
            checkpoint, run_dir, CHECKPOINTS_KEPT, checkpoint_name=CHECKPOINT_NAME, step_counter=step
        )

    def due(self):
        """Whether it is time for the next checkpoint."""
        return time.monotonic() - self.last >= self.secs

    def save(self):
        """Writes a checkpoint.

        Raises:
          UserError: a weight is no finite number, or the directory cannot be written.
        """
        step = int(self.step.numpy())
        if not all(bool(tf.reduce_all(tf.math.is_finite(weight))) for weight in self.weights):
            raise UserError(f"weights are not finite at step {step}; the last checkpoint is kept")
        try:
            self.manager.save(checkpoint_number=step)
        except tf.errors.OpError as error:
            raise UserError(
                f"{self.manager.directory}: cannot write a checkpoint: {error.message}"
            ) from error
        self.last = time.monotonic()
