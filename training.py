"""Training of the VAE: the step, the loop, and the checkpoints that it leaves and goes on from."""

import contextlib
import csv
import glob
import math
import os
import re
import shutil
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import train_data
import transforms
import utils

METRICS = ("loss", "elbo", "likelihood", "kl", "mse", "psnr")
CHECKPOINT_NAME = "model.ckpt"
WEIGHTS_NAME = "weights.npz"
CHECKPOINTS_KEPT = 3
LOG_SECS = 10  # between lines on the terminal


# The states of a run. A state is a checkpoint of this program, one of the original TensorFlow 1.15 program, or a file
# of named weights; all are read into a dict of arrays by their names in the file.


@contextlib.contextmanager
def literal(path):
    """Yields a path to the same checkpoint for TensorFlow, which takes `[`, `*` and `?` in the name of one for a pattern."""
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
      utils.UserError: the checkpoint is damaged.
    """
    try:
        with literal(path) as name:
            reader = tf.train.load_checkpoint(name)
            return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        raise utils.UserError(f"{path}: expected a checkpoint, found it damaged: {str(error).splitlines()[0]}") from error


def latest_state(run_dir):
    """Reads the latest state of a run; a damaged one is named in a warning and the one before it is taken.

    Args:
      run_dir: str. Its files tell which checkpoints there are, not the one called `checkpoint`, whose paths are stale
        once the directory has been moved.

    Returns:
      int step, str path, dict of arrays; or None if there is no state.

    Raises:
      utils.UserError: there are states, but all are damaged.
    """
    steps = {}  # of the states, by path
    damage = []
    for name in os.listdir(run_dir) if os.path.isdir(run_dir) else []:
        path = os.path.join(run_dir, name)
        match = re.fullmatch(re.escape(CHECKPOINT_NAME) + r"-(\d+)\.index", name)
        if match:
            steps[path.removesuffix(".index")] = int(match[1])
        elif name == WEIGHTS_NAME:
            try:
                steps[path] = int(utils.load_npz(path).get("global_step", 0))
            except utils.UserError as error:
                damage.append(error)
    for path in sorted(steps, key=steps.get, reverse=True):
        try:
            arrays = utils.load_npz(path) if path.endswith(".npz") else read_checkpoint(path)
            break
        except utils.UserError as error:
            damage.append(error)
    else:
        if damage:
            raise damage[0]
        return None
    for error in damage:
        print(f"warning: left out: {error}", file=sys.stderr)
    return steps[path], path, arrays


def named_weights(arrays, part="weights"):
    """Returns the named weights (see `transforms.VAE.named_variables`) in a state.

    Args:
      arrays: dict of arrays.
      part: str, "weights", or "average" for their moving average.

    Returns:
      dict of arrays; empty if the state has no such part.
    """
    if not any(name.startswith("weights/") for name in arrays):
        return arrays if part == "weights" else {}  # as the original's checkpoints and `weights.npz` have them
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    return {name.removeprefix(part + "/").removesuffix(suffix).replace(".S", "/"): value for name, value in arrays.items()
            if name.startswith(part + "/") and name.endswith(suffix) and ".OPTIMIZER_SLOT" not in name}


# The step.


def make_strategy(name):
    """Returns the `tf.distribute.Strategy` of one device, of all of this machine's, or of those of `TF_CONFIG`'s workers."""
    if name == "multiworker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "mirrored":
        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices(kind)])
    return tf.distribute.get_strategy()


def rank(strategy):
    """Returns the number of this process among those that train together, and how many they are."""
    resolver = strategy.cluster_resolver
    workers = resolver.cluster_spec().as_dict().get("worker", []) if resolver else []
    return (resolver.task_id, len(workers)) if workers else (0, 1)


class Trainer:
    """A model, its optimizers, the moving average of its weights, and the training step, on the devices of a strategy."""

    def __init__(self, model_args, strategy, seed=0, clip_norm=0., ema_decay=0.):
        """Makes the variables.

        Args:
          model_args: dict, arguments of `transforms.VAE`.
          strategy: tf.distribute.Strategy.
          seed: int, of the noise.
          clip_norm: float, bound of the gradient's norm over all variables; 0 for none.
          ema_decay: float in [0, 1), decay per step of the moving average of the weights; 0 for none.
        """
        self.strategy, self.seed, self.clip_norm, self.ema_decay = strategy, seed, clip_norm, ema_decay
        with strategy.scope():
            self.model = transforms.VAE(**model_args)
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="global_step")
            # Keras' older optimizer, because it is one fused operation per variable, and in its checkpoints moments go by the
            # names of the weights.
            adam = tf.keras.optimizers.legacy.Adam
            self.rate, self.prior_rate = (tf.Variable(0., trainable=False) for _ in range(2))
            self.optimizer = adam(lambda: self.rate, beta_1=.9, beta_2=.999, epsilon=1e-8)
            self.prior_optimizer = adam(lambda: self.prior_rate, beta_1=.9, beta_2=.999, epsilon=1e-8)
            self.weights = self.model.named_variables
            self.average = {}
            if ema_decay:
                self.average = {name: tf.Variable(variable, trainable=False) for name, variable in self.weights.items()}
        self.variables = [v for name, v in self.weights.items() if not name.startswith("prior/")]
        self.prior_variables = [v for name, v in self.weights.items() if name.startswith("prior/")]
        parts = dict(weights=self.weights, optimizer=self.optimizer, step=self.step)
        if self.prior_variables:
            parts["prior_optimizer"] = self.prior_optimizer
        if self.average:
            parts["average"] = self.average
        self.checkpoint = tf.train.Checkpoint(**parts)

    def restore(self, run_dir):
        """Goes on from the latest state in a directory, if there is one.

        From weights alone, optimizers start anew.

        Raises:
          utils.UserError: all states are damaged, or the latest does not fit the model.
        """
        state = latest_state(run_dir)
        if not state:
            return
        step, path, arrays = state
        weights = named_weights(arrays)
        try:
            self.model.set_named_weights(weights)
        except ValueError as error:
            raise utils.UserError(f"{path}: expected the weights of this model, found others: {error}") from error
        weights = named_weights(arrays, "average") or weights
        for name, variable in self.average.items():
            variable.assign(weights[name])
        self.step.assign(step)
        if weights is not arrays:
            with literal(path) as name:
                self.checkpoint.restore(name).expect_partial()

    @tf.function
    def train_step(self, x, rate, prior_rate):
        """Updates the weights once.

        Args:
          x: uint8 [B, H, W, 3], or a distributed value of one such part of the batch per replica.
          rate, prior_rate: float32 scalars, learning rates of the transforms and of the prior.

        Returns:
          float32 [6], the `METRICS` before the update.
        """
        self.rate.assign(rate)
        self.prior_rate.assign(prior_rate)
        metrics = self.strategy.run(self._replica_step, args=(x,))
        for name, average in self.average.items():
            self.strategy.extended.update(
                average, lambda average, value: average.assign_add((1 - self.ema_decay) * (value - average)),
                args=(self.weights[name],))
        self.step.assign_add(1)
        return self.strategy.reduce("MEAN", metrics, axis=None)

    def _replica_step(self, x):
        """As `train_step`, for one replica's part of the batch; gradients are means over all replicas."""
        context = tf.distribute.get_replica_context()
        x, noise = self._inputs(x, context)
        with tf.GradientTape() as tape:
            outputs = self.model.loss(x, noise)
        gradients = tape.gradient(outputs["loss"], self.variables + self.prior_variables)
        if self.strategy.num_replicas_in_sync > 1:
            gradients = context.all_reduce("MEAN", gradients)
        if self.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm)
        count = len(self.variables)
        for optimizer, pairs in ((self.optimizer, list(zip(gradients, self.variables))),
                                 (self.prior_optimizer, list(zip(gradients[count:], self.prior_variables)))):
            if pairs:
                optimizer.apply_gradients(pairs, experimental_aggregate_gradients=False)
        return tf.stack([outputs[name] for name in METRICS])

    def _inputs(self, x, context):
        """Returns pixels in [0, 1] and the noise of this step: the same for an image, whichever replica has it."""
        size, height, width, _ = x.shape
        stride = self.model.stride
        noise = tf.random.stateless_normal(
            [size * context.num_replicas_in_sync, height // stride, width // stride, self.model.num_channels],
            seed=tf.stack([tf.constant(self.seed, tf.int64), self.step]))
        first = context.replica_id_in_sync_group * size
        return tf.cast(x, tf.float32) / 255, noise[first:first + size]

    def distribute(self, x):
        """Splits this process' part of a batch, uint8 [B, H, W, 3], over its replicas."""
        replicas = self.strategy.num_replicas_in_sync // rank(self.strategy)[1]
        parts = np.split(x, replicas)
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group % replicas]))

    def all_finite(self):
        """Whether all weights are finite numbers."""
        return all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in self.variables + self.prior_variables)


