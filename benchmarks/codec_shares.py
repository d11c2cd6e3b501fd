"""Measures where the time of compressing and decompressing an image goes, and what memory a large one takes.

    python benchmarks/codec_shares.py             shares of 752 x 496 pixels, and 4000 x 3000, in some minutes on two cores
    python benchmarks/codec_shares.py --quick     all with tiny sizes: tries the benchmark

Models and photographs are those of `run.py`, and the shipped model with contexts. Whatever is not the network should take less
time than it, but for contexts: the exit status is 1 if it does not, or if a result is wrong. Tables are made anew each time, as for
the first image of a process.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in (HERE, os.path.join(HERE, os.pardir)):
    sys.path.insert(0, os.path.abspath(folder))

import utils  # pylint: disable=wrong-import-position
from measure import duration, run_child  # pylint: disable=wrong-import-position
from run import machine  # pylint: disable=wrong-import-position

LAMB = 1.
LARGE_IMAGE = """
import contextlib, codec
with contextlib.redirect_stdout(sys.stderr):
    codec.main(sys.argv[2:])
report()
"""


class Clock(dict):
    """Seconds that were spent on named stages."""

    def __call__(self, stage, function, *args):
        """Returns function(*args)."""
        start = time.perf_counter()
        result = function(*args)
        self[stage] = self.get(stage, 0) + time.perf_counter() - start
        return result


def tables(codec, table):
    """Makes the quantizer's search trees and the coder of a table, as for the first image of a process: the coder."""
    import tree_search
    tree_search.trees_of.cache_clear()
    tree_search.trees_of(codec.quantizer, table)
    return new_coder(codec, table)


def new_coder(codec, table):
    import bitstream
    quantizer, counts = codec.quantizer, codec.quantizer.index_counts[table]
    return bitstream.ContextCoder(quantizer.contexts.at(table, counts)) if quantizer.contexts else bitstream.TableCoder(counts)


def compress(codec, image, table):
    """Compresses an image, as `codec.compress` does: `Clock` and bytes of the file."""
    import numpy as np
    import bitstream
    import joint
    clock = Clock()
    height, width, _ = image.shape
    mean, logvar = clock("network", codec.run.encode, image[None])
    coder = clock("tables", tables, codec, table)
    std = clock("quantizing", lambda: np.exp(.5 * logvar[0]))
    indices = clock("quantizing", joint.choose, codec.quantizer, mean[0], std, LAMB, table)
    stream = clock("range coder", coder.encode, indices)
    header = bitstream.Header(codec.fingerprint, width, height, table, LAMB)
    return clock, clock("header", bitstream.pack, header, stream)


def decompress(codec, data):
    """Decompresses a file, as `codec.decompress` does: `Clock` and image."""
    import bitstream
    clock = Clock()
    header, stream = clock("header", bitstream.unpack, data)
    coder = clock("tables", new_coder, codec, header.table)
    indices = clock("range coder", coder.decode, stream, *codec.latent_shape(header.height, header.width)[:2])
    z_hat = clock("dequantizing", codec.quantizer.dequantize, indices[None], header.table)
    x_hat = clock("network", codec.run.decode, z_hat, header.height, header.width)[0]
    return clock, clock("pixels", utils.to_uint8, x_hat)


def shares(codec, image, rounds):
    """Measures both ways, and checks them against `codec.py`: lines of text, and whether the network takes the most time."""
    import numpy as np
    from codec import Encoder
    table = codec.quantizer.nearest_table(LAMB)
    clocks, fine = {"compress": [], "decompress": []}, True
    for _ in range(rounds + 1):  # the first to warm up
        clock, data = compress(codec, image, table)
        clocks["compress"].append(clock)
        clock, x_hat = decompress(codec, data)
        clocks["decompress"].append(clock)
    compressed = Encoder(codec, image).compress(LAMB)
    header, indices = codec.read(data)
    fine &= compressed.data == data and np.array_equal(indices, compressed.indices) and np.array_equal(
        x_hat, codec.reconstruct(indices, header.table, header.height, header.width))
    lines, name = [], f"{codec.run.num_channels}{', contexts' if codec.quantizer.contexts else ''}"
    for way, (_, *rest) in clocks.items():
        times = {stage: statistics.median(clock[stage] for clock in rest) for stage in rest[0]}
        network = times.pop("network")
        others = sum(times.values())
        fine &= others < network or codec.quantizer.contexts is not None
        parts = ", ".join(f"{stage} {duration(value)}" for stage, value in times.items())
        lines.append(f"| {name} | {way} | {duration(network)} | {duration(others)} | {others / network:.3f} | {parts} |")
    return lines, fine


def large(run, width, height, inputs):
    """Compresses and decompresses a large image, in processes of their own: a line of text."""
    from PIL import Image
    source, file, target = (os.path.join(inputs.folder, f"large{suffix}") for suffix in (".bmp", ".vbq", ".png"))
    Image.fromarray(inputs.photograph(99, width, height)).save(source)
    cells = []
    for command in (["compress", *os.path.split(run.path), source, file], ["decompress", *os.path.split(run.path), file, target]):
        start = time.perf_counter()
        peak = run_child(LARGE_IMAGE, *command)["peak"]
        cells.append(f"{duration(time.perf_counter() - start)}, {peak / 1e9:.2f} GB")
    return f"| {run.num_channels} | {width} x {height} | {cells[0]} | {cells[1]} |"


def main(argv=None):
    """Prints the tables; returns 1 if a result is wrong or the network does not take the most time, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--rounds", type=int, default=7, help="the median of so many counts")
    parser.add_argument("--kodak", default=os.environ.get("KODAK_DIR", ""), help="folder of the Kodak images")
    args = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from inputs import HEIGHT, ROOT, SHIPPED, WIDTH, Inputs
    from bls2017_vae import load_run
    from codec import codec_of
    fine = True
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        inputs = Inputs(folder, args.kodak, args.quick)
        kinds = ["small_run"] if args.quick else ["small_run", "large_run"]
        for kind in kinds:
            inputs.quantizers(kind, inputs.pick(20, 4))  # leaves them in the run's directory
        image = inputs.photograph(0, inputs.pick(WIDTH, 208), inputs.pick(HEIGHT, 176))
        print("\n".join(machine()) + "\n")
        print(f"{image.shape[1]} x {image.shape[0]} pixels, lambda {LAMB:g}\n\n"
              "| channels | | network | all else | ratio | of which |\n| - | - | - | - | - | - |")
        shipped = [] if args.quick else [load_run(os.path.join(ROOT, "checkpoints"), SHIPPED)]
        for run in [inputs.load(kind) for kind in kinds] + shipped:
            codec = codec_of(run)
            lines, good = shares(codec, image, args.rounds)
            print("\n".join(lines), flush=True)
            fine &= good or args.quick
        print("\nthe commands on a large image, time and peak memory\n\n"
              "| channels | pixels | compress | decompress |\n| - | - | - | - |")
        for kind in kinds:
            print(large(inputs.load(kind), *inputs.pick((4000, 3000), (400, 300)), inputs), flush=True)
    return int(not fine)


if __name__ == "__main__":
    sys.exit(utils.run_main(main))
