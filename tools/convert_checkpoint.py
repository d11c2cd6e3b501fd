"""Hands a training run from one trainer to the other, optimizer included.

    python tools/convert_checkpoint.py to-torch RUN_DIR
    python tools/convert_checkpoint.py to-tensorflow RUN_DIR
    python tools/convert_checkpoint.py to-weights RUN_DIR

The first turns the latest TensorFlow checkpoint into a state of `tools/train_torch.py`, the second turns the
latest state of either trainer into a TensorFlow checkpoint, and the third writes that state to `weights.npz`,
rounded, to ship. Without a state of a trainer, all take the weights in `weights.npz`.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import train_state

from vbq.command import Parser, UserError, run_main
from vbq.config import ModelConfig
from vbq.record import read_flags
from vbq.run_lock import run_lock

DIRECTIONS = ("to-torch", "to-tensorflow", "to-weights")


def read_tensorflow(run_dir):
    """Reads the latest TensorFlow checkpoint, or `weights.npz`, of a run.

    Args:
      run_dir: str.

    Returns:
      dict, as `train_state` describes it. A file of weights alone has no moments: Adam's are zero then.

    Raises:
      UserError: there is none, or it is damaged.
    """
    from vbq.checkpoints import latest_state, named_weights

    found = latest_state(run_dir)
    if not found:
        raise UserError(f"{run_dir}: has neither a checkpoint, model.ckpt-STEP.index, nor weights.npz")
    step, _, arrays = found
    weights = named_weights(arrays)
    weights = {name: weights[name] for name in weights if name.startswith(("sequential", "prior/"))}
    state = train_state.from_weights(weights, step)
    average = named_weights(arrays, "average")
    if average:
        state |= {"averaged": True, "ema": {name: average[name] for name in weights}}
    for slot, key in (("adam_m", "m"), ("adam_v", "v")):
        moments = {}
        for name in weights:
            escaped = name.replace("/", ".S")
            optimizer = "prior_optimizer" if name.startswith("prior/") else "optimizer"
            moments[name] = arrays.get(
                f"weights/{escaped}/.OPTIMIZER_SLOT/{optimizer}/{key}/.ATTRIBUTES/VARIABLE_VALUE"
            )
        if all(value is not None for value in moments.values()):
            state[slot] = moments
            state["adam_step"] = int(arrays["optimizer/iter/.ATTRIBUTES/VARIABLE_VALUE"])
    return state


def write_tensorflow(run_dir, state):
    """Writes a state as a checkpoint from which `bls2017_vae.py` continues.

    Args:
      run_dir: str, directory of the run, with its `args.json`.
      state: dict, as `train_state` describes it.

    Raises:
      UserError: `args.json` is missing or damaged, or the state does not fit it.
    """
    import tensorflow as tf

    from vbq.trainer import Trainer

    flags = read_flags(run_dir)
    try:
        config = ModelConfig.of(flags)
    except KeyError as error:
        raise UserError(f"{run_dir}/args.json has no flag {error}") from error
    trainer = Trainer(config, tf.distribute.get_strategy(), ema_decay=flags.get("ema_decay", 0.0))
    try:
        trainer.model.set_named_weights(state["weights"])
    except ValueError as error:
        raise UserError(f"{run_dir}: the state does not fit the model in args.json: {error}") from error
    trainer.optimizer._create_all_weights(trainer.variables)
    trainer.prior_optimizer._create_all_weights(trainer.prior_variables)
    for name, variable in trainer.weights.items():
        optimizer = trainer.prior_optimizer if name.startswith("prior/") else trainer.optimizer
        optimizer.get_slot(variable, "m").assign(state["adam_m"][name])
        optimizer.get_slot(variable, "v").assign(state["adam_v"][name])
    for name, variable in trainer.average.items():
        variable.assign(state["ema"][name])
    trainer.step.assign(state["global_step"])
    for optimizer in (trainer.optimizer, trainer.prior_optimizer):
        optimizer.iterations.assign(state["adam_step"])
    trainer.saver(run_dir).save()


def convert(direction, run_dir):
    """Does one of the `DIRECTIONS`.

    Raises:
      UserError: there is nothing to convert, or it is damaged, or cannot be written.
    """
    state, checkpoint_step = train_state.load(run_dir), train_state.tensorflow_step(run_dir)
    step = state["global_step"] if state else -1
    if not state or checkpoint_step > step:
        found = read_tensorflow(run_dir)
        if found["global_step"] > step:  # if the latest checkpoint is damaged, an earlier state is found
            state = found
        elif direction == "to-torch":
            raise UserError(
                f"{run_dir}: the TensorFlow checkpoint of step {checkpoint_step} is damaged; delete its "
                f"files, and tools/train_torch.py goes on from step {step}"
            )
    if direction == "to-torch" and state["global_step"] == step:
        raise UserError(
            f"{run_dir}: its latest state is that of step {step} by tools/train_torch.py already; there is "
            "no later TensorFlow checkpoint to convert"
        )
    if direction == "to-torch":
        train_state.save(run_dir, state)
    elif direction == "to-tensorflow":
        write_tensorflow(run_dir, state)
    else:
        train_state.save_weights(run_dir, state, to_ship=True)


def main(argv=None):
    """Converts; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("direction", choices=DIRECTIONS, help="what to write; see above")
    parser.add_argument("run_dir", help="directory of the run, with its args.json")
    args = parser.parse_args(argv)
    if not os.path.isdir(args.run_dir):
        raise UserError(f"{args.run_dir}: no such run directory")
    with run_lock(args.run_dir):
        convert(args.direction, args.run_dir)
    print(f"{args.run_dir}: done {args.direction}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
