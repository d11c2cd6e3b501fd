"""The model, its flags, and loading a run."""
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_compression as tfc

import bls2017_vae
import training
import transforms
import utils

GOLDEN_RUN = ("bls2017_vae-num_filters=8_8_8-filter_dims=9_5_5-sampling_rates=4_2_2-learned_prior=False"
              "-likelihood_variance=0.001-last_step=1500")
TINY = dict(num_filters=[4, 3], filter_dims=[5, 3], sampling_rates=[2, 2])


@pytest.fixture(scope="module", name="run")
def fixture_run():
    here = os.path.dirname(os.path.abspath(__file__))
    return bls2017_vae.load_run(os.path.join(here, "golden", "checkpoints"), GOLDEN_RUN)


@pytest.fixture(scope="module", name="expected")
def fixture_expected():
    return utils.load_npz(os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "expected.npz"))


# Layers.


@pytest.mark.parametrize("height, width", [(9, 9), (5, 5), (4, 6), (1, 2)])
def test_rdft_basis_is_orthonormal(height, width):
    basis = transforms.rdft_basis(height, width)
    np.testing.assert_allclose(basis.T @ basis, np.eye(height * width), atol=1e-12)
    np.testing.assert_allclose(basis[:, 0], 1 / np.sqrt(height * width))  # the first coefficient is the mean's


def test_rdft_basis_diagonalizes_circular_shifts_like_a_fourier_basis():
    size = 5
    basis = transforms.rdft_basis(size, size)
    energy = (basis.T @ np.random.default_rng(0).standard_normal(size**2)).reshape(size, size)**2
    shifted = np.roll((basis @ np.sqrt(energy).ravel()).reshape(size, size), (1, 2), axis=(0, 1))
    moved = (basis.T @ shifted.ravel()).reshape(size, size)**2
    pairs = [[0], [1, 2], [3, 4]]  # the mean; real and imaginary parts
    for rows in pairs:
        for columns in pairs:
            block = np.ix_(rows, columns)
            assert moved[block].sum() == pytest.approx(energy[block].sum())


def test_rdft_kernel_starts_at_its_initial_value_and_freezes():
    value = np.random.default_rng(0).standard_normal((5, 5, 2, 3)).astype(np.float32)
    kernel = transforms.RDFTKernel(tf.constant(value))
    assert kernel.kernel_rdft.shape == (25, 6)
    np.testing.assert_allclose(kernel(), value, atol=1e-5)
    assert kernel(tf.bfloat16).dtype == tf.bfloat16
    kernel.freeze()
    kernel.kernel_rdft.assign(tf.zeros([25, 6]))
    np.testing.assert_allclose(kernel(), value, atol=1e-5)


def outputs_and_gradients(layer, x, variables):
    with tf.GradientTape() as tape:
        tape.watch([x, *variables])
        y = layer(x)
        loss = tf.reduce_sum(tf.sin(y))
    return [y, *tape.gradient(loss, [x, *variables])]


