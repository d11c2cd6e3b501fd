"""Hostile files: mutations of real ones, and what decoding has to make of them.

    python tests/fuzz_codec.py            100,000 files, in some minutes
    python tests/fuzz_codec.py 3000       as many as `test_codec.py` tries

Both are seeded: the same files every time. Half of them have a CRC-32 that fits, so that what lies behind it is reached. Each
has to end in a picture or in a `UserError` of one line, in bounded time and memory.
"""
import collections
import os
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import zlib

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "golden")
if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path.insert(0, os.path.dirname(HERE))

import bitstream  # pylint: disable=wrong-import-position
import codec  # pylint: disable=wrong-import-position
import joint  # pylint: disable=wrong-import-position
import utils  # pylint: disable=wrong-import-position
from bls2017_vae import load_run  # pylint: disable=wrong-import-position
from quantizers import ChannelwisePriorCDFQuantizer  # pylint: disable=wrong-import-position

RUN_NAME = os.listdir(os.path.join(GOLDEN, "checkpoints"))[0]
QUANTIZER = "ChannelwisePriorCDFQuantizer-max_bits=10.npz"
MOST_SECONDS = 10.  # for one file, on a machine that has other things to do as well
MOST_MEGABYTES = 100.  # that one file takes beyond what the process had before
FIELDS = {"magic": (0, 3), "version": (3, 1), "fingerprint": (4, 8), "width": (12, 4), "height": (16, 4), "table": (20, 1),
          "lamb": (21, 8), "length": (29, 4), "crc": (33, 4)}  # offset and size


def make_run(folder, passes=2, contexts=False):
    """Copies the original program's tiny run to a folder, with a quantizer; returns the `bls2017_vae.Run`."""
    shutil.copytree(os.path.join(GOLDEN, "checkpoints"), folder, dirs_exist_ok=True)
    run = load_run(folder, RUN_NAME)
    add_quantizer(run, passes, contexts)
    return run


def add_quantizer(run, passes=2, contexts=False):
    """Fits a quantizer to the golden validation latents, as `post_process.py` would, and leaves it in the run's directory."""
    expected = utils.load_npz(os.path.join(GOLDEN, "expected.npz"))
    mean, std = expected["val_mean"], np.exp(.5 * expected["val_logvar"])
    quantizer = ChannelwisePriorCDFQuantizer.fit(expected["code_points"], mean, std, expected["lambs"], passes,
                                                 {"model_fingerprint": run.fingerprint})
    if contexts:
        quantizer.contexts = joint.fit_contexts(quantizer, mean, std)
    more = (f"-passes={passes}" if passes > 2 else "") + "-contexts" * contexts
    quantizer.save(os.path.join(run.path, QUANTIZER.replace(".npz", f"{more}.npz")))


def real_files(run):
    """Files to start from: several sizes and lambdas, a flat picture, a single pixel."""
    image = np.asarray(Image.open(os.path.join(GOLDEN, "test", "china.png")))
    pictures = [image[:64, :48], image[100:117, 30:63], image[:1, :1], np.full((48, 80, 3), 200, np.uint8), image[:160, :160]]
    return [codec.compress(picture, run, lamb) for picture in pictures for lamb in (.01, 1., 200.)]


# Mutations: functions of the data and the real files, which hypothesis chooses and makes simpler when one fails.

positions = st.floats(0, 1)  # in a file, whatever its length
extremes = st.one_of(st.sampled_from([0, 1, 15, 16, 17, 255, 256, 60000, 65535, 89478485, 2**31 - 1, 2**31, 2**32 - 1, 2**64 - 1]),
                     st.integers(0, 2**64 - 1))
lambdas = st.one_of(st.sampled_from([0., -0., -1., 5e-324, 1e308, float("inf"), float("nan")]), st.floats())


def at(position, data):
    """The offset in the data."""
    return min(int(position * len(data)), max(len(data) - 1, 0))


def flip(position, bit, _):
    def mutate(data):
        i = at(position, data)
        return data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1:] if data else data
    return mutate


