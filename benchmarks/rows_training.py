"""The rows of training: the step, the loop around it, and the same on several devices and processes."""

import csv
import json
import os
import socket
import statistics
import time

import numpy as np
from inputs import model_config
from measure import Outcome, alternate, quiet, row, run_children


def make_trainer(filters):
    """A `vbq.trainer.Trainer` whose initial weights are always the same."""
    import tensorflow as tf

    from vbq.trainer import Trainer

    tf.keras.utils.set_random_seed(0)
    return Trainer(model_config([filters] * 3), tf.distribute.get_strategy())


def make_step(trainer, x):
    """The program's step on a fixed batch: a function that waits for the result."""
    import tensorflow as tf

    x, rate = tf.constant(x), tf.constant(1e-4)
    return lambda: trainer.train_step(x, rate, rate).numpy()


def make_plain_step(trainer, x):
    """The same step with the layers of tensorflow-compression."""
    import plain
    import tensorflow as tf

    model = plain.PlainVAE(trainer.model)
    variables = plain.plain_variables(model)
    optimizer = tf.keras.optimizers.legacy.Adam(1e-4, epsilon=1e-8)
    x = tf.constant(x)
    stride = model.config.stride
    noise_shape = [x.shape[0], x.shape[1] // stride, x.shape[2] // stride, model.config.num_channels]

    @tf.function
    def step():
        noise = tf.random.stateless_normal(noise_shape, seed=tf.stack([optimizer.iterations, 0]))
        with tf.GradientTape() as tape:
            loss = model.loss(tf.cast(x, tf.float32) / 255, noise)["loss"]
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return loss

    return lambda: step().numpy()


def batch(inputs, count, side):
    """A batch of training crops, uint8 [count, side, side, 3]."""
    return inputs.crops(count)[:, :side, :side]


def same_as_plain(trainer, x):
    """Whether loss and gradients on a batch are those of the plain layers."""
    import plain

    config = trainer.model.config
    sides = (side // config.stride for side in x.shape[1:3])
    noise = np.random.default_rng(0).standard_normal([len(x), *sides, config.num_channels])
    return plain.same_step(trainer.model, x.astype(np.float32) / 255, noise.astype(np.float32))


@row(
    "step-64",
    "training step, 64 filters, patch 128, batch 8",
    "the layers of tensorflow-compression",
    (">=", 3),
    "loss to 1e-6 and every gradient to 1e-3 of its norm, against those layers with the same weights",
)
def step_64(inputs):
    trainer = make_trainer(inputs.pick(64, 8))
    x = batch(inputs, inputs.pick(8, 2), inputs.pick(128, 64))
    equal = same_as_plain(trainer, x)
    ours, plain = alternate(make_step(trainer, x), make_plain_step(trainer, x), inputs.pick(25, 2))
    return Outcome(f"{1 / ours:.1f} steps/s", f"{1 / plain:.1f} steps/s", plain / ours, equal)


@row(
    "step-256",
    "FLOP/s of a training step, 256 filters, patch 128, batch 4",
    "tf.matmul, float32 3000 x 3000",
    (">=", 0.5),
    "as step-64",
)
def step_256(inputs):
    import tensorflow as tf

    filters, size, side = inputs.pick(256, 16), inputs.pick(4, 2), inputs.pick(128, 64)
    trainer = make_trainer(filters)
    x = batch(inputs, size, side)
    equal = same_as_plain(trainer, x)
    n = inputs.pick(3000, 300)
    a = tf.random.normal([n, n])
    matmul = tf.function(lambda: tf.matmul(a, a))
    step_time, matmul_time = alternate(
        make_step(trainer, x), lambda: matmul()[0, 0].numpy(), inputs.pick(15, 2)
    )
    step_rate, matmul_rate = step_flop(filters, size, side) / step_time, 2 * n**3 / matmul_time
    return Outcome(
        f"{step_rate / 1e9:.0f} GFLOP/s", f"{matmul_rate / 1e9:.0f} GFLOP/s", step_rate / matmul_rate, equal
    )


def step_flop(filters, batchsize, side):
    """Counts the floating-point operations of the matrix products in a step: convolutions and GDN.

    The backward pass has twice as many as the forward pass, for the gradients of the inputs and of the
    weights. The image needs no gradient. Pointwise operations and the optimizer are not counted.
    """
    positions = [(side // stride) ** 2 for stride in (4, 8, 16)]
    image = positions[0] * 81 * 3 * filters  # the first layer of the analysis, or the last of the synthesis
    inner = (positions[1] + positions[2] * 2) * 25 * filters**2 + (
        positions[2] + positions[1]
    ) * 25 * filters**2
    gdn = 2 * (positions[0] + positions[1]) * filters**2
    return 2 * batchsize * (2 * image + 3 * (image + inner + gdn))


@row(
    "training-loop",
    "the training loop with input and logging",
    "the bare step on a fixed batch",
    (">=", 0.95),
    "the weights after the last step, against those of a loop that cuts its crops one by one, to 1e-4 of "
    "their norm",
)
def training_loop(inputs):
    import bls2017_vae
    from vbq.config import ModelConfig, TrainingConfig
    from vbq.training import train

    filters, size, side = inputs.pick(64, 8), inputs.pick(8, 2), inputs.pick(128, 32)
    steps = inputs.pick(160, 12)
    first = steps // 8  # the steps before this one trace and compile
    words = training_flags(inputs, filters, size, side, steps)
    flags = vars(bls2017_vae.parse_args([*words, "--log_dir", os.path.join(inputs.folder, "tensorboard")]))

    def loop(run_dir):
        """Seconds per step of the program's loop, which asks for the learning rate once per step."""
        import tensorflow as tf

        times = []

        class Clock(TrainingConfig):
            def rate(self, step):
                times.append(time.perf_counter())
                return super().rate(step)

        tf.keras.utils.set_random_seed(0)
        with quiet():
            train(run_dir, ModelConfig.of(flags), Clock.of(flags), flags)
        return (times[-1] - times[first]) / (len(times) - 1 - first)

    bare_step = make_step(make_trainer(filters), batch(inputs, size, side))
    bare_step()

    def bare():
        """Seconds per step without the loop."""
        start = time.perf_counter()
        for _ in range(steps - first):
            bare_step()
        return (time.perf_counter() - start) / (steps - first)

    run_dirs = [os.path.join(inputs.folder, f"loop-{i}") for i in range(inputs.pick(3, 1))]
    times = zip(*[(loop(run_dir), bare()) for run_dir in run_dirs])
    ours, least = (statistics.median(column) for column in times)
    equal = same_training(run_dirs[-1], filters, TrainingConfig.of(flags))
    return Outcome(f"{1 / ours:.1f} steps/s", f"{1 / least:.1f} steps/s", least / ours, equal)


def training_flags(inputs, filters, size, side, steps):
    """Flags of a small training: a list of str."""
    photographs = os.path.join(os.path.dirname(inputs.test_images(inputs.pick(24, 3))[0]), "*.png")
    flags = {
        "num_filters": [filters] * 3,
        "batchsize": [size],
        "patchsize": [side],
        "last_step": [steps],
        "train_glob": [photographs],
        "likelihood_variance": [0.001],
    }
    return [str(word) for name, values in flags.items() for word in (f"--{name}", *values)]


def same_training(run_dir, filters, config):
    """Whether a run's weights are those of a loop that cuts its crops one by one, to 1e-4 of their norm."""
    import tensorflow as tf

    from vbq.checkpoints import latest_state, named_weights
    from vbq.photographs import Photographs

    trainer, rate = make_trainer(filters), tf.constant(config.learning_rate)
    source = Photographs(config.train_glob, config.patchsize, 1)
    for step in range(config.last_step):
        numbers = range(step * config.batchsize, (step + 1) * config.batchsize)
        x = np.stack([source.crop(config.seed, number) for number in numbers])
        trainer.train_step(tf.constant(x), rate, rate)
    weights = named_weights(latest_state(run_dir)[2])
    return all(
        np.linalg.norm(weights[name] - value) <= 1e-4 * np.linalg.norm(value)
        for name, value in trainer.model.named_weights().items()
    )


# Several devices and processes. All share this machine, so they cannot be faster: the ratio is the cost of
# distribution.

TRAIN = """
import bls2017_vae, tensorflow as tf
from vbq.command import run_main
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[2]))
status = run_main(bls2017_vae.main, sys.argv[3:])
report()
sys.exit(status)
"""


def distributed(inputs, name, devices, workers):
    """Trains on `devices` logical devices in each of `workers` processes.

    Returns:
      float64 [S] each, the losses and the seconds of the steps.
    """
    import bls2017_vae

    filters, size, side, steps = (
        inputs.pick(64, 8),
        inputs.pick(8, 2),
        inputs.pick(128, 32),
        inputs.pick(40, 4),
    )
    folder = os.path.join(inputs.folder, name)
    strategy = "multiworker" if workers > 1 else "mirrored" if devices > 1 else "none"
    words = training_flags(inputs, filters, size, side, steps)
    words += ["--log_dir", "", "--save_summary_secs", "0", "--checkpoint_dir", folder, "--strategy", strategy]
    ports = free_ports(workers)
    environments = [{} for _ in range(workers)]
    if workers > 1:
        cluster = {"worker": [f"localhost:{port}" for port in ports]}
        for i, environment in enumerate(environments):
            environment["TF_CONFIG"] = json.dumps(
                {"cluster": cluster, "task": {"type": "worker", "index": i}}
            )
    if inputs.quick and strategy == "none":  # saves a start of TensorFlow
        with quiet():
            bls2017_vae.main(words)
    else:
        run_children(TRAIN, [[devices, *words]] * workers, environments)
    with open(os.path.join(folder, os.listdir(folder)[0], "log.csv"), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return np.array([float(r["loss"]) for r in rows]), np.array(
        [1 / float(r["steps_per_second"]) for r in rows]
    )


def free_ports(count):
    """Free ports on this machine's loopback."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def against_one(inputs, name, devices, workers):
    """Compares a distributed training with one process and the same global batch: an Outcome."""
    if "one" not in inputs.kept:
        inputs.kept["one"] = distributed(inputs, "one", 1, 1)
    losses, times = inputs.kept["one"]
    other_losses, other_times = distributed(inputs, name, devices, workers)
    one, other = (float(np.median(t[len(t) // 4 :])) for t in (times, other_times))
    equal = losses.shape == other_losses.shape and np.allclose(losses, other_losses, rtol=1e-3)
    return Outcome(f"{1 / other:.1f} steps/s", f"{1 / one:.1f} steps/s", one / other, equal)


@row(
    "two-devices",
    "training on two logical devices of this CPU",
    "one process, the same global batch",
    None,
    "the loss of every step, to 1e-3",
)
def two_devices(inputs):
    return against_one(inputs, "devices", 2, 1)


@row(
    "two-workers",
    "training in two processes on the loopback",
    "one process, the same global batch",
    None,
    "the loss of every step, to 1e-3",
)
def two_workers(inputs):
    return against_one(inputs, "workers", 1, 2)
