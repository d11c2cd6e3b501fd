"""Hands a training run from one trainer to the other, optimizer included.

    python tools/convert_checkpoint.py to-torch RUN_DIR        # latest TensorFlow checkpoint -> state of tools/train_torch.py
    python tools/convert_checkpoint.py to-tensorflow RUN_DIR   # the other way
    python tools/convert_checkpoint.py to-weights RUN_DIR      # latest state of either -> weights.npz, float16, to ship
"""

import argparse
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import train_state  # pylint: disable=wrong-import-position
import utils  # pylint: disable=wrong-import-position


def read_tensorflow(run_dir):
    """Reads the latest TensorFlow checkpoint, or `weights.npz`, of a run.

    Returns:
      dict, as `train_state` describes; from weights alone, Adam is at rest.

    Raises:
      utils.UserError: there is none, or it is damaged.
    """
    import training
    found = training.latest_state(run_dir)
    if not found:
        raise utils.UserError(f"{run_dir}: expected a checkpoint, model.ckpt-STEP.index or weights.npz, found none")
    step, _, arrays = found
    weights = training.named_weights(arrays)
    weights = {name: weights[name] for name in weights if name.startswith("sequential")}
    state = train_state.from_weights(weights, step)
    average = training.named_weights(arrays, "average")
    if average:
        state |= {"averaged": True, "ema": {name: average[name] for name in weights}}
    for slot, key in (("adam_m", "m"), ("adam_v", "v")):
        moments = {}
        for name in weights:
            escaped = name.replace("/", ".S")
            moments[name] = arrays.get(
                f"weights/{escaped}/.OPTIMIZER_SLOT/optimizer/{key}/.ATTRIBUTES/VARIABLE_VALUE")
        if all(value is not None for value in moments.values()):
            state[slot] = moments
    return state


def write_tensorflow(run_dir, state):
    """Writes a state as a checkpoint that `bls2017_vae.py` goes on from; returns its path."""
    import tensorflow as tf
    import training
    with open(os.path.join(run_dir, "args.json"), encoding="utf-8") as file:
        args = json.load(file)
    model_args = {name: args[name] for name in ("num_filters", "filter_dims", "sampling_rates", "likelihood_variance")}
    trainer = training.Trainer(model_args, tf.distribute.get_strategy(), ema_decay=args["ema_decay"])
    trainer.model.set_named_weights(state["weights"])
    trainer.optimizer._create_all_weights(trainer.variables)  # pylint: disable=protected-access
    for name, variable in trainer.model.named_variables.items():
        trainer.optimizer.get_slot(variable, "m").assign(state["adam_m"][name])
        trainer.optimizer.get_slot(variable, "v").assign(state["adam_v"][name])
    for name, variable in trainer.average.items():
        variable.assign(state["ema"][name])
    trainer.step.assign(state["global_step"])
    trainer.optimizer.iterations.assign(state["global_step"])
    return training.Saver(trainer, run_dir, 0).save()


def main(argv=None):
    """Converts; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    sys.exit(utils.run_main(main))
