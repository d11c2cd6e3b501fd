"""Cuts the validation images of `post_process.py` out of photographs: an array uint8 [N, S, S, 3] of random crops.

    python tools/make_crops.py 'photos/*.jpg' val_imgs.npy --count 200 --size 256
"""

import argparse
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import train_data  # pylint: disable=wrong-import-position
import utils  # pylint: disable=wrong-import-position
from bls2017_vae import number  # pylint: disable=wrong-import-position


def main(argv=None):
    """Writes the array; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", help="glob of image files")
    parser.add_argument("out", help="the .npy file to write")
    parser.add_argument("--count", type=number(int, at_least=1), default=200, help="how many crops (default: 200)")
    parser.add_argument("--size", type=number(int, at_least=1), default=256, help="their side in pixels (default: 256)")
    parser.add_argument("--seed", type=number(int, at_least=0), default=0)
    args = parser.parse_args(argv)
    photographs = train_data.Photographs(args.photographs, args.size, threads=os.cpu_count())
    crops = np.stack([photographs.crop(args.seed, i) for i in range(args.count)])
    with utils.atomic_write(args.out) as path, open(path, "wb") as file:
        np.save(file, crops)
    print(f"{args.out}: {len(crops)} crops of {args.size} x {args.size} pixels from {len(photographs)} photographs")
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_main(main))
