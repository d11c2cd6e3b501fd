"""The loop of training, and what it shows of itself: lines on the terminal, `log.csv`, and TensorBoard."""

import contextlib
import math
import os
import time

import numpy as np
import tensorflow as tf
from absl import logging

from vbq.checkpoints import Unsaved, kept
from vbq.command import UserError, note, progress
from vbq.photographs import Photographs
from vbq.priors import PRIOR_CROPS
from vbq.record import append_record, neighbours, write_flags
from vbq.run_lock import run_lock
from vbq.side_outputs import SideOutputs
from vbq.signals import signals_as_exceptions
from vbq.trainer import METRICS, Trainer, make_strategy, rank

LINE_SECS = 10  # at most, between two lines of progress


class Means:
    """Means of the metrics of the steps since they were last taken."""

    def __init__(self, pixels):
        """Starts with no steps; `pixels`, int, is the number of pixels of a crop."""
        self.pixels = pixels
        self.reset()

    def reset(self):
        """Starts anew."""
        self.total, self.steps, self.since = np.zeros(len(METRICS)), 0, time.monotonic()

    def add(self, values):
        """Adds the `METRICS` of a step, float [6]."""
        self.total += values
        self.steps += 1

    def take(self):
        """Starts anew.

        Returns:
          dict of float: the `METRICS`, of which those in nats are per crop; `steps_per_second`; and
          `loss_per_pixel`, in nats.
        """
        seconds = time.monotonic() - self.since
        means = dict(zip(METRICS, (self.total / self.steps).tolist()))
        means["steps_per_second"] = self.steps / seconds
        means["loss_per_pixel"] = means["loss"] / self.pixels
        self.reset()
        return means


class Log:
    """What a training shows of itself: lines of progress, and summaries."""

    def __init__(self, run_dir, outputs, summary_secs, pixels):
        """Starts with no metrics.

        Args:
          run_dir: str.
          outputs: SideOutputs, or None for none.
          summary_secs: float, seconds between two summaries of TensorBoard.
          pixels: int, number of pixels of a crop.
        """
        self.run_dir, self.outputs, self.summary_secs = run_dir, outputs, summary_secs
        self.line_secs = 0.0  # the first line is due at once
        self.for_line, self.for_summary = Means(pixels), Means(pixels)
        self.pending, self.steps = None, 0

    def add(self, step, metrics):
        """Takes the metrics of a step, and reads those of the step before.

        The device need not wait for the reader then.

        Args:
          step: int, from 0.
          metrics: float32 tensor [6], the `METRICS`.

        Raises:
          Unsaved: the loss of the step before is no finite number.
        """
        self.flush()
        self.pending = step, metrics

    def flush(self):
        """Reads the metrics that were added last.

        Raises:
          Unsaved: the loss is no finite number.
        """
        if not self.pending:
            return
        step, metrics = self.pending
        self.pending = None
        values = metrics.numpy()
        if not math.isfinite(values[0]):
            raise Unsaved(
                f"the loss is {values[0]} at step {step}; {kept(self.run_dir)}. Try a lower "
                "--learning_rate, --warmup_steps or --clip_norm"
            )
        self.steps = step + 1
        self.for_line.add(values)
        self.for_summary.add(values)

    def write(self, model, x, force=False):
        """Writes what is due.

        Args:
          model: VAE.
          x: uint8 [B, H, W, 3], the batch of the last step.
          force: bool, whether everything is due.
        """
        if self._due(self.for_line, self.line_secs, force):
            self._write_line(self.for_line.take())
            self.line_secs = min(LINE_SECS, self.summary_secs)
        if self._due(self.for_summary, self.summary_secs, force):
            self.outputs.write_summary(self.steps, self.for_summary.take(), model, x[:2])

    def _due(self, means, secs, force):
        return means.steps and (force or time.monotonic() - means.since >= secs)

    def _write_line(self, means):
        """Writes a line on the terminal and its row of `log.csv`."""
        logging.info(
            "step %d  loss %.1f nats per crop, %.4f per pixel  psnr %.2f dB  %.2f steps/s",
            self.steps,
            *map(means.get, ("loss", "loss_per_pixel", "psnr", "steps_per_second")),
        )
        self.outputs.write_row(self.steps, means)


