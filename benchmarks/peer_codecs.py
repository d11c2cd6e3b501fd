"""The codecs that `peers.py` compares; each runs in a process of its own, so that its peak memory is its own.

    python benchmarks/peer_codecs.py FOLDER

The folder has `job.json`: `codec` (a class of this file) and its `options`, the `settings`, and `pictures`,
names of uint8 arrays [H, W, 3] in `.npy` files. The process adds the decoded pictures and `result.json`. The
metrics are left to `peers.py`, because they take memory, too.

An encoder is a function of an image, uint8 [H, W, 3], and a setting, and a decoder one of what the encoder
returned. The time of a picture is that of one call, with the model loaded.
"""

import importlib.metadata
import io
import json
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, os.pardir)]

import numpy as np
from measure import peak_memory
from PIL import Image, features

# The process of CompressAI may run in another Python than the project's, which has NumPy and Pillow, but not
# the rest. So what a codec needs is imported where it is made.


class Pillow:
    """A format of Pillow, with Pillow's defaults except for the setting and, in JPEG 2000, the wavelet and
    the colour transform.
    """

    packages = ("pillow",)
    gives_pictures = True
    # By Pillow's name of a format: its name in PIL.features, and how a setting is passed.
    formats = {
        "JPEG": ("jpg", lambda quality: {"quality": quality}),
        "WEBP": ("webp", lambda quality: {"quality": quality}),
        "AVIF": ("avif", lambda quality: {"quality": quality}),
        # The setting is in bits per pixel, Pillow's is how many times smaller than the 24 bits of a pixel. Of
        # lossy files these are the usual wavelet (9/7) and colours (YCbCr); Pillow's defaults are worse.
        "JPEG2000": (
            "jpg_2000",
            lambda bpp: {"quality_layers": [24 / bpp], "irreversible": True, "mct": 1},
        ),
    }

    def __init__(self, format_):
        """Takes Pillow's name of a format."""
        feature, self._options = self.formats[format_]
        self._format = format_
        library = "libjpeg_turbo" if features.check("libjpeg_turbo") and feature == "jpg" else feature
        self.version = f"Pillow {Image.__version__}, {library} {features.version(library)}"
        # Pillow lets libavif use all cores; the others are called without threads.
        self.threads = _cores() if format_ == "AVIF" else 1

    def encode(self, image, setting):
        """Returns the bytes of a file."""
        file = io.BytesIO()
        Image.fromarray(image).save(file, self._format, **self._options(setting))
        return file.getvalue()

    def decode(self, data):
        """Returns the picture in a file, uint8 [H, W, 3]."""
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


class Vbq:
    """This project's codec, with a trained model."""

    packages = ("tensorflow-compression", "constriction", "scipy", "pillow", "tqdm")
    gives_pictures = True

    def __init__(self, checkpoint_dir, runname, mixed_precision=False, joint_steps=0):
        """Loads a model; the arguments are those of `codec.py`."""
        from codec import Encoder, codec_of, load_run

        self._codec = codec_of(load_run(checkpoint_dir, runname, mixed_precision))
        self._encoder = lambda image: Encoder(self._codec, image, joint_steps)
        fit = self._codec.quantizer.description
        self.version = f"fit of {fit}; TensorFlow {importlib.metadata.version('tensorflow')}"
        self.threads = _cores()

    def encode(self, image, setting):
        """Returns the bytes of a file; the setting is lambda."""
        return self._encoder(image).compress(setting).data

    def decode(self, data):
        """Returns the picture in a file, uint8 [H, W, 3]."""
        header, indices = self._codec.read(data)
        return self._codec.reconstruct(indices, header.lamb_index, header.height, header.width)


