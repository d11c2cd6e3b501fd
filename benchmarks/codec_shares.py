"""Measures where the time of compressing and decompressing an image goes, and the memory of a large image.

    python benchmarks/codec_shares.py            752 x 496 pixels, then 4000 x 3000: some minutes on two cores
    python benchmarks/codec_shares.py --quick    all with tiny sizes: tries the benchmark

The models and photographs are those of `run.py`, and the better model that ships, with contexts. The time
of all that is not the network is given for images after the first one, and how much more the first image of
a process takes, for which tables are made. Rounds with new tables and with kept ones alternate, and the
least of their times count. All else should take at most half as long as the network with contexts, and less
than it without; the exit status is 1 if it does not, or if a result is wrong.
"""

import argparse
import os
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in (HERE, os.path.join(HERE, os.pardir)):
    sys.path.insert(0, os.path.abspath(folder))

from measure import duration, run_child
from run import machine

from vbq.command import run_main

LAMB = 1.0
GOAL = 0.5  # of the network's time, with contexts
LARGE_IMAGE = """
import contextlib, codec
with contextlib.redirect_stdout(sys.stderr):
    codec.main(sys.argv[2:])
report()
"""


class Clock(dict):
    """Seconds that were spent on named stages."""

    def __call__(self, stage, function, *args):
        """Returns function(*args), and adds its time to that of the stage."""
        start = time.perf_counter()
        result = function(*args)
        self[stage] = self.get(stage, 0) + time.perf_counter() - start
        return result


def tables(quantizer, lamb_index):
    """Gets the codebook and the coder of a lambda."""
    return quantizer.codebook(lamb_index), quantizer.coder(lamb_index)


def compress(codec, image, lamb_index):
    """Compresses an image as `codec.compress` does: `Clock` and bytes of the file."""
    import numpy as np

    from vbq.bitstream import Header, pack

    clock = Clock()
    height, width, _ = image.shape
    mean, logvar = clock("network", codec.run.encode, image[None])
    codebook, coder = clock("tables", tables, codec.quantizer, lamb_index)
    std = clock("quantizing", lambda: np.exp(0.5 * logvar[0]))
    indices = clock("quantizing", codebook.choose, mean[0], std, LAMB)
    stream = clock("range coder", coder.encode, indices)
    header = Header(codec.fingerprint, width, height, lamb_index, LAMB)
    return clock, clock("header", pack, header, stream)


def decompress(codec, data):
    """Decompresses a file as `codec.decompress` does: `Clock` and image."""
    from vbq.bitstream import unpack
    from vbq.images import to_uint8

    clock = Clock()
    header, stream = clock("header", unpack, data)
    codebook, coder = clock("tables", tables, codec.quantizer, header.lamb_index)
    shape = codec.latent_shape(header.height, header.width)
    indices = clock("range coder", coder.decode, stream, *shape[:2])
    z_hat = clock("dequantizing", codebook.dequantize, indices)
    x_hat = clock("network", codec.run.decode, z_hat[None], header.height, header.width, codebook.gains)[0]
    return clock, clock("pixels", to_uint8, x_hat)


def both_ways(codec, image, lamb_index, is_first):
    """Compresses and decompresses: a dict of two `Clock`, bytes, image. Without tables if `is_first`."""
    clocks = {}

    def go(way, function, *args):
        if is_first:
            codec.quantizer.codebook.cache_clear()
            codec.quantizer.coder.cache_clear()
        clocks[way], result = function(codec, *args)
        return result

    data = go("compress", compress, image, lamb_index)
    return clocks, data, go("decompress", decompress, data)