@pytest.mark.parametrize("dense_up_to", [0, 100])
@pytest.mark.parametrize("size, stride", [(9, 4), (5, 2), (5, 1), (3, 2), (4, 2), (7, 3), (3, 4), (2, 3), (1, 2)])
@pytest.mark.parametrize("up", [False, True])
def test_convolution_equals_that_of_tensorflow_compression(up, size, stride, dense_up_to, monkeypatch):
    monkeypatch.setattr(transforms, "DENSE_UP_TO", dense_up_to)
    x = tf.random.stateless_normal([2, 5, 4, 3] if up else [2, 2 * stride, 3 * stride, 3], [0, 1])
    kernel = tf.random.stateless_normal([size, size, 3, 5], [0, 2])
    bias = tf.random.stateless_normal([5], [0, 3])
    arguments = dict(corr=not up, strides_up=stride if up else 1, strides_down=1 if up else stride, padding="same_zeros",
                     use_bias=True, kernel_parameter=lambda dtype=None: kernel, bias_parameter=lambda dtype=None: bias)
    ours, theirs = (outputs_and_gradients(layer(5, size, **arguments), x, [kernel, bias])
                    for layer in (transforms.SignalConv2D, tfc.SignalConv2D))
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn_equals_that_of_tensorflow_compression(inverse):
    x = tf.random.stateless_normal([2, 5, 4, 6], [0, 1])
    ours, theirs = transforms.GDN(inverse=inverse), tfc.GDN(inverse=inverse, alpha_parameter=2, epsilon_parameter=.5)
    results = []
    for layer in (ours, theirs):
        layer.build(x.shape)
        layer.gamma_parameter.variable.assign(tf.random.stateless_uniform([6, 6], [0, 2], -.1, .5))  # some below the bound
        layer.beta_parameter.variable.assign(tf.random.stateless_uniform([6], [0, 3]))
        results.append(outputs_and_gradients(layer, x, [layer.beta_parameter.variable, layer.gamma_parameter.variable]))
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    beta, gamma = (np.asarray(v, np.float64) for v in (ours.beta, ours.gamma))
    norm = np.sqrt(beta + np.asarray(x, np.float64)**2 @ gamma)
    np.testing.assert_allclose(results[0][0], x * norm if inverse else x / norm, rtol=1e-5)


# The model.


def test_loss_is_the_negative_evidence_lower_bound():
    model = transforms.VAE(**TINY, likelihood_variance=.01)
    rng = np.random.default_rng(0)
    x = rng.random((2, 8, 12, 3), np.float32)
    noise = rng.standard_normal((2, 2, 3, 3), np.float32)
    outputs = {name: np.asarray(value, np.float64) for name, value in model.loss(x, noise).items()}
    mean, logvar = (np.asarray(a, np.float64) for a in model.analysis(x))
    std = np.exp(logvar / 2)
    z = mean + std * noise
    x_hat = model.synthesis(z.astype(np.float32)).numpy()
    likelihood = scipy.stats.norm.logpdf(x, x_hat, .1).sum() / 2
    kl = (scipy.stats.norm.logpdf(z, mean, std) - scipy.stats.norm.logpdf(z)).sum() / 2
    mse = np.mean((x - x_hat)**2)
    np.testing.assert_allclose(outputs["x_hat"], x_hat, atol=1e-6)
    for name, value in dict(likelihood=likelihood, kl=kl, elbo=likelihood - kl, loss=kl - likelihood, mse=mse,
                            psnr=-10 * np.log10(mse)).items():
        assert outputs[name] == pytest.approx(value, rel=1e-4), name


def test_learned_prior_replaces_the_standard_normal():
    model = transforms.VAE(**TINY, learned_prior=True, prior_init_scale=5.)
    x, noise = np.full((1, 8, 8, 3), .5, np.float32), np.zeros((1, 2, 2, 3), np.float32)
    z, logvar = model.analysis(x)
    log_q = np.sum(-.5 * (logvar + transforms.LOG_2PI))
    assert model.loss(x, noise)["kl"].numpy() == pytest.approx(log_q - np.sum(model.prior.log_prob(z)), rel=1e-5)
    assert sum(name.startswith("prior/") for name in model.named_weights()) == 11
    assert len(model.trainable_variables) == len(model.named_variables)


def test_mixed_precision_computes_convolutions_only_in_bfloat16():
    exact, mixed = transforms.VAE(**TINY), transforms.VAE(**TINY, mixed_precision=True)
    mixed.set_named_weights(exact.named_weights())
    conv, gdn = mixed.analysis_layers[0]
    x, noise = np.random.default_rng(0).random((2, 16, 16, 3), np.float32), np.zeros((2, 4, 4, 3), np.float32)
    assert conv(x).dtype == tf.bfloat16 and gdn(conv(x)).dtype == tf.float32
    assert all(v.dtype == tf.float32 for v in mixed.trainable_variables)
    found, expected = (model.loss(x, noise)["loss"] for model in (mixed, exact))
    assert found.dtype == tf.float32 and float(found) == pytest.approx(float(expected), rel=.02)


