"""A model in training: its variables, on the devices of a strategy, and the step that updates them."""

import numpy as np
import tensorflow as tf

from vbq.checkpoints import Saver, is_ours, latest_state, literal, named_weights
from vbq.command import UserError
from vbq.priors import DeepFactorizedPrior
from vbq.record import check_init_run
from vbq.transforms import VAE

METRICS = ("loss", "elbo", "likelihood", "kl", "mse", "psnr")


def make_strategy(name):
    """Makes the strategy that distributes the training over devices.

    Args:
      name: str: "none" for one device, "mirrored" for all of this machine, "multiworker" for those of the
        workers that the environment variable `TF_CONFIG` names.

    Returns:
      tf.distribute.Strategy.
    """
    if name == "multiworker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "mirrored":
        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        return tf.distribute.MirroredStrategy(
            [device.name for device in tf.config.list_logical_devices(kind)]
        )
    return tf.distribute.get_strategy()


def rank(strategy):
    """Returns the number of this process among those that train together, and the number of these."""
    resolver = strategy.cluster_resolver
    workers = resolver.cluster_spec().as_dict().get("worker", []) if resolver else []
    return (resolver.task_id, len(workers)) if workers else (0, 1)


class Trainer:
    """A model, its optimizers, the moving average of its weights, and the training step."""

    def __init__(self, config, strategy, seed=0, clip_norm=0.0, ema_decay=0.0, mixed_precision=False):
        """Makes the variables.

        Args:
          config: ModelConfig.
          strategy: tf.distribute.Strategy.
          seed: int, of the noise.
          clip_norm: float, bound of the gradient's norm over all variables; 0 for none.
          ema_decay: float in [0, 1), decay per step of the moving average of the weights; 0 for none.
          mixed_precision: bool, see `VAE`.
        """
        self.strategy, self.seed, self.clip_norm, self.ema_decay = strategy, seed, clip_norm, ema_decay
        with strategy.scope():
            self.model = VAE(config, mixed_precision)
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="global_step")
            # Keras' older optimizer: it is one fused operation per variable, and its checkpoints name the
            # moments after the weights.
            adam = tf.keras.optimizers.legacy.Adam
            self.rate, self.prior_rate = (tf.Variable(0.0, trainable=False) for _ in range(2))
            self.optimizer = adam(lambda: self.rate, beta_1=0.9, beta_2=0.999, epsilon=1e-8)
            self.prior_optimizer = adam(lambda: self.prior_rate, beta_1=0.9, beta_2=0.999, epsilon=1e-8)
            self.weights = self.model.named_variables
            self.average = {}
            if ema_decay:
                self.average = {name: tf.Variable(v, trainable=False) for name, v in self.weights.items()}
        self.variables = [v for name, v in self.weights.items() if not name.startswith("prior/")]
        self.prior_variables = [v for name, v in self.weights.items() if name.startswith("prior/")]
        # The names of the parts are those in the checkpoints.
        parts = {"weights": self.weights, "optimizer": self.optimizer, "step": self.step}
        if self.prior_variables:
            parts["prior_optimizer"] = self.prior_optimizer
        if self.average:
            parts["average"] = self.average
        self.checkpoint = tf.train.Checkpoint(**parts)

    def saver(self, run_dir, secs=0):
        """Returns the `vbq.checkpoints.Saver` of this state, for a checkpoint every `secs` seconds."""
        return Saver(run_dir, self.checkpoint, self.step, self.variables + self.prior_variables, secs)

    def restore(self, run_dir):
        """Continues from the latest state in a directory, if there is one.

        A file of weights alone has no state of the optimizers: these then start anew.

        Args:
          run_dir: str.

        Returns:
          bool, whether there is a state.

        Raises:
          UserError: all states are damaged, or the latest does not fit the model.
        """
        state = latest_state(run_dir)
        if not state:
            return False
        step, path, arrays = state
        try:
            weights = named_weights(arrays)
            self.model.set_named_weights(weights)
        except ValueError as error:
            raise UserError(f"{path}: the weights are those of another model: {error}") from error
        self._set_average(named_weights(arrays, "average") or weights)
        self.step.assign(step)
        if is_ours(arrays):
            with literal(path) as name:
                self.checkpoint.restore(name).expect_partial()
        return True

    def start_from(self, run_dir):
        """Takes the weights of another run, or their moving average if it has one.

        The step and the optimizers stay as they are. A learned prior that the other run lacks does, too.

        Args:
          run_dir: str, of the other run.

        Returns:
          bool, whether the other run lacks a learned prior that this model has.

        Raises:
          UserError: there is no such run, it has no state, or its model has other layers.
        """
        check_init_run(run_dir, self.model.config)
        state = latest_state(run_dir)
        if not state:
            raise UserError(
                f"--init_run: {run_dir}: has neither a checkpoint, model.ckpt-STEP.index, nor weights.npz"
            )
        _, path, arrays = state
        try:
            weights = named_weights(arrays, "average") or named_weights(arrays)
            lacks_prior = not any(name.startswith("prior/") for name in weights)
            if lacks_prior:
                weights = self.model.named_weights() | weights
            self.model.set_named_weights(weights)
        except ValueError as error:
            raise UserError(f"{path}: the weights are those of another model: {error}") from error
        self._set_average(weights)
        return lacks_prior and bool(self.prior_variables)

    def fit_prior(self, batches):
        """Fits the learned prior to posterior samples of the latents of crops.

        Args:
          batches: iterable of crops, uint8 [B, H, W, 3].
        """
        samples = []
        for i, x in enumerate(batches):
            mean, logvar = self.model.analysis(tf.cast(x, tf.float32) / 255)
            noise = tf.random.stateless_normal(tf.shape(mean), tf.constant([self.seed, i], tf.int64))
            z = mean + tf.exp(0.5 * logvar) * noise
            samples.append(z.numpy().reshape(-1, z.shape[-1]))
        prior = DeepFactorizedPrior.fit(np.concatenate(samples), self.seed)
        weights = self._of_first_worker({f"prior/{name}": value for name, value in prior.arrays().items()})
        self.model.set_named_weights(self.model.named_weights() | weights)
        self._set_average(self.model.named_weights())

    def _of_first_worker(self, arrays):
        """Returns the first worker's arrays, dict by name: those of different machines may differ."""
        if rank(self.strategy)[1] == 1:
            return arrays

        @tf.function
        def share():
            context = tf.distribute.get_replica_context()
            is_first = tf.cast(tf.equal(context.replica_id_in_sync_group, 0), tf.float32)
            return context.all_reduce("SUM", [is_first * tf.cast(a, tf.float32) for a in arrays.values()])

        shared = self.strategy.run(share)
        return {
            name: self.strategy.experimental_local_results(value)[0] for name, value in zip(arrays, shared)
        }

    def _set_average(self, weights):
        for name, variable in self.average.items():
            variable.assign(weights[name])

    @tf.function
    def train_step(self, x, rate, prior_rate):
        """Updates the weights once.

        Args:
          x: uint8 [B, H, W, 3], or a distributed value that holds one part of the batch for each replica.
          rate, prior_rate: float32 scalars, learning rates of the transforms and of the prior.

        Returns:
          float32 [6], the `METRICS` before the update.
        """
        self.rate.assign(rate)
        self.prior_rate.assign(prior_rate)
        metrics = self.strategy.run(self._replica_step, args=(x,))
        for name, average in self.average.items():
            self.strategy.extended.update(
                average,
                lambda average, value: average.assign_add((1 - self.ema_decay) * (value - average)),
                args=(self.weights[name],),
            )
        # The optimizers count a step after all updates. If something fails before, `step` stays, too; and no
        # other device is waited for while this one's updates are under way.
        optimizers = [self.optimizer, self.prior_optimizer] if self.prior_variables else [self.optimizer]
        counts = [tf.identity(optimizer.iterations) for optimizer in optimizers]
        with tf.control_dependencies([*counts, *map(tf.identity, self.average.values())]):
            self.step.assign_add(1)
        with tf.control_dependencies([tf.identity(self.step)]):
            return self.strategy.reduce("MEAN", metrics, axis=None)

    def _replica_step(self, x):
        """As `train_step`, for one replica's part of the batch. Gradients are means over all replicas."""
        context = tf.distribute.get_replica_context()
        x, noise = self._inputs(x, context)
        with tf.GradientTape() as tape:
            outputs = self.model.loss(x, noise)
        gradients = tape.gradient(outputs["loss"], self.variables + self.prior_variables)
        if self.strategy.num_replicas_in_sync > 1:
            gradients = context.all_reduce("MEAN", gradients)
        if self.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm)
        # No weight changes before all gradients are there: a step that fails then leaves a state to save.
        with tf.control_dependencies(gradients):
            gradients = [tf.identity(gradient) for gradient in gradients]
        count = len(self.variables)
        for optimizer, pairs in (
            (self.optimizer, list(zip(gradients, self.variables))),
            (self.prior_optimizer, list(zip(gradients[count:], self.prior_variables))),
        ):
            if pairs:
                optimizer.apply_gradients(pairs, experimental_aggregate_gradients=False)
        return tf.stack([outputs[name] for name in METRICS])

    def _inputs(self, x, context):
        """Returns pixels in [0, 1] and this step's noise. The noise of an image is that of one device."""
        size, height, width, _ = x.shape
        config = self.model.config
        replicas = context.num_replicas_in_sync
        noise = tf.random.stateless_normal(
            [size * replicas, height // config.stride, width // config.stride, config.num_channels],
            seed=tf.stack([tf.constant(self.seed, tf.int64), self.step]),
        )
        first = context.replica_id_in_sync_group * size
        return tf.cast(x, tf.float32) / 255, noise[first : first + size]

    def distribute(self, x):
        """Splits this process' part of a batch, uint8 [B, H, W, 3], over its replicas."""
        replicas = self.strategy.num_replicas_in_sync // rank(self.strategy)[1]
        parts = np.split(x, replicas)
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group % replicas])
        )