def put(field, value):
    offset, size = FIELDS[field]
    value = struct.pack("<d", value) if isinstance(value, float) else (value % 256**size).to_bytes(size, "little")
    return lambda data: data[:offset] + value + data[offset + size:]


def splice(first, second, number):
    def mutate(data):
        other = FILES[number % len(FILES)]
        return data[:at(first, data)] + other[at(second, other):]
    return mutate


mutations = st.one_of(
    st.builds(flip, positions, st.integers(0, 7), st.none()),
    st.builds(lambda position: lambda data: data[:at(position, data)], positions),
    st.builds(lambda words: lambda data: data[:len(data) - 4 * words], st.integers(1, 4)),
    st.builds(lambda more: lambda data: data + more, st.binary(min_size=1, max_size=64)),
    st.builds(lambda byte, words: lambda data: data + bytes([byte]) * (4 * words), st.sampled_from([0, 255]), st.integers(1, 2000)),
    st.builds(lambda stream: lambda data: data[:bitstream.OVERHEAD] + stream, st.binary(max_size=200)),
    st.builds(splice, positions, positions, st.integers(0, 99)),
    st.builds(put, st.sampled_from([name for name in FIELDS if name != "lamb"]), extremes),
    st.builds(put, st.just("lamb"), lambdas),
    st.builds(put, st.sampled_from(["width", "height"]), st.integers(1, 200)),
    st.builds(put, st.just("table"), st.integers(0, 20)),
)
FILES = []  # the real ones, set before the first example is drawn


def repair(data):
    """Makes length and CRC-32 fit the rest."""
    data = data[:bitstream.OVERHEAD].ljust(bitstream.OVERHEAD, b"\0") + data[bitstream.OVERHEAD:]
    data += bytes(-(len(data) - bitstream.OVERHEAD) % 4)
    data = put("length", len(data) - bitstream.OVERHEAD)(data)
    crc = zlib.crc32(data[bitstream.OVERHEAD:], zlib.crc32(data[:bitstream.HEADER.size]))
    return put("crc", crc)(data)


def check(run, data, repaired):
    """Decodes a file and checks how that ends; returns in what, a str, and by how many MB the peak of memory rose."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        image = codec.decompress(data, run)
    except utils.UserError as error:
        outcome = "error: " + re.sub("[0-9]+", "N", str(error).replace(run.name, "RUN").split(", found")[0])
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 400, error
    else:
        outcome = "a picture, of a real file" if data in FILES else "a picture"
        header, _ = bitstream.unpack(data)
        assert image.dtype == np.uint8 and image.shape == (header.height, header.width, 3)
        assert repaired or data in FILES, "a damaged file passed for a good one"
    assert time.monotonic() - start < MOST_SECONDS
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert growth < MOST_MEGABYTES
    return outcome, growth


def fuzz(run, count):
    """Decodes so many mutated files; returns how often each outcome occurred, a Counter, and the MB that all took."""
    FILES[:] = real_files(run)
    outcomes, taken = collections.Counter(), []

    @settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(FILES) - 1), st.lists(mutations, min_size=1, max_size=3), st.booleans())
    def decode(number, steps, repaired):
        data = FILES[number]
        for step in steps:
            data = step(data)
        outcome, growth = check(run, repair(data) if repaired else data, repaired)
        outcomes[outcome] += 1
        taken.append(growth)

    decode()
    return outcomes, sum(taken)


def main(argv):
    """Prints what the files ended in."""
    count = int(argv[0]) if argv else 100000
    for contexts in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            run = make_run(folder, passes=4, contexts=contexts)
            for data in real_files(run):
                codec.decompress(data, run)
            start = time.monotonic()
            outcomes, taken = fuzz(run, count // 2)
            for outcome, number in outcomes.most_common():
                print(f"{number:8} {outcome}")
            print(f"{sum(outcomes.values())} files with{'out' * (not contexts)} contexts in {time.monotonic() - start:.0f} s; "
                  f"decoding them raised the peak of memory by {taken:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
