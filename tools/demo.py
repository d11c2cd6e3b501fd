"""The whole experiment in small: trains for about two minutes, evaluates, and then uses the model that ships.

The photographs are the two of scikit-learn: their left parts are trained on, their right parts are the test images.
"""

import os
import shlex
import subprocess
import sys

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path.insert(0, ROOT)
import bls2017_vae  # pylint: disable=wrong-import-position
import utils  # pylint: disable=wrong-import-position

TRAIN_WIDTH = 384  # of 640 pixels
TRAINING = ["--verbose", "--checkpoint_dir", "demo/checkpoints", "--train_glob", "demo/train/*.png", "--log_dir", "demo/tf_logs",
            "--num_filters", "32", "32", "32", "--patchsize", "64", "--batchsize", "8", "--likelihood_variance", "0.001",
            "--learning_rate", "1e-3", "--warmup_steps", "200", "--clip_norm", "1e6", "--lr_schedule", "cosine", "--flip",
            "--last_step", "14000"]


def write_photographs():
    """Writes demo/train/*.png, demo/test/*.png and demo/val_imgs.npy."""
    crops = []
    for name, image in zip(("china", "flower"), load_sample_images().images):
        for part, pixels in (("train", image[:, :TRAIN_WIDTH]), ("test", image[:, TRAIN_WIDTH:])):
            os.makedirs(f"demo/{part}", exist_ok=True)
            Image.fromarray(pixels).save(f"demo/{part}/{name}.png")
        crops += [image[y:y + 64, x:x + 64] for y in range(0, 427 - 63, 32) for x in range(0, TRAIN_WIDTH - 63, 32)]
    np.save("demo/val_imgs.npy", np.stack(crops))


def run(*command):
    """Prints a command line and runs it with this Python."""
    print("\n$ python " + shlex.join(command), flush=True)
    if subprocess.call([sys.executable, *command]):
        raise utils.UserError(f"expected to run {command[0]}, found that it failed")


def use_shipped_model():
    """Compresses a photograph at three rates and prints sizes beside those of JPEG."""
    import codec
    name = next(name for name in sorted(os.listdir("checkpoints")) if name.startswith("bls2017_vae"))
    print(f"\nThe model that ships, on scikit-learn's flower.jpg, in 10 joint steps (checkpoints/{name}):")
    model = bls2017_vae.load_run("checkpoints", name)
    image = load_sample_images().images[1]
    metrics = utils.ImageMetrics(image)
    jpeg = utils.evaluate_compression_jpg(image, range(1, 96))
    print(f"{'lamb':>6} {'bytes':>8} {'bpp':>7} {'PSNR':>7}    {'JPEG of about that size: bytes':>30} {'PSNR':>7}")
    for lamb in (0.5, 4.0, 32.0):
        data = codec.compress(image, model, lamb, joint_steps=10)
        psnr = metrics.evaluate(codec.decompress(data, model))["PSNR (RGB)"]
        bpp = 8 * len(data) / (image.shape[0] * image.shape[1])
        i = np.abs(jpeg["BPP"] - bpp).argmin()
        jpeg_bytes = round(jpeg["BPP"][i] * image.shape[0] * image.shape[1] / 8)
        print(f"{lamb:>6} {len(data):>8} {bpp:>7.3f} {psnr:>7.2f}    {jpeg_bytes:>30} {jpeg['PSNR (RGB)'][i]:>7.2f}", flush=True)


def main(argv=None):
    """Runs the demonstration; returns the exit status."""
    del argv
    os.chdir(ROOT)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    write_photographs()
    run("bls2017_vae.py", *TRAINING)
    run("post_process.py", "demo/checkpoints", bls2017_vae.runname(bls2017_vae.parse_args(TRAINING)), "demo/val_imgs.npy",
        "demo/test/*.png", "--max_bits", "6")  # of 2 photographs there are too few latents to count 2047 code points
    use_shipped_model()
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_main(main))
