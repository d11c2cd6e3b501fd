"""The layers against those of tensorflow-compression."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_compression as tfc

from vbq import convolutions, layers


def test_kernel_starts_at_its_initial_value():
    value = np.random.default_rng(0).standard_normal((5, 5, 2, 3)).astype(np.float32)
    kernel = layers.RDFTKernel(tf.constant(value))
    assert kernel.kernel_rdft.shape == (25, 6)
    np.testing.assert_allclose(kernel(), value, atol=1e-5)
    assert kernel(tf.bfloat16).dtype == tf.bfloat16
    kernel.kernel_rdft.assign(tf.zeros([25, 6]))
    np.testing.assert_array_equal(kernel(), np.zeros_like(value))


def outputs_and_gradients(layer, x, variables):
    with tf.GradientTape() as tape:
        tape.watch([x, *variables])
        y = layer(x)
        loss = tf.reduce_sum(tf.sin(y))
    return [y, *tape.gradient(loss, [x, *variables])]


@pytest.mark.parametrize("dense_up_to", [0, 100])
@pytest.mark.parametrize(
    "size, stride", [(9, 4), (5, 2), (5, 1), (3, 2), (4, 2), (7, 3), (3, 4), (2, 3), (1, 2)]
)
@pytest.mark.parametrize("up", [False, True])
def test_convolution_equals_that_of_tensorflow_compression(up, size, stride, dense_up_to, monkeypatch):
    monkeypatch.setattr(convolutions, "DENSE_UP_TO", dense_up_to)
    x = tf.random.stateless_normal([2, 5, 4, 3] if up else [2, 2 * stride, 3 * stride, 3], [0, 1])
    kernel = tf.random.stateless_normal([size, size, 3, 5], [0, 2])
    bias = tf.random.stateless_normal([5], [0, 3])
    arguments = {
        "corr": not up,
        "strides_up": stride if up else 1,
        "strides_down": 1 if up else stride,
        "padding": "same_zeros",
        "use_bias": True,
        "kernel_parameter": lambda dtype=None: kernel,
        "bias_parameter": lambda dtype=None: bias,
    }
    ours, theirs = (
        outputs_and_gradients(layer(5, size, **arguments), x, [kernel, bias])
        for layer in (layers.SignalConv2D, tfc.SignalConv2D)
    )
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn_equals_that_of_tensorflow_compression(inverse):
    x = tf.random.stateless_normal([2, 5, 4, 6], [0, 1])
    ours = layers.GDN("float32", inverse=inverse)
    theirs = tfc.GDN(inverse=inverse, alpha_parameter=2, epsilon_parameter=0.5)
    results = []
    for layer in (ours, theirs):
        layer.build(x.shape)
        beta, gamma = layer.beta_parameter.variable, layer.gamma_parameter.variable
        gamma.assign(tf.random.stateless_uniform([6, 6], [0, 2], -0.1, 0.5))  # some below the bound
        beta.assign(tf.random.stateless_uniform([6], [0, 3]))
        results.append(outputs_and_gradients(layer, x, [beta, gamma]))
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    beta, gamma = (np.asarray(v, np.float64) for v in (ours.beta, ours.gamma))
    norm = np.sqrt(beta + np.asarray(x, np.float64) ** 2 @ gamma)
    np.testing.assert_allclose(results[0][0], x * norm if inverse else x / norm, rtol=1e-5)