def train(run_dir, model_config, config, flags, defaults=None):
    """Trains a model until `config.last_step`, from the latest state in the run directory on.

    Nothing is written until all input has proved good. Whatever ends the training leaves a checkpoint, except
    a loss or a weight that is no finite number.

    Args:
      run_dir: str; made if it is not there.
      model_config: ModelConfig.
      config: TrainingConfig.
      flags: dict, all flags of the command, for `args.json` and `record.txt`.
      defaults: dict, the default values of all flags, for those that an older `args.json` lacks.

    Raises:
      UserError: bad input, another process that trains in the directory, a loss or a weight that is no finite
        number, or a directory that cannot be written.
    """
    strategy = make_strategy(config.strategy)
    worker, workers = rank(strategy)
    if config.batchsize % strategy.num_replicas_in_sync:
        raise UserError(
            f"--batchsize {config.batchsize}: must be a multiple of {strategy.num_replicas_in_sync}, the "
            "number of devices"
        )
    is_chief = worker == 0
    with run_lock(run_dir) if is_chief else contextlib.nullcontext(), signals_as_exceptions():
        trainer = Trainer(
            model_config, strategy, config.seed, config.clip_norm, config.ema_decay, config.mixed_precision
        )
        resumes = trainer.restore(run_dir)
        first = int(trainer.step.numpy())
        if first >= config.last_step:
            print(f"{run_dir}: already at step {first}")
            return
        needs_prior = False
        if config.init_run and not resumes:
            needs_prior = trainer.start_from(os.path.join(os.path.dirname(run_dir), config.init_run))
        photographs = Photographs(config.train_glob, config.patchsize, config.preprocess_threads)
        if needs_prior:
            if is_chief:
                note(f"{run_dir}: {config.init_run} has no learned prior; it is fitted to that run's latents")
            numbers = np.array_split(np.arange(PRIOR_CROPS), 16)
            trainer.fit_prior(_crops(photographs, config, numbers))
        outputs, saver = None, None
        if is_chief:
            summary_dir = os.path.join(config.log_dir, os.path.basename(run_dir)) if config.log_dir else ""
            outputs = SideOutputs(run_dir, summary_dir, first)
            _begin(run_dir, config, flags, defaults, first if resumes else None)
            append_record(run_dir, flags, first, f"{len(photographs)} photographs")
            saver = trainer.saver(run_dir, config.save_checkpoint_secs)
        log = Log(run_dir, outputs, config.save_summary_secs, config.patchsize**2)
        _train_saved(trainer, _batches(photographs, config, first, worker, workers), config, log, saver)


def _begin(run_dir, config, flags, defaults, first):
    """Writes `args.json`, and says from where the training starts; `first` is None for a new run."""
    others = neighbours(run_dir) if first is None and not config.init_run else []
    warning = write_flags(run_dir, flags, first, defaults)
    if first is not None:
        note(f"{run_dir}: resumes at step {first} of {config.last_step}")
    if warning:
        logging.warning("%s", warning)
    if others:
        note(
            f"{run_dir}: a new run, which starts at step 0, though {others[-1]} differs from it in "
            f"--last_step only; to start from its weights, add --init_run {others[-1]}"
        )


def _train_saved(trainer, batches, config, log, saver):
    """Trains on all batches. Whatever ends that leaves a checkpoint, if the weights are worth one."""
    try:
        with contextlib.closing(batches):  # which ends its threads
            _loop(trainer, batches, config, log, saver)
    except Unsaved:
        raise
    except BaseException as error:
        saved = saver.save_rest() if saver else ""
        if isinstance(error, tf.errors.UnavailableError):
            workers = rank(trainer.strategy)[1]
            text = f"lost one of the {workers} workers after step {log.steps}; start all again to go on"
            raise UserError(f"{text}; {saved}" if saved else text) from error
        if isinstance(error, UserError):
            raise UserError(f"{error}; {saved}" if saved else str(error)) from error
        if saved:
            with contextlib.suppress(OSError):  # of stderr, which may be closed
                note(f"{log.run_dir}: {saved}")
        raise


def _batches(photographs, config, first, worker, workers):
    """Yields this worker's part of the batches from step `first` on, uint8 [B / workers, H, W, 3]."""
    size = config.batchsize // workers
    numbers = (
        [step * config.batchsize + worker * size + i for i in range(size)]
        for step in range(first, config.last_step)
    )
    return _crops(photographs, config, numbers)


def _crops(photographs, config, numbers):
    """Yields batches of the crops with these numbers, an iterable of sequences of int."""
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
            is_due = saver.due()
            if is_due:
                log.flush()
            log.write(trainer.model, x)  # before the checkpoint: training that resumes there skips this row
            if is_due:
                saver.save()
    log.flush()
    if saver:
        log.write(trainer.model, x, force=True)
        saver.save()
