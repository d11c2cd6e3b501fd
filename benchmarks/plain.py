"""Plain implementations, written for clarity alone, that the fast ones are compared with."""

import numpy as np
import tensorflow as tf
import tensorflow_compression as tfc

import plain_metrics
import post_process
import transforms
import utils


class PlainVAE(transforms.VAE):
    """The layers of tensorflow-compression as they come, with the weights of another model."""

    def __init__(self, model):
        """Args: model: transforms.VAE without a learned prior."""
        tf.Module.__init__(self, name="plain_vae")
        self.likelihood_variance, self.num_channels, self.stride = model.likelihood_variance, model.num_channels, model.stride
        self.prior = None
        self.analysis_layers, self.synthesis_layers = (
            [(plain_convolution(conv), gdn and plain_gdn(gdn)) for conv, gdn in layers]
            for layers in (model.analysis_layers, model.synthesis_layers))


def plain_convolution(conv):
    # RDFTParameter is what the default, kernel_parameter="rdft", makes when the layer is built.
    layer = tfc.SignalConv2D(conv.filters, conv.kernel_support, corr=conv.corr, strides_down=conv.strides_down,
                             strides_up=conv.strides_up, padding="same_zeros", use_bias=conv.use_bias,
                             kernel_parameter=tfc.RDFTParameter(conv.kernel_parameter()))
    layer.build([None, None, None, conv.kernel_parameter.shape[2]])
    if conv.use_bias:
        layer.bias_parameter.assign(conv.bias_parameter)
    return layer


def plain_gdn(gdn):
    layer = tfc.GDN(inverse=gdn.inverse, alpha_parameter=2, epsilon_parameter=.5)
    layer.build([None, None, None, gdn.beta_parameter.variable.shape[0]])
    layer.beta_parameter.variable.assign(gdn.beta_parameter.variable)
    layer.gamma_parameter.variable.assign(gdn.gamma_parameter.variable)
    return layer


def same_step(model, x, noise, tolerance=1e-3):
    """Whether a model's loss and gradients are those of its `PlainVAE`.

    Args:
      model: transforms.VAE.
      x: float32 [B, H, W, 3] in [0, 1].
      noise: float32 [B, H / stride, W / stride, C].
      tolerance: float, of each gradient, relative to its norm; of the loss a thousandth of it.

    Returns:
      bool.
    """
    plain = PlainVAE(model)
    with tf.GradientTape() as tape:
        loss = model.loss(x, noise)["loss"]
    names = model.named_variables
    gradients = dict(zip(names, tape.gradient(loss, list(names.values()))))
    with tf.GradientTape() as tape:
        plain_loss = plain.loss(x, noise)["loss"]
    plain_gradients = iter(tape.gradient(plain_loss, plain_variables(plain)))

    expected, found = [], []
    for (conv, gdn), (plain_conv, _) in zip(model.analysis_layers + model.synthesis_layers,
                                            plain.analysis_layers + plain.synthesis_layers):
        # Both are linear in their parameters; a gradient of our kernel is taken to the plain layer's parameters.
        parameter, kernel = plain_conv.kernel_parameter, conv.kernel_parameter
        kernel_gradient = tf.matmul(kernel.basis, gradients.pop(next(n for n, v in names.items() if v is kernel.kernel_rdft)))
        with tf.GradientTape() as tape:
            value = parameter()
        ours = tape.gradient(value, [parameter.real, parameter.imag], tf.reshape(kernel_gradient, kernel.shape))
        others = [conv.bias_parameter] if conv.use_bias else []
        others += [gdn.beta_parameter.variable, gdn.gamma_parameter.variable] if gdn else []
        for gradient in ours + [gradients.pop(next(n for n, v in names.items() if v is variable)) for variable in others]:
            found.append(gradient.numpy())
            expected.append(next(plain_gradients).numpy())
    return bool(abs(loss - plain_loss) <= 1e-3 * tolerance * abs(plain_loss)) and all(
        np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b) for a, b in zip(found, expected))


def plain_variables(plain):
    """The variables of a `PlainVAE`, layer by layer."""
    variables = []
    for conv, gdn in plain.analysis_layers + plain.synthesis_layers:
        variables += [conv.kernel_parameter.real, conv.kernel_parameter.imag]
        variables += [conv.bias_parameter] if conv.use_bias else []
        variables += [gdn.beta_parameter.variable, gdn.gamma_parameter.variable] if gdn else []
    return variables


# Quantizers: axis letters as there.


