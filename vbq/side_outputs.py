"""What a training writes for its user to look at: `log.csv`, and TensorBoard's files.

Neither is needed to go on. One that cannot be written is therefore given up, with one warning.
"""

import contextlib
import csv
import glob
import hashlib
import os
import re
import struct

import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError

from vbq.command import UserError, disk_is_full, reason
from vbq.files import atomic_write

_ERRORS = (OSError, UserError, tf.errors.OpError)


class SideOutputs:
    """Both outputs, or those that have not been given up."""

    def __init__(self, run_dir, summary_dir, first_step):
        """Opens them, and cuts off what they hold of steps after `first_step`.

        Args:
          run_dir: str.
          summary_dir: str, of TensorBoard's files; empty for no TensorBoard.
          first_step: int, the step at which this start begins.

        Raises:
          UserError: `summary_dir` is no place to write. (A full disk is no error; it costs a warning.)
        """
        self.outputs = {}
        if summary_dir:
            try:
                self.outputs["TensorBoard"] = Board(summary_dir, run_dir, first_step)
            except _ERRORS as error:
                if not _is_full(error):
                    raise UserError(f"--log_dir: cannot write {summary_dir}: {_reason(error)}") from error
                _give_up("TensorBoard", error)
        try:
            self.outputs["log.csv"] = Table(run_dir, first_step)
        except _ERRORS as error:
            _give_up("log.csv", error)

    def write_row(self, step, means):
        """Appends a row to `log.csv`.

        Args:
          step: int.
          means: dict of names to float.
        """
        self._write("log.csv", step, means)

    def write_summary(self, step, means, model, x):
        """Appends a summary to TensorBoard's files.

        Args:
          step: int.
          means: dict of names to float.
          model: vbq.transforms.VAE.
          x: uint8 [B, H, W, 3], photographs to show beside their reconstructions.
        """
        self._write("TensorBoard", step, means, model, x)

    def _write(self, name, *arguments):
        if name not in self.outputs:
            return
        try:
            self.outputs[name].write(*arguments)
        except _ERRORS as error:
            _give_up(name, error)
            del self.outputs[name]


def _is_full(error):
    """Whether an exception says that the disk is full."""
    return disk_is_full(error) or isinstance(error, tf.errors.ResourceExhaustedError)


def _give_up(name, error):
    logging.warning("%s is given up, the training goes on: %s", name, _reason(error))


def _reason(error):
    """As `vbq.command.reason`; of what TensorFlow says, only its first line, without the name of the node."""
    if isinstance(error, tf.errors.OpError):
        return re.sub(r"\{\{.*?\}\} *", "", error.message).partition("\n")[0]
    return reason(error)


class Table:
    """`log.csv`: a row of means for every line of progress."""

    def __init__(self, run_dir, first_step):
        """Cuts the rows after a step off. Args: as those of `SideOutputs`."""
        self.path = os.path.join(run_dir, "log.csv")
        lines = self._lines()
        remaining = [line for line in lines[:1] if line.endswith(b"\n")]
        remaining += [line for line in lines[1:] if _has_step_up_to(line, first_step)]
        if remaining != lines:
            self._replace(remaining)
        self.columns = None  # names, once there is a row

    def write(self, step, means):
        """Appends a row."""
        if not self.columns or not os.path.exists(self.path):
            self.columns = self._make_columns(["step", *means])
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            row = {"step": step, **{name: f"{value:.6g}" for name, value in means.items()}}
            csv.DictWriter(file, self.columns).writerow(row)

    def _make_columns(self, names):
        """Makes sure that the file has some columns; returns the names of all.

        Columns that the file of an earlier version lacks are added on the right, empty in its rows.
        """
        lines = self._lines()
        if not lines:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(names)
            return names
        columns = next(csv.reader([lines[0].decode("utf-8", "replace")]))
        new = [name for name in names if name not in columns]
        if new:
            ends = [",".join(["", *new]), *["," * len(new)] * (len(lines) - 1)]
            self._replace([line.rstrip() + end.encode() + b"\r\n" for line, end in zip(lines, ends)])
        return columns + new

    def _lines(self):
        """The lines of the file, bytes; none if it is no regular file."""
        if not os.path.isfile(self.path):
            return []
        with open(self.path, "rb") as file:
            return file.readlines()

    def _replace(self, lines):
        with atomic_write(self.path) as path, open(path, "wb") as file:
            file.writelines(lines)


def _has_step_up_to(line, step):
    """Whether a line of `log.csv`, bytes, is whole and of a step up to `step`."""
    number = line.split(b",")[0]
    return line.endswith(b"\n") and number.isdigit() and int(number) <= step


class Board:
    """TensorBoard's files: means, and two photographs beside their reconstructions."""

    def __init__(self, folder, run_dir, first_step):
        """Cuts the events after a step off, and opens a new file. Args: as those of `SideOutputs`.

        The names of the files tell the run directory, so that other runs' events in the folder stay whole.
        """
        os.makedirs(folder, exist_ok=True)
        owner = hashlib.sha256(os.path.realpath(run_dir).encode("utf-8", "surrogateescape")).hexdigest()[:12]
        suffix = f".run-{owner}.v2"
        for path in glob.glob(os.path.join(glob.escape(folder), f"*tfevents*{suffix}")):
            if os.path.isfile(path):
                cut_events(path, first_step)
        self.writer = tf.summary.create_file_writer(folder, filename_suffix=suffix)

    def write(self, step, means, model, x):
        """Appends a summary."""
        x = tf.cast(x, tf.float32) / 255
        mean, _ = model.analysis(x)
        try:
            with self.writer.as_default(step):
                for name, value in means.items():
                    if name != "steps_per_second":
                        tf.summary.scalar(name, value)
                tf.summary.image("original", x)
                tf.summary.image("reconstruction", tf.clip_by_value(model.synthesis(mean), 0, 1))
            self.writer.flush()
        except tf.errors.OpError:
            with contextlib.suppress(tf.errors.OpError):
                self.writer.close()
            raise


def cut_events(path, step):
    """Removes the events after a step from a file of TensorBoard.

    Args:
      path: str.
      step: int.

    Raises:
      UserError: the file cannot be written.
      OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if all(its_step <= step for _, its_step in _records(file)):
                return
        with open(path, "rb") as file, atomic_write(path) as temporary, open(temporary, "wb") as remaining:
            remaining.writelines(record for record, its_step in _records(file) if its_step <= step)
    except DecodeError:
        logging.warning("%s is damaged, and is left as it is", path)


def _records(file):
    """Yields the records of a file of events, bytes with their frame, and their steps.

    A torn end is left out.

    A frame has the length of the data (8 bytes, little-endian), its checksum (4), the data, and its checksum
    (4).
    """
    while len(head := file.read(12)) == 12:
        (length,) = struct.unpack("<Q", head[:8])
        data = file.read(length + 4)
        if len(data) < length + 4:
            return
        yield head + data, tf.compat.v1.Event.FromString(data[:-4]).step
