"""The deep factorized density against tfc.DeepFactorized, closed forms, and its own inverse."""

import numpy as np
import pytest

from vbq import priors
from vbq.code_points import code_point_probabilities
from vbq.files import load_npz, save_npz
from vbq.priors import DeepFactorizedPrior


def random_prior(seed, channels=4):
    random = np.random.default_rng(seed)
    parameters = priors._initial_parameters(channels, seed)
    return DeepFactorizedPrior(parameters + random.normal(scale=0.5, size=parameters.shape))


def to_tfc(prior):
    """The same density in tensorflow-compression."""
    import tensorflow as tf
    import tensorflow_compression as tfc

    density = tfc.DeepFactorized(
        batch_shape=(len(prior.parameters),), num_filters=priors.NUM_FILTERS, init_scale=1, dtype=tf.float64
    )
    for kind, variables in (
        ("matrix", density._matrices),
        ("bias", density._biases),
        ("factor", density._factors),
    ):
        for layer, variable in enumerate(variables):
            variable.assign(prior.arrays()[f"{kind}_{layer}"])
    return density


def test_equals_tfc():
    prior = random_prior(0)
    x = np.random.default_rng(1).normal(scale=5, size=(4, 50))
    density = to_tfc(prior)
    np.testing.assert_allclose(prior.cdf(x), density.cdf(x.T).numpy().T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(prior.log_prob(x), density.log_prob(x.T).numpy().T, rtol=1e-9, atol=1e-9)


def test_initial_density_is_that_of_tfc():
    import tensorflow_compression as tfc

    density = tfc.DeepFactorized(batch_shape=(4,), num_filters=priors.NUM_FILTERS, init_scale=7)
    arrays = DeepFactorizedPrior.initial(4, seed=3, scale=7.0).arrays()
    for kind, variables in (("matrix", density._matrices), ("factor", density._factors)):
        for layer, variable in enumerate(variables):
            np.testing.assert_allclose(arrays[f"{kind}_{layer}"], variable, rtol=1e-6, atol=0)
    for layer, variable in enumerate(density._biases):
        bias = arrays[f"bias_{layer}"]
        assert bias.shape == variable.shape and np.abs(bias).max() <= 0.5 and np.ptp(bias) > 0


def test_logistic_is_a_special_case():
    """Without factors the network is one affine map."""
    arrays = random_prior(0).arrays()
    arrays.update({name: np.zeros_like(a) for name, a in arrays.items() if name.startswith("factor")})
    prior = DeepFactorizedPrior.from_arrays(arrays)
    offset, slope = (a[:, :1] for a in prior.logits_and_slope(np.zeros((4, 1))))
    x = np.linspace(-9, 9, 13)[None]
    np.testing.assert_allclose(prior.cdf(x), 1 / (1 + np.exp(-offset - slope * x)), rtol=1e-9)


def test_saved_equals_loaded(tmp_path):
    prior = random_prior(3)
    save_npz(tmp_path / "prior.npz", prior.arrays())
    loaded = DeepFactorizedPrior.from_arrays(load_npz(tmp_path / "prior.npz"))
    np.testing.assert_array_equal(loaded.parameters, prior.parameters)
    arrays = prior.arrays()
    arrays["bias_1"] = arrays["bias_1"][:, :2]
    with pytest.raises(ValueError, match="bias_1"):
        DeepFactorizedPrior.from_arrays(arrays)


@pytest.mark.parametrize("seed", range(3))
def test_inverse_of_the_cdf(seed):
    prior = random_prior(seed, channels=20)
    probabilities = np.concatenate([[1e-9], code_point_probabilities(10), [1 - 1e-9]])
    x = prior.inverse_cdf(probabilities)
    assert np.isfinite(x).all() and np.all(np.diff(x) > 0)
    np.testing.assert_allclose(prior.cdf(x), np.tile(probabilities, (20, 1)), atol=1e-8)


def test_gradient_of_the_likelihood():
    """Against finite differences, in all parameters."""
    random = np.random.default_rng(0)
    parameters = random_prior(0, channels=2).parameters
    ends = random.normal(size=(2, 30))
    weight = random.normal(size=ends.shape)

    def value(parameters):
        return np.sum(weight * priors._value_and_tape(priors._split(parameters), ends)[0])

    gradient = priors._gradient(priors._value_and_tape(priors._split(parameters), ends)[1], weight)
    for i in np.ndindex(parameters.shape):
        step = np.zeros_like(parameters)
        step[i] = 1e-6
        assert abs((value(parameters + step) - value(parameters - step)) / 2e-6 - gradient[i]) < 1e-6


def test_fit_reaches_the_entropy_of_a_known_density():
    x = np.random.default_rng(0).logistic(3, 20, size=(50000, 1))
    nats = -DeepFactorizedPrior.fit(x).log_prob(x.T).mean()
    assert abs(nats - (2 + np.log(20))) < 0.01


@pytest.mark.slow
def test_fit_is_as_good_as_a_long_run_of_adam():
    """A bimodal, a skewed and a heavy-tailed channel; tfc's own density, full batch, decaying steps."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    x = np.stack(
        [
            random.choice([-2, 2], 1000) + random.normal(size=1000),
            random.gumbel(size=1000),
            random.standard_t(3, size=1000),
        ],
        axis=1,
    )
    ours = -DeepFactorizedPrior.fit(x).log_prob(x.T).mean(axis=1)

    density = to_tfc(DeepFactorizedPrior(priors._initial_parameters(3, 0)))
    steps = 1500
    adam = tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.CosineDecay(0.03, steps))
    data = tf.constant(x)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(density.log_prob(data), axis=0)
        adam.apply_gradients(
            zip(tape.gradient(loss, density.trainable_variables), density.trainable_variables)
        )
        return loss

    for _ in range(steps):
        theirs = step()
    assert np.all(ours <= theirs.numpy() + 2e-3), (ours, theirs)


def degenerate_channels():
    random = np.random.default_rng(0)
    x = random.normal(size=4000)
    once = np.arange(4000) == 7
    return {
        "constant": np.zeros(4000),
        "constant 100": np.full(4000, 100.0),
        "tiny variance": 3 + 1e-8 * x,
        "an outlier": np.where(once, 1e3, x),
        "one other value": once * 1.0,
        "half at one value": np.where(x > 0, 0, x),
        "two values": np.round(random.random(4000)),
        "far modes": np.where(random.random(4000) < 0.5, x - 100, x + 100),
        "Cauchy": random.standard_cauchy(4000),
        "large": 1e6 * x,
        "integers": np.round(3 * x),
    }


@pytest.mark.slow
def test_degenerate_channels_stay_finite():
    channels = degenerate_channels()
    samples = np.stack(list(channels.values()), axis=1).astype(np.float32)
    prior = DeepFactorizedPrior.fit(samples)
    probabilities = code_point_probabilities(10)
    points = prior.inverse_cdf(probabilities)
    assert np.isfinite(points).all() and np.all(np.diff(points) >= 0)
    np.testing.assert_allclose(prior.cdf(points), np.tile(probabilities, (len(points), 1)), atol=1e-6)
    assert np.isfinite(prior.log_prob(points)).all()
    points = dict(zip(channels, points))
    assert np.ptp(points["constant 100"]) < 0.1 and abs(points["constant 100"][1023] - 100) < 0.01
    assert (
        abs(points["an outlier"][1023]) < 0.1 and np.abs(points["an outlier"]).max() < 20
    )  # the bulk decides
    middle = np.sort(np.abs(points["far modes"]))[5:]
    assert 90 < middle.mean() < 110


@pytest.mark.slow
def test_few_samples():
    samples = np.random.default_rng(0).normal(size=(3, 2))
    for count in (1, 2, 3):
        assert np.isfinite(
            DeepFactorizedPrior.fit(samples[:count]).inverse_cdf(np.array([0.001, 0.5, 0.999]))
        ).all()


@pytest.mark.slow
def test_fit_is_deterministic_and_uses_its_seed():
    x = np.random.default_rng(0).laplace(size=(2000, 2))
    first, again, other = (DeepFactorizedPrior.fit(x, seed).parameters for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
