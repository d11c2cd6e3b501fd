"""The state of a training run as NumPy arrays, for `train_torch.py` and `convert_checkpoint.py`.

A state is a dict: `global_step`, an int; `adam_step`, an int, the steps since Adam's moments were zero;
`weights`, `adam_m`, `adam_v`, `ema`, dicts of float32 arrays by the names of the original's variables;
`averaged`, whether the moving average `ema` is the result (otherwise it equals the weights); and, once
PyTorch has trained, `rng_state`, a uint8 array. On disk it is `RUN/train_torch/STEP-I-of-N.npz`, in N parts
of limited size. It is complete only if all N are there.
"""

import dataclasses
import glob
import math
import os
import re
import zipfile

import numpy as np
from scipy import stats

from vbq.command import UserError
from vbq.files import atomic_write, load_npz, make_folder, save_npz
from vbq.priors import DeepFactorizedPrior

SLOTS = ("weights", "adam_m", "adam_v", "ema")
FOLDER = "train_torch"
# What ships is rounded. Kernels of more than MOST_EXACT weights become multiples of a power of two of at most
# 1 / KERNEL_STEPS of their standard deviation. With 256 filters, this costs 0.01 dB (posterior samples of 24
# validation crops), and the deflated file shrinks from the 16 MB of float16 alone to 12.8 MB.
KERNEL_STEPS, MOST_EXACT = 128, 100_000


def weight_shapes(config):
    """Returns the shapes of the weights of a ModelConfig: dict of tuples, by the original's names."""
    shapes = {}
    downs = [3, *config.num_filters[:-1], 2 * config.num_channels]
    ups = [*config.num_filters[::-1], 3]
    for scope, norm, channels, sizes in (
        ("sequential", "gdn", downs, config.filter_dims),
        ("sequential_1", "igdn", ups, config.filter_dims[::-1]),
    ):
        for i, size in enumerate(sizes):
            name, last = f"{scope}/layer_{i}", i == len(sizes) - 1
            shapes[f"{name}/kernel_rdft"] = (size * size, channels[i] * channels[i + 1])
            if not last or norm == "igdn":
                shapes[f"{name}/bias"] = (channels[i + 1],)
            if not last:
                shapes[f"{name}/{norm}_{i}/reparam_beta"] = (channels[i + 1],)
                shapes[f"{name}/{norm}_{i}/reparam_gamma"] = (channels[i + 1],) * 2
    if config.learned_prior:
        prior = prior_weights(DeepFactorizedPrior.initial(config.num_channels))
        shapes |= {name: value.shape for name, value in prior.items()}
    return shapes


def prior_weights(prior):
    """Returns the weights of a DeepFactorizedPrior as those of a model: dict of float32 arrays by name."""
    return {f"prior/{name}": value.astype(np.float32) for name, value in prior.arrays().items()}


def fitting(weights, config, where):
    """Picks the weights of a model.

    Args:
      weights: dict of arrays by name, which may have others.
      config: ModelConfig of the model.
      where: str, the place that an error names.

    Returns:
      dict of arrays.

    Raises:
      UserError: names are missing, or shapes do not fit.
    """
    shapes = weight_shapes(config)
    for name, shape in shapes.items():
        found = np.shape(weights[name]) if name in weights else "nothing"
        if found != shape:
            raise UserError(
                f"{where}: the weights are those of another model: {name}: expected shape {shape}, "
                f"found {found}"
            )
    return {name: weights[name] for name in shapes}


def initial(config, seed):
    """Returns a new state.

    Kernels are drawn by variance scaling (fan in, truncated normal). GDN starts with beta 1 and gamma 0.1 I.
    A learned prior starts as a logistic density.

    Args:
      config: ModelConfig.
      seed: int >= 0.

    Returns:
      dict, a state.
    """
    rng = np.random.default_rng(seed)
    pedestal = 2.0**-36
    channels = {"sequential": [3, *config.num_filters[:-1]], "sequential_1": config.num_filters[::-1]}
    weights = {}
    for name, shape in weight_shapes(dataclasses.replace(config, learned_prior=False)).items():
        scope, layer, leaf = name.split("/")[0], int(re.search(r"layer_(\d+)", name)[1]), name.split("/")[-1]
        if leaf == "kernel_rdft":
            # The basis is orthonormal, so the coefficients may be drawn like the kernel.
            fan_in = shape[0] * channels[scope][layer]
            value = stats.truncnorm.rvs(
                -2, 2, scale=1 / (0.87962566103423978 * math.sqrt(fan_in)), size=shape, random_state=rng
            )
        elif leaf == "reparam_beta":
            value = np.sqrt(np.ones(shape) + pedestal)
        elif leaf == "reparam_gamma":
            value = np.sqrt(0.1 * np.eye(shape[0]) + pedestal)
        else:
            value = np.zeros(shape)
        weights[name] = value.astype(np.float32)
    if config.learned_prior:
        prior = DeepFactorizedPrior.initial(config.num_channels, seed, config.prior_init_scale)
        weights |= prior_weights(prior)
    return from_weights(weights)


def result(state):
    """Returns the weights that a state is for, dict of arrays by name: the moving average if it has one."""
    return state["ema" if state["averaged"] else "weights"]


def has_prior(weights):
    """Whether weights, dict by name, have those of a learned prior."""
    return any(name.startswith("prior/") for name in weights)


def from_weights(weights, global_step=0):
    """Returns the state of a run that starts from weights: Adam's moments are zero, `ema` equals them."""
    zeros = {k: np.zeros_like(v) for k, v in weights.items()}
    return {
        "global_step": global_step,
        "adam_step": 0,
        "averaged": False,
        "weights": weights,
        "adam_m": zeros,
        "adam_v": zeros,
        "ema": weights,
    }


