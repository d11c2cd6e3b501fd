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

from vbq.command import UserError, note, reason
from vbq.files import atomic_write, load_npz

CHECKPOINT_NAME = "model.ckpt"
WEIGHTS_NAME = "weights.npz"
CHECKPOINTS_KEPT = 3
PRIOR_LAYERS = 4  # of the original's learned prior

_FILE_OF_CHECKPOINT = re.compile(re.escape(CHECKPOINT_NAME) + r"-(\d+)\.(index|meta|data-\d+-of-\d+)")


class Unsaved(UserError):
    """A training ends without a checkpoint of its last steps: not worth one, or it cannot be written."""


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
    # Of the same step, a checkpoint comes before `weights.npz`: it has the state of the optimizers, too.
    for path in sorted(steps, key=lambda path: (steps[path], not path.endswith(".npz")), reverse=True):
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
        match = _FILE_OF_CHECKPOINT.fullmatch(name)
        if match and match[2] == "index":
            steps[path.removesuffix(".index")] = int(match[1])
        elif name == WEIGHTS_NAME:
            try:
                steps[path] = int(load_npz(path, ["global_step"]).get("global_step", 0))
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

    Raises:
      ValueError: a checkpoint of the original holds several learned priors.
    """
    if not is_ours(arrays):  # the original's checkpoints and `weights.npz` have the weights' own names
        return arrays | _original_prior(arrays) if part == "weights" else {}
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    return {
        name.removeprefix(part + "/").removesuffix(suffix).replace(".S", "/"): value
        for name, value in arrays.items()
        if name.startswith(part + "/") and name.endswith(suffix) and ".OPTIMIZER_SLOT" not in name
    }


def is_ours(arrays):
    """Whether a state, dict of arrays, is a checkpoint of this program."""
    return any(name.startswith("weights/") for name in arrays)


def _original_prior(arrays):
    """Returns the learned prior in a checkpoint of the original, by our names; empty if it has none.

    The original's variables are `matrix_0` to `matrix_3` and so on, in any scope. Shapes are those of
    `tfc.DeepFactorized`.
    """
    names = [f"{kind}_{layer}" for kind in ("matrix", "bias") for layer in range(PRIOR_LAYERS)]
    names += [f"factor_{layer}" for layer in range(PRIOR_LAYERS - 1)]
    scopes = {name.removesuffix("matrix_0") for name in arrays if name.split("/")[-1] == "matrix_0"}
    complete = [scope for scope in sorted(scopes) if all(scope + name in arrays for name in names)]
    if len(complete) > 1:
        raise ValueError(f"several learned priors: {' and '.join(scope + 'matrix_0' for scope in complete)}")
    return {f"prior/{name}": arrays[complete[0] + name] for name in names} if complete else {}


def kept(run_dir):
    """Returns a clause, for an error of training, on which step of a run is kept, if any."""
    steps, _ = _find_states(run_dir)
    if not steps:
        return "there is no checkpoint yet"
    return f"the last checkpoint is kept, that of step {max(steps.values())}"


class Saver:
    """Writes the checkpoints of a training, and keeps the last `CHECKPOINTS_KEPT` of them.

    `tf.train.CheckpointManager` is not used: it takes a path with `[`, `*` or `?` for a pattern when it
    deletes old checkpoints.
    """

    def __init__(self, run_dir, checkpoint, step, weights, secs=0):
        """Removes what a killed run has left unfinished.

        Args:
          run_dir: str.
          checkpoint: tf.train.Checkpoint, what is saved.
          step: tf.Variable, int64, the number of the checkpoint.
          weights: list of tf.Variable, which must be finite to be saved.
          secs: float, seconds between two checkpoints.
        """
        self.run_dir, self.checkpoint, self.step, self.weights = run_dir, checkpoint, step, weights
        self.secs, self.last = secs, time.monotonic()
        self.saved = int(step.numpy())  # steps until here need no checkpoint
        self._remove_unfinished()

    def due(self):
        """Whether it is time for the next checkpoint."""
        return time.monotonic() - self.last >= self.secs

    def save(self):
        """Writes a checkpoint, and deletes those that are too old.

        Raises:
          Unsaved: a weight is no finite number, or the directory cannot be written.
        """
        step = int(self.step.numpy())
        if not all(bool(tf.reduce_all(tf.math.is_finite(weight))) for weight in self.weights):
            raise Unsaved(f"weights are not finite at step {step}; {kept(self.run_dir)}")
        try:
            self.checkpoint.save_counter.assign_add(1)
            self.checkpoint.write(os.path.join(self.run_dir, f"{CHECKPOINT_NAME}-{step}"))
            self._tidy(step)
        except (tf.errors.OpError, OSError, UserError) as error:
            self._remove_unfinished()
            raise Unsaved(
                f"{self.run_dir}: cannot write the checkpoint of step {step}: "
                f"{reason(error)}; {kept(self.run_dir)}"
            ) from error
        self.saved, self.last = step, time.monotonic()

    def save_rest(self):
        """Writes a checkpoint of the steps since the last one, for a training that an exception ends.

        Returns:
          str, a clause on which step is saved, or on why none could be.
        """
        try:
            if int(self.step.numpy()) != self.saved:
                self.save()
        except UserError as error:
            return str(error)
        if not _find_states(self.run_dir)[0]:
            return "no step is saved"
        return f"step {self.saved} is saved, and the same command goes on from there"

    def _tidy(self, step):
        """Deletes all checkpoints but the last ones, and names these in the file `checkpoint`."""
        files = {}
        for name in os.listdir(self.run_dir):
            match = _FILE_OF_CHECKPOINT.fullmatch(name)
            if match:
                files.setdefault(int(match[1]), []).append(name)
        whole = [number for number, names in files.items() if any(n.endswith(".index") for n in names)]
        # A damaged checkpoint of a later step may be there; the one just written is kept in any case.
        remaining = sorted({step, *sorted(whole)[-CHECKPOINTS_KEPT:]})
        lines = [f'model_checkpoint_path: "{CHECKPOINT_NAME}-{step}"\n']
        lines += [f'all_model_checkpoint_paths: "{CHECKPOINT_NAME}-{number}"\n' for number in remaining]
        with (
            atomic_write(os.path.join(self.run_dir, "checkpoint")) as path,
            open(path, "w", encoding="utf-8") as file,
        ):
            file.writelines(lines)
        for number in set(whole) - set(remaining):
            # The index first: without it, the others are no checkpoint, rather than a damaged one.
            for name in sorted(files[number], key=lambda name: not name.endswith(".index")):
                os.remove(os.path.join(self.run_dir, name))

    def _remove_unfinished(self):
        for name in os.listdir(self.run_dir) if os.path.isdir(self.run_dir) else []:
            if name.startswith(CHECKPOINT_NAME) and name.endswith("_temp"):
                shutil.rmtree(os.path.join(self.run_dir, name), ignore_errors=True)