# The loop.


class Means:
    """Means of the metrics since they were last taken."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.total, self.steps, self.since = np.zeros(len(METRICS)), 0, time.monotonic()

    def add(self, values):
        self.total += values
        self.steps += 1

    def take(self):
        """Returns dict of float, the `METRICS` and `steps_per_second`, and starts anew."""
        seconds = time.monotonic() - self.since
        means = dict(zip(METRICS, (self.total / self.steps).tolist()), steps_per_second=self.steps / seconds)
        self.reset()
        return means


class Log:
    """What is seen of a training: lines on the terminal, `log.csv` in the run directory, TensorBoard."""

    def __init__(self, run_dir, summary_dir, verbose, summary_secs):
        """Opens the files; an empty `summary_dir` means no TensorBoard."""
        self.path = os.path.join(run_dir, "log.csv")
        self.verbose, self.summary_secs = verbose, summary_secs
        self.writer = None
        if summary_dir:
            os.makedirs(summary_dir, exist_ok=True)
            self.writer = tf.summary.create_file_writer(summary_dir)
        self.for_terminal, self.for_summary = Means(), Means()
        self.pending, self.steps = None, 0

    def add(self, step, metrics):
        """Takes the metrics of a step, but reads those of the step before: the device need not wait."""
        self.flush()
        self.pending = step, metrics

    def flush(self):
        """Reads the metrics last added.

        Raises:
          utils.UserError: the loss is no finite number.
        """
        if not self.pending:
            return
        step, metrics = self.pending
        self.pending = None
        values = metrics.numpy()
        if not math.isfinite(values[0]):
            raise utils.UserError(f"expected a finite loss, found {values[0]} at step {step}; the last checkpoint is kept. A "
                                  "lower --learning_rate, or --clip_norm and --warmup_steps, may help")
        self.steps = step + 1
        self.for_terminal.add(values)
        self.for_summary.add(values)

    def write(self, model, x, force=False):
        """Writes what is due; `x`, uint8 [B, H, W, 3], is the batch last trained on."""
        now = time.monotonic()
        if self.verbose and (force or now - self.for_terminal.since >= LOG_SECS) and self.for_terminal.steps:
            means = self.for_terminal.take()
            tqdm.write(f"step {self.steps}  loss {means['loss']:.1f}  psnr {means['psnr']:.2f}  "
                       f"{means['steps_per_second']:.2f} steps/s")
            sys.stdout.flush()
        if (force or now - self.for_summary.since >= self.summary_secs) and self.for_summary.steps:
            self._summarize(self.for_summary.take(), model, x[:2])

    def _summarize(self, means, model, x):
        new = not os.path.exists(self.path)
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["step", *means])
            if new:
                table.writeheader()
            table.writerow({"step": self.steps, **{name: f"{value:.6g}" for name, value in means.items()}})
        if self.writer:
            x = tf.cast(x, tf.float32) / 255
            mean, _ = model.analysis(x)
            with self.writer.as_default(self.steps):
                for name in METRICS:
                    tf.summary.scalar(name, means[name])
                tf.summary.image("original", x)
                tf.summary.image("reconstruction", tf.clip_by_value(model.synthesis(mean), 0, 1))
            self.writer.flush()


class Saver:
    """Writes checkpoints; the last few are kept."""

    def __init__(self, trainer, run_dir, secs):
        for name in os.listdir(run_dir):  # what a killed run was about to write
            if name.startswith(CHECKPOINT_NAME) and name.endswith("_temp"):
                shutil.rmtree(os.path.join(run_dir, name), ignore_errors=True)
        self.trainer, self.secs, self.last = trainer, secs, time.monotonic()
        self.manager = tf.train.CheckpointManager(trainer.checkpoint, run_dir, CHECKPOINTS_KEPT,
                                                  checkpoint_name=CHECKPOINT_NAME, step_counter=trainer.step)

    def due(self):
        return time.monotonic() - self.last >= self.secs

    def save(self):
        """Raises: utils.UserError: a weight is no finite number, or the directory cannot be written."""
        if not self.trainer.all_finite():
            raise utils.UserError(f"expected finite weights, found others at step {self.trainer.step.numpy()}; the last "
                                  "checkpoint is kept")
        try:
            self.manager.save(checkpoint_number=int(self.trainer.step.numpy()))
        except tf.errors.OpError as error:
            raise utils.UserError(f"{self.manager.directory}: expected to write a checkpoint, found: {error.message}") from error
        self.last = time.monotonic()


def train(args, run_dir, learning_rate, record):
    """Trains until `args.last_step`, from the latest state in the run directory on.

    Args:
      args: argparse.Namespace, the flags of `bls2017_vae.py`.
      run_dir: str.
      learning_rate: function of int step.
      record: function of int step and int number of photographs, called when all input has proved good and before
        anything is written; it makes the run directory.

    Raises:
      utils.UserError: bad input, or a loss that is no finite number; the last checkpoint is then kept.
    """
    strategy = make_strategy(args.strategy)
    worker, workers = rank(strategy)
    if args.batchsize % strategy.num_replicas_in_sync:
        raise utils.UserError(f"--batchsize: expected a multiple of the {strategy.num_replicas_in_sync} devices, "
                              f"found {args.batchsize}")
    photographs = train_data.Photographs(args.train_glob, args.patchsize, args.preprocess_threads)
    model_args = {name: getattr(args, name) for name in (
        "num_filters", "filter_dims", "sampling_rates", "learned_prior", "prior_init_scale", "likelihood_variance",
        "mixed_precision")}
    trainer = Trainer(model_args, strategy, args.seed, args.clip_norm, args.ema_decay)
    trainer.restore(run_dir)
    first = int(trainer.step.numpy())
    if first >= args.last_step:
        print(f"{run_dir}: already at step {first}")
        return
    chief = worker == 0
    log = Log(run_dir, os.path.join(args.log_dir, os.path.basename(run_dir)) if chief and args.log_dir else "",
              args.verbose, args.save_summary_secs)
    if chief:
        record(first, len(photographs))
        saver = Saver(trainer, run_dir, args.save_checkpoint_secs)
    size = args.batchsize // workers
    crops = ([step * args.batchsize + worker * size + i for i in range(size)] for step in range(first, args.last_step))
    batches = photographs.batches(crops, args.preprocess_threads, seed=args.seed, flip=args.flip, min_scale=args.min_scale)
    try:
        with contextlib.closing(batches):  # and its threads
            for step, x in enumerate(utils.progress(batches, initial=first, total=args.last_step), first):
                rate = learning_rate(step)
                metrics = trainer.train_step(trainer.distribute(x), tf.constant(rate, tf.float32),
                                             tf.constant(args.prior_lr * rate / args.learning_rate, tf.float32))
                log.add(step, metrics)
                if chief:
                    log.write(trainer.model, x)
                    if saver.due():
                        log.flush()
                        saver.save()
        log.flush()
        if chief:
            log.write(trainer.model, x, force=True)
            saver.save()
    except KeyboardInterrupt:
        if chief:
            saver.save()
        raise
    except tf.errors.UnavailableError as error:
        raise utils.UserError(f"expected {workers} workers, lost one after step {log.steps}; started again, all go on from "
                              "the last checkpoint") from error