def best_code_points(quantizer, mean, std, lamb, lengths):
    """Indices and costs, [C, B] each, of the best of all code points for latents [C, B], under lengths [C, K] in bits."""
    indices, costs = np.empty(mean.shape, np.int64), np.empty(mean.shape)
    for c in range(len(mean)):
        points = quantizer.code_points[c].astype(np.float64)
        for b in range(0, mean.shape[1], 4096):
            here = c, slice(b, b + 4096)
            distance = (points - mean[here][:, None].astype(np.float64)) / std[here][:, None]
            cost = .5 * distance**2 + lamb * lengths[c]
            indices[here] = np.argmin(cost, axis=1)
            costs[here] = cost[np.arange(len(cost)), indices[here]]
    return indices, costs


def bit_lengths(max_bits):
    """The number of bits n of every xi = (i + 1/2) / 2^n in ascending order, int64 [K]."""
    pairs = [((i + .5) / 2**n, n) for n in range(max_bits + 1) for i in range(2**n)]
    return np.array([n for _, n in sorted(pairs)])


def smoothed_lengths(counts):
    """-log2 of add-one smoothed frequencies along the last axis."""
    return -np.log2((counts + 1.) / (counts + 1.).sum(axis=-1, keepdims=True))


def quantize(quantizer, setting, mean, std):
    """As `post_process.quantize` at one setting: quantized latents like mean, [..., C], and bits, a float."""
    channels = mean.shape[-1]
    mean, std, shape = mean.reshape(-1, channels).T, std.reshape(-1, channels).T, mean.shape
    if hasattr(quantizer, "lambs"):
        table, bits = list(quantizer.lambs).index(setting), bit_lengths(quantizer.max_bits)
        lengths = (np.arange(quantizer.max_bits + 1) + smoothed_lengths(quantizer.bit_length_counts[table]))[:, bits]
        indices, _ = best_code_points(quantizer, mean, std, setting, lengths)
        points, lengths = quantizer.code_points, smoothed_lengths(quantizer.index_counts[table])
    else:
        points, counts = quantizer.code_points[setting].astype(np.float64), quantizer.counts[setting].astype(np.float64)
        indices = np.stack([np.argmin(abs(x[:, None] - row), axis=1) for x, row in zip(mean, points)])
        counts += (counts == 0).any(axis=1, keepdims=True)
        lengths = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    z_hat = np.take_along_axis(points, indices, axis=1).T.reshape(shape)
    return z_hat.astype(np.float32), np.take_along_axis(lengths, indices, axis=1).sum()


def same_evaluation(run, quantizers, results, path, number, settings, all_metrics=True):
    """Whether results of one image are those of plain quantizers, stock layers and plain metrics.

    Args:
      run: bls2017_vae.Run.
      quantizers: dict from names to quantizers.
      results: dict from names to arrays of a result file.
      path: str, the image.
      number: int, of the image in the results.
      settings: dict from names to the numbers of the settings to check.
      all_metrics: bool; False for MSE alone, where an image is large.

    Returns:
      bool. Stock layers differ from ours by rounding, and so do a few of the reconstruction's 8-bit values: figures have to
      agree to 1e-4 of their value (or, for those in dB, 1e-3 dB).
    """
    image = utils.read_image(path)
    height, width = image.shape[:2]
    plain = PlainVAE(run.model)
    pad = [(0, 0), (0, -height % run.stride), (0, -width % run.stride), (0, 0)]
    mean, logvar = (x.numpy() for x in plain.analysis(np.pad(image[None], pad, mode="edge").astype(np.float32) / 255))
    same = True
    for name, numbers in settings.items():
        for s in numbers:
            setting = post_process.settings_of(quantizers[name])[s]
            z_hat, bits = quantize(quantizers[name], setting, mean, np.exp(.5 * logvar))
            x_hat = plain.synthesis(z_hat).numpy()[0, :height, :width]
            x_hat = np.round(255 * np.clip(x_hat, 0, 1)).astype(np.uint8)
            if all_metrics:
                expected = plain_metrics.metrics(image, x_hat)
            else:
                expected = {"MSE (RGB)": np.mean(np.square(x_hat, dtype=np.float64) - 2. * x_hat * image
                                                 + np.square(image, dtype=np.float64))}
            expected |= {"B": bits, "BPP": bits / (height * width)}
            same &= all(np.isclose(results[name][key][number, s], value, rtol=1e-4, atol=1e-3 if "dB" in key else 1e-4)
                        for key, value in expected.items())
    return bool(same)