def test_weights_round_trip_by_name_and_misfits_change_nothing():
    one, two = transforms.VAE(**TINY), transforms.VAE(**TINY)
    weights = one.named_weights()
    assert weights["sequential_1/layer_0/igdn_0/reparam_gamma"].shape == (4, 4)
    two.set_named_weights(weights)
    for name, value in two.named_weights().items():
        np.testing.assert_array_equal(value, weights[name])
    changed = {name: value + 1 for name, value in weights.items()}
    del changed["sequential_1/layer_1/bias"]
    with pytest.raises(ValueError, match=r"sequential_1/layer_1/bias: expected shape \(3,\), found nothing"):
        two.set_named_weights(changed)
    np.testing.assert_array_equal(two.named_weights()["sequential/layer_0/bias"], weights["sequential/layer_0/bias"])


# A run.


def test_tensorflow_1_checkpoint_gives_the_originals_figures(run, expected, golden, china):
    assert run.step == 1500 and run.num_channels == 8 and run.stride == 16 and run.name == GOLDEN_RUN
    mean, logvar = run.encode(china[None])
    np.testing.assert_allclose(mean, expected["mean"], atol=1e-4)
    np.testing.assert_allclose(logvar, expected["logvar"], atol=1e-4)
    np.testing.assert_allclose(run.decode(expected["mean"]), expected["x_hat_of_mean"], atol=1e-4)
    images = np.load(os.path.join(golden, "val_imgs_uint8.npy"), mmap_mode="r")
    for found, name in zip(run.encode(images), ("val_mean", "val_logvar")):
        np.testing.assert_allclose(found, expected[name], atol=1e-4)


def test_fingerprint_is_pinned(run):
    assert run.fingerprint == "7371ca1f2772eba39f9b9db7429c8782b40b3ee167458ed7d8195b90b2d749ce"


def test_sides_that_are_no_multiple_of_the_stride_are_extended_and_cropped_again(run, china):
    odd = china[:100, :90]
    mean, _ = run.encode(odd[None])
    padded, _ = run.encode(np.pad(odd, [(0, 12), (0, 6), (0, 0)], mode="edge")[None])
    np.testing.assert_array_equal(mean, padded)
    x_hat = run.decode(mean, 100, 90)
    assert x_hat.shape == (1, 100, 90, 3) and x_hat.dtype == np.float32
    np.testing.assert_array_equal(x_hat, run.decode(mean)[:, :100, :90])


def test_uint8_and_float_images_and_any_batch_give_the_same(run, china, monkeypatch):
    images = np.stack([china, china[::-1]])
    mean, _ = run.encode(images)
    np.testing.assert_allclose(run.encode(images / 255)[0], mean, atol=1e-5)
    monkeypatch.setattr(bls2017_vae, "MAX_PIXELS", 1)
    np.testing.assert_allclose(run.encode(images)[0], mean, atol=1e-5)
    assert run.decode(mean).shape == images.shape


def make_run(folder, name="run", **state):
    """A run directory with `args.json` and, if there is a state, `weights.npz`."""
    path = folder / name
    path.mkdir()
    args = dict(TINY, learned_prior=False, prior_init_scale=10., likelihood_variance=.02)
    (path / "args.json").write_text(json.dumps(args))
    if state:
        utils.save_npz(path / "weights.npz", state)
    return path


def test_run_of_weights_alone_in_half_precision(tmp_path):
    weights = transforms.VAE(**TINY).named_weights()
    make_run(tmp_path, "run [ab]*", global_step=7, **{name: w.astype(np.float16) for name, w in weights.items()})
    run = bls2017_vae.load_run(tmp_path, "run [ab]*")  # a name, not a glob
    assert run.step == 7 and run.stride == 4
    np.testing.assert_allclose(run.model.named_weights()["sequential/layer_1/kernel_rdft"],
                               weights["sequential/layer_1/kernel_rdft"], atol=1e-3)


