"""Hands a training run from one trainer to the other, optimizer included.

    python tools/convert_checkpoint.py to-torch RUN_DIR
    python tools/convert_checkpoint.py to-tensorflow RUN_DIR
    python tools/convert_checkpoint.py to-weights RUN_DIR

The first turns the latest TensorFlow checkpoint into a state of `tools/train_torch.py`, the second turns that
state into a TensorFlow checkpoint, and the third writes the latest state of either to `weights.npz`, in
float16, to ship.
"""

import argparse
import dataclasses
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import train_state

from vbq.command import UserError, run_main
from vbq.config import ModelConfig
from vbq.record import read_flags


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
    weights = {name: weights[name] for name in weights if name.startswith("sequential")}
    state = train_state.from_weights(weights, step)
    average = named_weights(arrays, "average")
    if average:
        state |= {"averaged": True, "ema": {name: average[name] for name in weights}}
    for slot, key in (("adam_m", "m"), ("adam_v", "v")):
        moments = {}
        for name in weights:
            escaped = name.replace("/", ".S")
            moments[name] = arrays.get(
                f"weights/{escaped}/.OPTIMIZER_SLOT/optimizer/{key}/.ATTRIBUTES/VARIABLE_VALUE"
            )
        if all(value is not None for value in moments.values()):
            state[slot] = moments
    return state


def write_tensorflow(run_dir, state):
    """Writes a state as a checkpoint from which `bls2017_vae.py` continues.

    Args:
      run_dir: str, directory of the run, with its `args.json`.
      state: dict, as `train_state` describes it.
    """
    import tensorflow as tf

    from vbq.trainer import Trainer

    flags = read_flags(run_dir)
    config = dataclasses.replace(ModelConfig.of(flags), learned_prior=False)  # as in every state
    trainer = Trainer(config, tf.distribute.get_strategy(), ema_decay=flags["ema_decay"])
    trainer.model.set_named_weights(state["weights"])
    trainer.optimizer._create_all_weights(trainer.variables)
    for name, variable in trainer.weights.items():
        trainer.optimizer.get_slot(variable, "m").assign(state["adam_m"][name])
        trainer.optimizer.get_slot(variable, "v").assign(state["adam_v"][name])
    for name, variable in trainer.average.items():
        variable.assign(state["ema"][name])
    trainer.step.assign(state["global_step"])
    trainer.optimizer.iterations.assign(state["global_step"])
    trainer.saver(run_dir).save()


def main(argv=None):
    """Converts; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("direction", choices=["to-torch", "to-tensorflow", "to-weights"])
    parser.add_argument("run_dir", help="directory of the run, with its args.json")
    args = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if args.direction == "to-torch":
        train_state.save(args.run_dir, read_tensorflow(args.run_dir))
    else:
        state = train_state.load(args.run_dir) or read_tensorflow(args.run_dir)
        if args.direction == "to-tensorflow":
            write_tensorflow(args.run_dir, state)
        else:
            train_state.save_weights(args.run_dir, state, "float16")
    print(f"{args.run_dir}: done {args.direction}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
