"""Cuts the validation images of `post_process.py` out of photographs.

They are random crops, an array uint8 [N, S, S, 3].

    python tools/make_crops.py 'photos/*.jpg' val_imgs.npy --count 200 --size 256
"""

import argparse
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
from vbq.command import number, run_main
from vbq.files import atomic_write
from vbq.log import log_to_terminal
from vbq.photographs import Photographs


def main(argv=None):
    """Writes the array; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", help="glob of image files")
    parser.add_argument("out", help="the .npy file to write")
    parser.add_argument(
        "--count", type=number(int, at_least=1), default=200, help="how many crops (default: 200)"
    )
    parser.add_argument(
        "--size", type=number(int, at_least=1), default=256, help="their side in pixels (default: 256)"
    )
    parser.add_argument("--seed", type=number(int, at_least=0), default=0)
    args = parser.parse_args(argv)
    log_to_terminal()
    photographs = Photographs(args.photographs, args.size, threads=os.cpu_count())
    crops = np.stack([photographs.crop(args.seed, i) for i in range(args.count)])
    with atomic_write(args.out) as path, open(path, "wb") as file:
        np.save(file, crops)
    print(
        f"{args.out}: {len(crops)} crops of {args.size} x {args.size} pixels "
        f"from {len(photographs)} photographs"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
