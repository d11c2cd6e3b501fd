"""Cuts the validation images of `post_process.py` out of photographs.

They are random crops, an array uint8 [N, S, S, 3].

    python tools/make_crops.py 'photos/*.jpg' val_imgs.npy --count 2000 --size 256
"""

import argparse
import os
import shutil
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
from vbq.command import Parser, UserError, number, run_main, seed
from vbq.files import atomic_write, check_output, find_images
from vbq.log import log_to_terminal
from vbq.photographs import Photographs
from vbq.threads import cores


def parse_args(argv=None):
    """Parses the command line.

    Args:
      argv: list of str, or None for the process's own arguments.

    Returns:
      argparse.Namespace with photographs, out, count, size and seed.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", help="glob of image files, in quotes, or a folder of them")
    parser.add_argument("out", help="the .npy file to write")
    parser.add_argument(
        "--count",
        type=number(int, at_least=1),
        default=200,
        metavar="N",
        help="how many crops (default: 200)",
    )
    parser.add_argument(
        "--size",
        type=number(int, at_least=1),
        default=256,
        metavar="S",
        help="their side in pixels (default: 256)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="of the random places and photographs (default: 0)"
    )
    return parser.parse_args(argv)


def check_space(path, size):
    """Raises a UserError now, not after the work, if the disk has no room for a new file of `size` bytes."""
    if os.path.exists(path) and not os.path.isfile(path):
        return  # a FIFO, or /dev/null
    free = shutil.disk_usage(os.path.dirname(os.path.realpath(path))).free
    if size > free:
        raise UserError(
            f"cannot write {path}: it needs {size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free"
        )


def main(argv=None):
    """Writes the array; returns the exit status."""
    args = parse_args(argv)
    check_output(args.out, find_images(args.photographs), (".npy",))
    check_space(args.out, 3 * args.count * args.size**2)
    log_to_terminal()
    photographs = Photographs(args.photographs, args.size, threads=cores())
    header = {"descr": "|u1", "fortran_order": False, "shape": (args.count, args.size, args.size, 3)}
    with atomic_write(args.out) as path, open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, header
        )  # as np.save, but crop after crop: they may be many
        for i in range(args.count):
            file.write(photographs.crop(args.seed, i).tobytes())
    print(
        f"{args.out}: {args.count} crops of {args.size} x {args.size} pixels "
        f"from {len(photographs)} photographs"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
