"""The whole experiment in small: trains for a minute, evaluates, then uses the better model that ships.

The photographs are the two of scikit-learn. The model is trained on their left parts; their right parts are
the test images.
"""

import argparse
import os
import shlex
import subprocess
import sys

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path.insert(0, ROOT)
from shipped import RUN

import bls2017_vae
from utils import evaluate_compression_jpg
from vbq.command import Parser, UserError, run_main
from vbq.metrics import ImageMetrics

TRAIN_WIDTH = 384  # of 640 pixels
TRAINING = shlex.split(
    "--verbose --checkpoint_dir demo/checkpoints --train_glob 'demo/train/*.png' --log_dir demo/tf_logs "
    "--num_filters 32 32 32 --patchsize 64 --batchsize 8 --likelihood_variance 0.001 --learning_rate 3e-3 "
    "--warmup_steps 100 --clip_norm 1e6 --lr_schedule cosine --flip --last_step 3000"
)
# Two photographs have too few latents to count the 2047 code points of the default, 10 bits.
EVALUATION = shlex.split("demo/val_imgs.npy 'demo/test/*.png' --max_bits 6 --passes 20")
JOINT_STEPS = 4  # two seconds each
JPEG_QUALITIES = range(1, 96, 3)
NEXT = """
What you could type next, in the project's folder, with your own photographs in place of these:

source .venv/bin/activate
RUN=$(basename checkpoints/*last_step=14000)

# Compress a photograph with the better model that ships.
python codec.py compress checkpoints $RUN demo/test/flower.png demo/flower.vbq --bpp 0.5
python codec.py decompress checkpoints $RUN demo/flower.vbq demo/flower.png

# Evaluate the better model that ships.
python post_process.py checkpoints $RUN - 'demo/test/*.png' --passes 20 --contexts --gains --out demo/results

# Train a model, for ten minutes or longer.
python bls2017_vae.py --verbose --checkpoint_dir demo/checkpoints --train_glob 'demo/train/*.png' \\
  --num_filters 64 64 64 --patchsize 128 --batchsize 8 --likelihood_variance 0.001 \\
  --learning_rate 1e-3 --warmup_steps 200 --clip_norm 1e6 --lr_schedule cosine --flip --last_step 10000"""


def write_photographs():
    """Writes demo/train/*.png, demo/test/*.png and demo/val_imgs.npy."""
    crops = []
    for name, image in zip(("china", "flower"), load_sample_images().images):
        for part, pixels in (("train", image[:, :TRAIN_WIDTH]), ("test", image[:, TRAIN_WIDTH:])):
            os.makedirs(f"demo/{part}", exist_ok=True)
            Image.fromarray(pixels).save(f"demo/{part}/{name}.png")
        corners = [(y, x) for y in range(0, 427 - 63, 32) for x in range(0, TRAIN_WIDTH - 63, 32)]
        crops += [image[y : y + 64, x : x + 64] for y, x in corners]
    np.save("demo/val_imgs.npy", np.stack(crops))


def run(*command):
    """Prints a command line and runs it with this Python.

    Raises:
      UserError: the command fails.
    """
    print("\n$ python " + shlex.join(command), flush=True)
    status = subprocess.call([sys.executable, *command])
    if status:
        raise UserError(f"{command[0]} failed with exit status {status}; its own message is above")


def use_shipped_model():
    """Compresses a photograph at three rates and prints the sizes beside those of JPEG."""
    import codec

    print(
        f"\nThe better model that ships, on scikit-learn's flower.jpg, in {JOINT_STEPS} joint steps "
        f"(checkpoints/{RUN}):"
    )
    model = bls2017_vae.load_run("checkpoints", RUN)
    image = load_sample_images().images[1]
    pixels = image.shape[0] * image.shape[1]
    metrics = ImageMetrics(image)
    jpeg = evaluate_compression_jpg(image, JPEG_QUALITIES)
    heading = "JPEG of about that size: bytes"
    print(f"{'lamb':>6} {'bytes':>8} {'bpp':>7} {'PSNR':>7}    {heading:>30} {'PSNR':>7}")
    for lamb in (0.5, 4.0, 32.0):
        data = codec.compress(image, model, lamb, joint_steps=JOINT_STEPS)
        psnr = metrics.evaluate(codec.decompress(data, model))["PSNR (RGB)"]
        bpp = 8 * len(data) / pixels
        i = np.abs(jpeg["BPP"] - bpp).argmin()
        ours = f"{lamb:>6} {len(data):>8} {bpp:>7.3f} {psnr:>7.2f}"
        theirs = f"{round(jpeg['BPP'][i] * pixels / 8):>30} {jpeg['PSNR (RGB)'][i]:>7.2f}"
        print(f"{ours}    {theirs}", flush=True)


def main(argv=None):
    """Runs the demonstration, which has no flags; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    os.chdir(ROOT)
    write_photographs()
    run("bls2017_vae.py", *TRAINING)
    runname = bls2017_vae.runname(bls2017_vae.parse_args(TRAINING))
    run("post_process.py", "demo/checkpoints", runname, *EVALUATION)
    use_shipped_model()
    print(NEXT)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