def shares(codec, image, rounds, check_time=True):
    """Measures both ways.

    Args:
      codec: Codec.
      image: uint8 [H, W, 3].
      rounds: int; the figures are the least of this many measurements.
      check_time: bool, whether all else should take less time than the network.

    Returns:
      List of two lines of text; and bool, whether this is so, and the results are those of `codec.py`.
    """
    quantizer = codec.quantizer
    lamb_index = quantizer.nearest_lamb_index(LAMB)
    clocks = {True: [], False: []}
    for _ in range(rounds + 1):  # the first one warms up
        for is_first in clocks:
            clock, data, x_hat = both_ways(codec, image, lamb_index, is_first)
            clocks[is_first].append(clock)
    fine = same_file(codec, image, data, x_hat)
    has_contexts = quantizer.contexts is not None
    name = f"{codec.run.num_channels}{', contexts' if has_contexts else ''}"
    lines = []
    for way in ("compress", "decompress"):
        of_first, times = (least([clock[way] for clock in clocks[is_first][1:]]) for is_first in clocks)
        network = times.pop("network")
        others, more = sum(times.values()), sum(of_first.values()) - of_first["network"]
        fine &= others < network * (GOAL if has_contexts else 1) or not check_time
        parts = ", ".join(f"{stage} {duration(value)}" for stage, value in times.items())
        cells = name, way, duration(network), duration(others), f"{others / network:.3f}"
        lines.append("| " + " | ".join([*cells, duration(max(more - others, 0)), parts]) + " |")
    return lines, fine


def least(clocks):
    """The least time of each stage, a dict."""
    return {stage: min(clock[stage] for clock in clocks) for stage in clocks[0]}


def same_file(codec, image, data, x_hat):
    """Whether a file and what it was decoded to are those of `codec.py`."""
    import numpy as np

    from codec import Encoder

    compressed = Encoder(codec, image).compress(LAMB)
    header, indices = codec.read(data)
    expected = codec.reconstruct(indices, header.lamb_index, header.height, header.width)
    same_indices = np.array_equal(indices, compressed.indices)
    return compressed.data == data and same_indices and np.array_equal(x_hat, expected)


def large(run, width, height, inputs):
    """Compresses and decompresses a large image, each in a process of its own: a line of text."""
    from PIL import Image

    source, file, target = (
        os.path.join(inputs.folder, f"large{suffix}") for suffix in (".bmp", ".vbq", ".png")
    )
    Image.fromarray(inputs.photograph(99, width, height)).save(source)
    place = os.path.split(run.path)
    cells = []
    for command in (["compress", *place, source, file], ["decompress", *place, file, target]):
        start = time.perf_counter()
        peak = run_child(LARGE_IMAGE, *command)["peak"]
        cells.append(f"{duration(time.perf_counter() - start)}, {peak / 1e9:.2f} GB")
    return f"| {run.num_channels} | {width} x {height} | {cells[0]} | {cells[1]} |"


def main(argv=None):
    """Prints the tables; returns 1 if a result is wrong or something takes longer than it should, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument(
        "--rounds",
        type=int,
        default=7,
        help="figures are the least of so many measurements (default: %(default)s)",
    )
    parser.add_argument("--kodak", default=os.environ.get("KODAK_DIR", ""), help="folder of the Kodak images")
    args = parser.parse_args(argv)
    from inputs import HEIGHT, WIDTH, Inputs

    from codec import codec_of
    from tools.shipped import CHECKPOINTS, RUN
    from vbq.runs import load_run

    fine = True
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        inputs = Inputs(folder, args.kodak, args.quick)
        kinds = ["small_run"] if args.quick else ["small_run", "large_run"]
        for kind in kinds:
            inputs.fits(kind, inputs.pick(20, 4))  # saves them in the run's directory
        image = inputs.photograph(0, inputs.pick(WIDTH, 208), inputs.pick(HEIGHT, 176))
        print("\n".join(machine()) + "\n")
        print(f"{image.shape[1]} x {image.shape[0]} pixels, lambda {LAMB:g}\n")
        print(
            "| channels | | network | all else | ratio | first image | parts |\n| - | - | - | - | - | - | - |"
        )
        shipped = [] if args.quick else [load_run(CHECKPOINTS, RUN)]
        for run in [inputs.load(kind) for kind in kinds] + shipped:
            lines, good = shares(codec_of(run), image, args.rounds, not args.quick)
            print("\n".join(lines), flush=True)
            fine &= good
        print("\nthe commands on a large image, time and peak memory\n")
        print("| channels | pixels | compress | decompress |\n| - | - | - | - |")
        for kind in kinds:
            print(large(inputs.load(kind), *inputs.pick((4000, 3000), (400, 300)), inputs), flush=True)
    return int(not fine)


if __name__ == "__main__":
    sys.exit(run_main(main))