def test_bad_runs_are_told_in_one_line(tmp_path, golden):
    def failure(name):
        with pytest.raises(utils.UserError) as error:
            bls2017_vae.load_run(str(tmp_path), name)
        assert "\n" not in str(error.value) and name in str(error.value)
        return str(error.value)

    assert "expected the directory of a run" in failure("missing")
    make_run(tmp_path, "empty")
    assert "expected a checkpoint" in failure("empty")
    (make_run(tmp_path, "garbled") / "args.json").write_text("{")
    assert "expected args.json" in failure("garbled")
    (make_run(tmp_path, "incomplete") / "args.json").write_text("{}")
    assert "num_filters" in failure("incomplete")
    (make_run(tmp_path, "damaged") / "weights.npz").write_bytes(b"PK")
    assert "weights.npz" in failure("damaged")
    shutil.copytree(os.path.join(golden, "checkpoints", GOLDEN_RUN), tmp_path / "misfit")
    shutil.copy(tmp_path / "empty" / "args.json", tmp_path / "misfit")
    assert "expected weights that fit args.json" in failure("misfit")


def test_run_names_are_no_patterns(tmp_path, golden):
    shutil.copytree(os.path.join(golden, "checkpoints", GOLDEN_RUN), tmp_path / "run[1]*")
    assert bls2017_vae.load_run(str(tmp_path), "run[1]*").step == 1500
    with pytest.raises(utils.UserError, match="expected the directory of a run"):
        bls2017_vae.load_run(str(tmp_path), "run*")


# Flags.


def test_run_names_are_the_originals():
    args = bls2017_vae.parse_args("--patchsize 256 --last_step 2000000 --likelihood_variance 0.001 "
                                  "--num_filters 256 256 256".split())
    assert bls2017_vae.runname(args) == (
        "bls2017_vae-num_filters=256_256_256-filter_dims=9_5_5-sampling_rates=4_2_2-learned_prior=False"
        "-likelihood_variance=0.001-last_step=2000000")
    args = bls2017_vae.parse_args(["--learned_prior"])
    assert "-learned_prior=True-prior_init_scale=10.0-prior_lr=0.001-likelihood_variance=0.02-" in bls2017_vae.runname(args)


def test_learning_rate_schedules():
    constant = bls2017_vae.parse_args([])
    assert {bls2017_vae.learning_rate(constant, step) for step in (0, 50000, 99999)} == {1e-4}
    args = bls2017_vae.parse_args("--lr_schedule cosine --warmup_steps 10 --last_step 110".split())
    rates = [bls2017_vae.learning_rate(args, step) for step in range(110)]
    assert rates[0] == pytest.approx(1e-4 / 11) and max(rates) == rates[10] == 1e-4
    assert rates[60] == pytest.approx(.5e-4) and 0 < rates[-1] < 1e-7
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("flags, message", [
    ("--num_filters 4 4", "lists of one length"), ("--num_filters 4 0 4", "integer >= 1"), ("--batchsize -1", "integer >= 1"),
    ("--likelihood_variance 0", "number > 0"), ("--learning_rate nan", "number > 0"), ("--last_step 1.5", "integer >= 1"),
    ("--patchsize 40", "multiple of 16"), ("--ema_decay 1", "< 1"), ("--min_scale 1.5", "<= 1"), ("--seed -1", ">= 0"),
    ("--strategy all", "invalid choice"), ("--nonsense", "unrecognized")])
def test_usage_errors_exit_with_2_and_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as error:
        bls2017_vae.main(flags.split())
    assert error.value.code == 2
    text = capsys.readouterr().err
    assert message in text and text.count("\n") == 1


def test_help_and_flags_need_no_tensorflow():
    code = ("import sys, bls2017_vae; bls2017_vae.parse_args([]); "
            "assert not {'tensorflow', 'scipy'} & set(sys.modules), sys.modules.keys()")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.path.dirname(bls2017_vae.__file__))


def test_states_of_a_directory_without_any(tmp_path):
    assert training.latest_state(str(tmp_path)) is None and training.latest_state(str(tmp_path / "none")) is None
