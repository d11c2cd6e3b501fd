"""The loop of training, and what it shows of itself: lines on the terminal, `log.csv`, and TensorBoard."""

import contextlib
import csv
import math
import os
import time

import numpy as np
import tensorflow as tf
from absl import logging

from vbq.command import UserError, progress
from vbq.photographs import Photographs
from vbq.record import write_record
from vbq.trainer import METRICS, Trainer, make_strategy, rank

LOG_SECS = 10  # between two lines on the terminal


class Means:
    """Means of the metrics of the steps since they were last taken."""

    def __init__(self):
        self.reset()

    def reset(self):
        """Starts anew."""
        self.total, self.steps, self.since = np.zeros(len(METRICS)), 0, time.monotonic()

    def add(self, values):
        """Adds the `METRICS` of a step, float [6]."""
        self.total += values
        self.steps += 1

    def take(self):
        """Returns dict of float, the `METRICS` and `steps_per_second`, and starts anew."""
        seconds = time.monotonic() - self.since
        means = dict(zip(METRICS, (self.total / self.steps).tolist()))
        means["steps_per_second"] = self.steps / seconds
        self.reset()
        return means


class Log:
    """What a training shows of itself."""

    def __init__(self, run_dir, summary_dir, summary_secs):
        """Opens the files.

        Args:
          run_dir: str.
          summary_dir: str, of TensorBoard's files; empty for no TensorBoard.
          summary_secs: float, seconds between two rows of `log.csv` and two summaries of TensorBoard.
        """
        self.path = os.path.join(run_dir, "log.csv")
        self.summary_secs = summary_secs
        self.writer = None
        if summary_dir:
            os.makedirs(summary_dir, exist_ok=True)
            self.writer = tf.summary.create_file_writer(summary_dir)
        self.for_terminal, self.for_summary = Means(), Means()
        self.pending, self.steps = None, 0

    def add(self, step, metrics):
        """Takes the metrics of a step, and reads those of the step before.

        The device need not wait for the reader then.

        Args:
          step: int, from 0.
          metrics: float32 tensor [6], the `METRICS`.

        Raises:
          UserError: the loss of the step before is no finite number.
        """
        self.flush()
        self.pending = step, metrics

    def flush(self):
        """Reads the metrics that were added last.

        Raises:
          UserError: the loss is no finite number.
        """
        if not self.pending:
            return
        step, metrics = self.pending
        self.pending = None
        values = metrics.numpy()
        if not math.isfinite(values[0]):
            raise UserError(
                f"the loss is {values[0]} at step {step}; the last checkpoint is kept. Try a lower "
                "--learning_rate, --warmup_steps or --clip_norm"
            )
        self.steps = step + 1
        self.for_terminal.add(values)
        self.for_summary.add(values)

    def write(self, model, x, force=False):
        """Writes what is due.

        Args:
          model: VAE.
          x: uint8 [B, H, W, 3], the batch of the last step.
          force: bool, whether everything is due.
        """
        now = time.monotonic()
        if (force or now - self.for_terminal.since >= LOG_SECS) and self.for_terminal.steps:
            logging.info(
                "step %d  loss %.1f  psnr %.2f  %.2f steps/s",
                self.steps,
                *map(self.for_terminal.take().get, ("loss", "psnr", "steps_per_second")),
            )
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


def train(run_dir, model_config, config, flags):
    """Trains a model until `config.last_step`, from the latest state in the run directory on.

    Nothing is written until all input has proved good.

    Args:
      run_dir: str; made if it is not there.
      model_config: ModelConfig.
      config: TrainingConfig.
      flags: dict, all flags of the command, for `args.json` and `record.txt`.

    Raises:
      UserError: bad input, or a loss or a weight that is no finite number. The last checkpoint is kept.
      OSError: a file cannot be written.
    """
    strategy = make_strategy(config.strategy)
    worker, workers = rank(strategy)
    if config.batchsize % strategy.num_replicas_in_sync:
        raise UserError(
            f"--batchsize {config.batchsize}: must be a multiple of {strategy.num_replicas_in_sync}, the "
            "number of devices"
        )
    photographs = Photographs(config.train_glob, config.patchsize, config.preprocess_threads)
    trainer = Trainer(
        model_config, strategy, config.seed, config.clip_norm, config.ema_decay, config.mixed_precision
    )
    trainer.restore(run_dir)
    first = int(trainer.step.numpy())
    if first >= config.last_step:
        print(f"{run_dir}: already at step {first}")
        return
    is_chief = worker == 0
    summary_dir = (
        os.path.join(config.log_dir, os.path.basename(run_dir)) if is_chief and config.log_dir else ""
    )
    log = Log(run_dir, summary_dir, config.save_summary_secs)
    saver = None
    if is_chief:
        write_record(run_dir, flags, first, len(photographs))
        saver = trainer.saver(run_dir, config.save_checkpoint_secs)
    batches = _batches(photographs, config, first, worker, workers)
    try:
        with contextlib.closing(batches):  # which ends its threads
            _loop(trainer, batches, config, log, saver)
    except KeyboardInterrupt:
        if saver:
            saver.save()
        raise
    except tf.errors.UnavailableError as error:
        raise UserError(
            f"lost one of the {workers} workers after step {log.steps}; start all again, and they continue "
            "from the last checkpoint"
        ) from error


def _batches(photographs, config, first, worker, workers):
    """Yields this worker's part of the batches from step `first` on, uint8 [B / workers, H, W, 3]."""
    size = config.batchsize // workers
    numbers = (
        [step * config.batchsize + worker * size + i for i in range(size)]
        for step in range(first, config.last_step)
    )
    return photographs.batches(
        numbers, config.preprocess_threads, seed=config.seed, flip=config.flip, min_scale=config.min_scale
    )


def _loop(trainer, batches, config, log, saver):
    """Trains on all batches; `saver` is None on all workers except the first."""
    first = int(trainer.step.numpy())
    for step, x in enumerate(progress(batches, initial=first, total=config.last_step), first):
        rate = config.rate(step)
        metrics = trainer.train_step(
            trainer.distribute(x),
            tf.constant(rate, tf.float32),
            tf.constant(config.prior_lr * rate / config.learning_rate, tf.float32),
        )
        log.add(step, metrics)
        if saver:
            log.write(trainer.model, x)
            if saver.due():
                log.flush()
                saver.save()
    log.flush()
    if saver:
        log.write(trainer.model, x, force=True)
        saver.save()
