"""Hostile files: mutations of real ones, and how decoding them ends.

    python tests/fuzz_codec.py            100,000 files, in some minutes
    python tests/fuzz_codec.py 3000       as many as `test_codec.py` tries

Both are seeded: the files are the same every time. Half of them have a CRC-32 that fits, so that the code
behind that check is reached. Each has to end in a picture or in a `UserError` of one line, in bounded memory;
this program, unlike the tests, also checks that it takes bounded time.
"""

import argparse
import collections
import math
import os
import re
import resource
import struct
import sys
import tempfile
import time
import zlib

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from codec_runs import make_run
from conftest import GOLDEN

import codec
from vbq import bitstream
from vbq.command import Parser, UserError, number, run_main
from vbq.images import read_image

MOST_SECONDS = 10.0  # of processor time, for one file
MOST_MEGABYTES = 100.0  # that one file takes beyond what the process had before
FIELDS = {
    "magic": (0, 3),
    "version": (3, 1),
    "fingerprint": (4, 8),
    "width": (12, 4),
    "height": (16, 4),
    "lamb_index": (20, 1),
    "lamb": (21, 8),
    "length": (29, 4),
    "crc": (33, 4),
}  # offset and size


def real_files(run):
    """Files to start from: several sizes and lambdas, a flat picture, a single pixel."""
    image = read_image(os.path.join(GOLDEN, "test", "china.png"))
    pictures = [
        image[:64, :48],
        image[100:117, 30:63],
        image[:1, :1],
        np.full((48, 80, 3), 200, np.uint8),
        image[:160, :160],
    ]
    return [codec.compress(picture, run, lamb) for picture in pictures for lamb in (0.01, 1.0, 200.0)]


# Mutations: functions of the data and the real files. Hypothesis chooses them, and simplifies those that
# fail.

positions = st.floats(0, 1)  # in a file, whatever its length
extremes = st.one_of(
    st.sampled_from(
        [0, 1, 15, 16, 17, 255, 256, 60000, 65535, 89478485, 2**31 - 1, 2**31, 2**32 - 1, 2**64 - 1]
    ),
    st.integers(0, 2**64 - 1),
)
lambdas = st.one_of(
    st.sampled_from([0.0, -0.0, -1.0, 5e-324, 1e308, float("inf"), float("nan")]), st.floats()
)


def at(position, data):
    """The offset in the data."""
    return min(int(position * len(data)), max(len(data) - 1, 0))


def flip(position, bit, _):
    def mutate(data):
        i = at(position, data)
        return data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :] if data else data

    return mutate


def put(field, value):
    offset, size = FIELDS[field]
    value = (
        struct.pack("<d", value) if isinstance(value, float) else (value % 256**size).to_bytes(size, "little")
    )
    return lambda data: data[:offset] + value + data[offset + size :]


def splice(first, second, number):
    def mutate(data):
        other = FILES[number % len(FILES)]
        return data[: at(first, data)] + other[at(second, other) :]

    return mutate


mutations = st.one_of(
    st.builds(flip, positions, st.integers(0, 7), st.none()),
    st.builds(lambda position: lambda data: data[: at(position, data)], positions),
    st.builds(lambda words: lambda data: data[: len(data) - 4 * words], st.integers(1, 4)),
    st.builds(lambda more: lambda data: data + more, st.binary(min_size=1, max_size=64)),
    st.builds(
        lambda byte, words: lambda data: data + bytes([byte]) * (4 * words),
        st.sampled_from([0, 255]),
        st.integers(1, 2000),
    ),
    st.builds(lambda stream: lambda data: data[: bitstream.OVERHEAD] + stream, st.binary(max_size=200)),
    st.builds(splice, positions, positions, st.integers(0, 99)),
    st.builds(put, st.sampled_from([name for name in FIELDS if name != "lamb"]), extremes),
    st.builds(put, st.just("lamb"), lambdas),
    st.builds(put, st.sampled_from(["width", "height"]), st.integers(1, 200)),
    st.builds(put, st.just("lamb_index"), st.integers(0, 20)),
)
FILES = []  # the real ones, set before the first example is drawn


def repair(data):
    """Makes length and CRC-32 fit the rest."""
    data = data[: bitstream.OVERHEAD].ljust(bitstream.OVERHEAD, b"\0") + data[bitstream.OVERHEAD :]
    data += bytes(-(len(data) - bitstream.OVERHEAD) % 4)
    data = put("length", len(data) - bitstream.OVERHEAD)(data)
    crc = zlib.crc32(data[bitstream.OVERHEAD :], zlib.crc32(data[: bitstream.HEADER.size]))
    return put("crc", crc)(data)


def outcome_of(error, run):
    """A UserError's message without what differs from file to file."""
    text = str(error).replace(run.name, "RUN")
    for pattern, name in (
        ("fingerprint [0-9a-f]+", "fingerprint F"),
        ("starts with b.*", "starts with B"),
        (r"pixels and lambda \S+", "pixels and lambda N"),
        ("[0-9]+", "N"),
    ):
        text = re.sub(pattern, name, text)
    return f"error: {text}"


def check(run, data, repaired, most_seconds):
    """Decodes a file and checks how that ends; returns in what, a str, and by how many MB the peak of memory
    rose.
    """
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        image = codec.decompress(data, run)
    except UserError as error:
        outcome = outcome_of(error, run)
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 400, error
    else:
        outcome = "a picture, of a real file" if data in FILES else "a picture"
        header, _ = bitstream.unpack(data)
        assert image.dtype == np.uint8 and image.shape == (header.height, header.width, 3)
        assert repaired or data in FILES, "a damaged file passed for a good one"
    assert time.process_time() - start < most_seconds
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert growth < MOST_MEGABYTES
    return outcome, growth


def fuzz(run, count, most_seconds=math.inf):
    """Decodes mutated files.

    Args:
      run: runs.Run, with a fit.
      count: int, number of files.
      most_seconds: float, that one file may take.

    Returns:
      Counter of the outcomes; and float, the MB that decoding all files took.
    """
    FILES[:] = real_files(run)
    outcomes, taken = collections.Counter(), []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, len(FILES) - 1), st.lists(mutations, min_size=1, max_size=3), st.booleans())
    def decode(number, steps, repaired):
        data = FILES[number]
        for step in steps:
            data = step(data)
        outcome, growth = check(run, repair(data) if repaired else data, repaired, most_seconds)
        outcomes[outcome] += 1
        taken.append(growth)

    decode()
    return outcomes, sum(taken)


def main(argv=None):
    """Prints what the files ended in; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=number(int, at_least=2), default=100_000, help="of files")
    count = parser.parse_args(argv).count
    for contexts in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            run = make_run(folder, passes=4, contexts=contexts)
            for data in real_files(run):
                codec.decompress(data, run)
            start = time.process_time()
            outcomes, taken = fuzz(run, count // 2, MOST_SECONDS)
            for outcome, times in outcomes.most_common():
                print(f"{times:8} {outcome}")
            seconds, kind = time.process_time() - start, "with" if contexts else "without"
            print(
                f"{sum(outcomes.values())} files {kind} contexts in {seconds:.0f} s; "
                f"decoding them raised the peak of memory by {taken:.0f} MB"
            )
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