class CompressAI:
    """A model of CompressAI with random weights: its time and memory are those of the trained one, its files
    and pictures mean nothing.
    """

    packages = ("compressai",)
    gives_pictures = False
    stride = 64  # both models take sides that are multiples of it

    def __init__(self, architecture, quality):
        """Takes the name of a function of `compressai.zoo`, and its quality."""
        import compressai
        import torch
        from compressai import zoo

        self._torch = torch
        torch.manual_seed(0)
        self._model = getattr(zoo, architecture)(quality, pretrained=False).eval()
        self._model.update()  # makes the tables of the range coder
        self.version = f"CompressAI {compressai.__version__}, PyTorch {torch.__version__}"
        self.threads = torch.get_num_threads()

    def encode(self, image, setting):
        """Returns the height and width, and what `compress` of the model returns."""
        height, width, _ = image.shape
        pixels = self._torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        padding = 0, -width % self.stride, 0, -height % self.stride
        with self._torch.no_grad():
            padded = self._torch.nn.functional.pad(pixels, padding)
            return height, width, self._model.compress(padded)

    def decode(self, data):
        """Returns the picture, uint8 [H, W, 3]."""
        height, width, coded = data
        with self._torch.no_grad():
            x_hat = self._model.decompress(**coded)["x_hat"][0, :, :height, :width]
        return (x_hat.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def _cores():
    from vbq.threads import cores

    return cores()


# The size of what has to be installed.


def requirements_of(names):
    """The packages that some packages need, themselves included, extras left out.

    Args:
      names: iterable of str, installed packages.

    Returns:
      List of importlib.metadata.Distribution, each once. What is not installed is left out.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found, waiting = {}, list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        requirements = map(Requirement, found[name].requires or ())
        waiting += [one.name for one in requirements if not one.marker or one.marker.evaluate({"extra": ""})]
    return list(found.values())


def installed_bytes(names):
    """The size in bytes of the files of `requirements_of` some packages."""
    files = {file.locate() for one in requirements_of(names) for file in one.files or ()}
    return sum(os.path.getsize(file) for file in files if os.path.exists(file))


# The process.


def timed(function, *args):
    """The result of a call, and its wall time in seconds."""
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def code(codec, folder, pictures, settings):
    """Encodes and decodes pictures at all settings, and leaves the decoded ones in the folder.

    The first setting is coded once without a clock for each new size, because TensorFlow and PyTorch prepare
    themselves for a size when they first see it.

    Returns:
      List of dicts, one for each picture and setting, with `encode` and `decode` in seconds; and `bytes` and
      the name of the decoded picture, `decoded`, if the codec gives pictures.
    """
    records, seen = [], set()
    for picture in pictures:
        image = np.load(os.path.join(folder, f"{picture}.npy"))
        if image.shape not in seen:
            seen.add(image.shape)
            codec.decode(codec.encode(image, settings[0]))
        for number, setting in enumerate(settings):
            data, encode = timed(codec.encode, image, setting)
            x_hat, decode = timed(codec.decode, data)
            assert x_hat.shape == image.shape and x_hat.dtype == np.uint8
            record = {"encode": encode, "decode": decode}
            if codec.gives_pictures:
                record |= {"bytes": len(data), "decoded": f"{picture}-{number}"}
                np.save(os.path.join(folder, f"{record['decoded']}.npy"), x_hat)
            records.append(record)
    return records


def run(folder):
    """Does the job in a folder; returns the result, a dict."""
    with open(os.path.join(folder, "job.json"), encoding="utf-8") as file:
        job = json.load(file)
    kind = {one.__name__: one for one in (Pillow, Vbq, CompressAI)}[job["codec"]]
    codec = kind(**job["options"])
    records = code(codec, folder, job["pictures"], job["settings"])
    return {
        "records": records,
        "peak": peak_memory(),  # before the packages are looked at
        "version": codec.version,
        "threads": codec.threads,
        "installed": installed_bytes(kind.packages),
    }


def main(argv):
    """Does the job and writes `result.json`; returns the exit status."""
    folder = argv[0]
    result = run(folder)
    with open(os.path.join(folder, "result.json"), "w", encoding="utf-8") as file:
        json.dump(result, file)
    return 0


if __name__ == "__main__":
    from vbq.command import run_main

    sys.exit(run_main(main, sys.argv[1:]))