def from_file(path):
    """Returns the state of a run that starts from a `weights.npz`."""
    arrays = load_npz(path)
    step = int(arrays.pop("global_step", 0))
    return from_weights({k: v.astype(np.float32) for k, v in arrays.items()}, step)


def load(run_dir):
    """Reads the latest complete state in a run directory.

    Args:
      run_dir: str.

    Returns:
      dict, a state; or None if there is none.

    Raises:
      UserError: a part is damaged.
    """
    found = {}
    for path in glob.glob(os.path.join(glob.escape(run_dir), FOLDER, "*-of-*.npz")):
        match = re.fullmatch(r"(\d+)-(\d+)-of-(\d+)\.npz", os.path.basename(path))
        if match:
            found.setdefault((int(match[1]), int(match[3])), []).append(path)
    complete = [key for key, paths in found.items() if len(paths) == key[1]]
    if not complete:
        return None
    pieces = {}
    for path in found[max(complete)]:
        pieces.update(load_npz(path))
    step = int(pieces.pop("global_step"))
    state = {
        "global_step": step,
        "adam_step": int(pieces.pop("adam_step", step)),  # states of before 2026-11-27 lack it
        "averaged": bool(pieces.pop("averaged")),
        "rng_state": pieces.pop("rng_state", None),
    }
    rows = {}
    for key in sorted(pieces, key=lambda key: int(key.rpartition("|")[2])):
        slot, name, _ = key.split("|")
        rows.setdefault(slot, {}).setdefault(name, []).append(pieces[key])
    state |= {
        slot: {name: np.concatenate(blocks) for name, blocks in named.items()} for slot, named in rows.items()
    }
    if not state["averaged"]:  # an average that begins now begins here
        state["ema"] = state["weights"]
    return state


def tensorflow_step(run_dir):
    """Returns the step of the latest TensorFlow checkpoint in a run directory, by its name; -1 if none."""
    names = os.listdir(run_dir) if os.path.isdir(run_dir) else []
    matches = (re.fullmatch(r"model\.ckpt-(\d+)\.index", name) for name in names)
    return max((int(match[1]) for match in matches if match), default=-1)


def save(run_dir, state, part_bytes=15e6):
    """Writes a state in parts, and `weights.npz`; then removes the states before it.

    Args:
      run_dir: str.
      state: dict, a state.
      part_bytes: float, largest size of a part.

    Raises:
      UserError: a weight is no finite number, or a file cannot be written. States from before are kept.
    """
    if not all(np.isfinite(value).all() for value in state["weights"].values()):
        raise UserError(f"{run_dir}: weights are not finite at step {state['global_step']}; it is not saved")
    folder = os.path.join(run_dir, FOLDER)
    make_folder(folder)
    pieces = [(name, np.int64(state[name])) for name in ("global_step", "adam_step")]
    pieces.append(("averaged", np.bool_(state["averaged"])))
    if state.get("rng_state") is not None:
        pieces.append(("rng_state", state["rng_state"]))
    for slot in SLOTS:
        for name, value in state[slot].items():
            count = min(len(value), math.ceil(value.nbytes / (part_bytes / 4)))
            pieces += [(f"{slot}|{name}|{i}", rows) for i, rows in enumerate(np.array_split(value, count))]
    parts, size = [{}], 0
    for name, value in pieces:
        cost = value.nbytes + 1024  # headers
        if parts[-1] and size + cost > part_bytes:
            parts, size = [*parts, {}], 0
        parts[-1][name] = value
        size += cost
    old = glob.glob(os.path.join(glob.escape(folder), "*-of-*.npz"))
    written = [
        os.path.join(folder, f"{state['global_step']}-{i + 1}-of-{len(parts)}.npz") for i in range(len(parts))
    ]
    for path, part in zip(written, parts):
        save_npz(path, part)
    for path in set(old) - set(written):
        os.remove(path)
    save_weights(run_dir, state)


def save_weights(run_dir, state, to_ship=False):
    """Writes the result of a state, the weights or their average, to `weights.npz` for `load_run`.

    Args:
      run_dir: str.
      state: dict, a state.
      to_ship: bool, whether the file is to be small: weights are then rounded, see `rounded`.
    """
    arrays = {k: rounded(k, v) if to_ship else v for k, v in result(state).items()}
    arrays["global_step"] = np.int64(state["global_step"])
    compression = zipfile.ZIP_DEFLATED if to_ship else zipfile.ZIP_STORED
    save_npz(os.path.join(run_dir, "weights.npz"), arrays, compression)


def rounded(name, weights):
    """Rounds weights of a name to float16, and those of large kernels to few steps, which deflate well."""
    if "kernel" in name and weights.size > MOST_EXACT:
        step = 2.0 ** np.floor(np.log2(weights.std() / KERNEL_STEPS))
        weights = np.round(weights / step) * step
    return weights.astype(np.float16)


def cut_rows(path, step):
    """Removes the rows of later steps, and a torn last row, from a table without a header.

    Args:
      path: str, of a file with the step in its first column.
      step: int, the last to keep.

    Raises:
      UserError, OSError: the file cannot be written, or read.
    """
    with open(path, "rb") as file:
        lines = file.readlines()
    numbers = [line.split(b",")[0] if line.endswith(b"\n") else b"" for line in lines]
    remaining = [line for line, number in zip(lines, numbers) if number.isdigit() and int(number) <= step]
    if remaining != lines:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            file.writelines(remaining)
