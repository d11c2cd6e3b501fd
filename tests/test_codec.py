"""The codec: the bits of a file, what is made of hostile ones, rates that are hit, any image, bounded memory."""
import bisect
import io
import json
import math
import os
import shutil
import tracemalloc
import types

import numpy as np
import pytest
from PIL import Image

import bitstream
import codec
import fuzz_codec
import utils
from bls2017_vae import Run, load_run
from fuzz_codec import GOLDEN, QUANTIZER, RUN_NAME, put, repair
from quantizers import DEFAULT_LAMBS, ChannelwisePriorCDFQuantizer

LAMBS = np.array(DEFAULT_LAMBS)
SHIPPED = os.path.join(os.path.dirname(os.path.dirname(GOLDEN)), "checkpoints")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The golden run with the paper's quantizer."""
    return fuzz_codec.make_run(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def the_codec(run):
    return codec.codec_of(run)


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """A codec of the golden run whose quantizer had ten passes."""
    return codec.codec_of(fuzz_codec.make_run(tmp_path_factory.mktemp("refined"), passes=10))


@pytest.fixture(scope="module")
def data(run, china):
    return codec.compress(china[:48, :40], run, 1.)


def toy_quantizer():
    """A quantizer of integers alone: 3 channels, 31 code points, 2 tables."""
    counts = np.arange(2 * 3 * 31).reshape(2, 3, 31) ** 3 % 1009 * (np.arange(31) % 5 > 0)
    points = np.tile(np.arange(31) / 8 - 2, (3, 1))
    return ChannelwisePriorCDFQuantizer(points, [.5, 2.], counts[:, :, :5] + 1, counts,
                                        provenance={"model_fingerprint": "toy"})


class ToyRun:
    """In place of a model: 16 x 16 pixels to their mean in each colour, and back; exact on every machine."""

    path, name, fingerprint, num_channels, stride = "toy", "toy", "toy", 3, 16
    args = {"filter_dims": [1], "sampling_rates": [16]}

    def encode(self, images):
        blocks = images.reshape(len(images), images.shape[1] // 16, 16, -1, 16, 3).sum(axis=(2, 4), dtype=np.int64)
        mean = (blocks / 2**14 - 2).astype(np.float32)  # from -2 to 2
        return mean, np.full_like(mean, -4)

    def decode(self, z):
        return np.repeat(np.repeat((z + 2) / 4, 16, axis=1), 16, axis=2)


def fails(call, *args):
    """Calls a function that should raise a UserError, and returns its message, which has to be one line."""
    with pytest.raises(utils.UserError) as caught:
        call(*args)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def command(capsys, *argv):
    """Runs the program; returns its exit status, standard output and standard error."""
    capsys.readouterr()
    status = utils.run_main(codec.main, [str(arg) for arg in argv])
    return status, *capsys.readouterr()


# The bit stream.


# If these fail, files that people have can no longer be read: the change takes another version number.

PINNED = {.7: ("56425101" "249b418dec111cbe" "30000000" "20000000" "00" "666666666666e63f" "14000000" "dc660079"
               "6f9fbf02c80eb238dd96bee555ba65e1c10f4a59",
               [[[5, 5, 3], [5, 5, 7], [5, 5, 7]], [[14, 13, 14], [14, 13, 14], [16, 17, 16]]]),
          3.: ("56425101" "249b418dec111cbe" "30000000" "20000000" "01" "0000000000000840" "0c000000" "7e7c580a"
               "a4c9d316cb0c8f8ca9e82cb4",
               [[[3, 7, 7], [3, 7, 7], [3, 7, 7]], [[13, 11, 14], [13, 11, 14], [17, 19, 16]]])}


@pytest.mark.parametrize("lamb", PINNED)
def test_the_bytes_of_a_file_are_pinned(lamb):
    image = (np.arange(32 * 48 * 3).reshape(32, 48, 3) // 29 % 256).astype(np.uint8)
    assert codec.Encoder(codec.Codec(ToyRun(), toy_quantizer()), image).compress(lamb).data.hex() == PINNED[lamb][0]


@pytest.mark.parametrize("lamb", PINNED)
def test_the_meaning_of_a_file_is_pinned(lamb):
    toy = codec.Codec(ToyRun(), toy_quantizer())
    header, indices = toy.read(bytes.fromhex(PINNED[lamb][0]))
    assert header == (toy.fingerprint, 48, 32, int(lamb > 1), lamb) and indices.tolist() == PINNED[lamb][1]


def test_a_plain_decoder_reads_the_stream_with_integer_frequencies():
    """That is, what constriction makes of the tables is `integer_table` to the last unit."""
    random = np.random.default_rng(0)
    quantizer = toy_quantizer()
    for number in (0, 1):
        table = bitstream.TableCoder(quantizer.index_counts[number])
        indices = random.integers(0, 31, (400, 3))
        frequencies = bitstream.integer_table(quantizer.index_counts[number])
        np.testing.assert_array_equal(plain_decode(table.encode(indices), frequencies, 400), indices)


def plain_decode(stream, frequencies, positions):
    """A range decoder of 64 bits of state and words of 32, channel after channel: int [positions, C]."""
    words = iter(np.frombuffer(stream, "<u4").tolist())
    everything = 2**64 - 1
    point = next(words, 0) << 32 | next(words, 0)
    lower, size = 0, everything
    channels = []
    for row in frequencies.tolist():
        edges = [sum(row[:k]) for k in range(len(row) + 1)]
        channels.append([])
        for _ in range(positions):
            unit = size >> 24
            symbol = bisect.bisect_right(edges, (point - lower & everything) // unit) - 1
            lower, size = lower + unit * edges[symbol] & everything, unit * (edges[symbol + 1] - edges[symbol])
            if size < 2**32:
                lower, size, point = lower << 32 & everything, size << 32, point << 32 & everything | next(words, 0)
            channels[-1].append(symbol)
    return np.array(channels).T


def test_frequencies_are_exact_positive_and_complete():
    random = np.random.default_rng(0)
    for counts in (random.integers(0, 10**6, (4, 2047)), np.zeros((2, 2047), int), np.eye(3, 2047, dtype=int) * 10**9,
                   random.integers(0, 3, (3, 1)), np.full((1, 7), 255, np.uint8)):
        found = bitstream.integer_table(counts)
        assert found.min() >= 1 and (found.sum(axis=1) == 2**24).all()
        for row, frequencies in zip(counts.tolist(), found.tolist()):
            sums = [sum(row[:k]) + k for k in range(len(row) + 1)] if len(row) < 50 else np.cumsum([0] + row).tolist()
            if len(row) >= 50:
                sums = [s + k for k, s in enumerate(sums)]
            cuts = [s * (2**24 - len(row)) // sums[-1] + k for k, s in enumerate(sums)]
            assert frequencies == [b - a for a, b in zip(cuts, cuts[1:])]
    with pytest.raises(ValueError):
        bitstream.integer_table(np.array([[2**40, 1]]))
    bitstream.integer_table(np.array([[2**38, 1]]))


def test_frequencies_cost_at_most_a_few_thousandths_of_a_bit(the_codec, refined):
    for quantizer in (the_codec.quantizer, refined.quantizer):
        for table in range(16):
            lengths = quantizer.code_lengths(table).astype(np.float64)
            coded = 24 - np.log2(bitstream.integer_table(quantizer.index_counts[table]))
            assert np.sum(2**-lengths * (coded - lengths), axis=1).max() < .0005  # on the average, of what was counted
            assert (coded - lengths).max() < .002


@pytest.mark.parametrize("positions", [1, 3, 1000])
def test_extreme_symbols_survive(positions):
    random = np.random.default_rng(positions)
    sure = np.zeros((2, 31), int)
    sure[:, 7] = 10**9
    table = bitstream.TableCoder(sure)
    for indices in (np.full((positions, 2), 7), np.full((positions, 2), 30), random.integers(0, 31, (positions, 2))):
        stream = table.encode(indices)
        np.testing.assert_array_equal(table.decode(stream, positions), indices)
    assert len(table.encode(np.full((positions, 2), 7))) <= 8


def test_streams_with_words_too_few_or_too_many_are_refused():
    table = bitstream.TableCoder(toy_quantizer().index_counts[1])
    indices = np.random.default_rng(0).integers(0, 31, (50, 3))
    stream = table.encode(indices)
    assert np.array_equal(table.decode(stream, 50), indices)
    for wrong in (b"", stream[:-4], stream[:4], stream + b"\0" * 4, stream + b"\xff" * 4, stream * 2, b"\xff" * len(stream)):
        with pytest.raises(ValueError):
            table.decode(wrong, 50)
    for positions in (1, 49, 51, 1000):
        with pytest.raises(ValueError):
            table.decode(stream, positions)


# Files.


def test_files_are_as_long_as_estimated_and_decode_to_what_was_encoded(the_codec, refined, china):
    flower = utils.read_image(os.path.join(GOLDEN, "test", "flower.png"))
    for one in (the_codec, refined):
        for image in (china, flower):
            encoder = codec.Encoder(one, image)
            for table, lamb in enumerate(LAMBS):
                check_file(one, encoder, lamb, table)


def check_file(one, encoder, lamb, table):
    """What the issue asks of every file."""
    compressed = encoder.compress(lamb)
    header, indices = one.read(compressed.data)
    np.testing.assert_array_equal(indices, compressed.indices)
    assert header == compressed.header == (one.fingerprint, *encoder.image.shape[1::-1], table, lamb)
    assert -8 <= len(compressed.data) - compressed.estimated_bits / 8 <= .005 * compressed.estimated_bits / 8 + 64
    assert bitstream.file_size(one.quantizer, compressed.indices, table) == len(compressed.data)
    assert compressed.bpp == 8 * len(compressed.data) / encoder.image[..., 0].size


def test_estimates_are_those_of_the_originals_results(the_codec, china):
    """Bits to the last one where the quantizer's choices are the original's, that is for all but a latent in a thousand."""
    results = utils.load_npz(os.path.join(GOLDEN, "ChannelwisePriorCDFQuantizer-max_bits=10-compression_results.npz"))
    number = list(results["compressed_files"]).index("china.png")
    encoder = codec.Encoder(the_codec, china)
    found = [encoder.compress(lamb).estimated_bits for lamb in LAMBS]
    np.testing.assert_allclose(found, results["B"][number], rtol=2e-3)


@pytest.mark.parametrize("width, height", [(1, 1), (1, 40), (17, 16), (33, 47), (16, 16)])
def test_images_come_back_in_their_size(run, the_codec, china, width, height):
    image = china[:height, :width]
    compressed = codec.Encoder(the_codec, image).compress(.5)
    decoded = codec.decompress(compressed.data, run)
    assert decoded.shape == image.shape
    mean, logvar = run.encode(image[None])
    z_hat = the_codec.quantizer.dequantize(the_codec.quantizer.quantize(mean, np.exp(.5 * logvar), .5), compressed.header.table)
    np.testing.assert_array_equal(decoded, utils.to_uint8(run.decode(z_hat, height, width)[0]))


def test_any_lambda_is_coded_with_the_nearest_table(the_codec, china):
    encoder = codec.Encoder(the_codec, china[:64, :64])
    for lamb, table in ((1e-300, 0), (.001, 0), (1.4, 8), (1.42, 9), (1e4, 15), (1e300, 15)):
        header, _ = the_codec.read(encoder.compress(lamb).data)
        assert (header.lamb, header.table) == (lamb, table)
    assert len(encoder.compress(1e4).data) <= len(encoder.compress(128.).data) < len(encoder.compress(.001).data)
    for wrong in (0., -1., math.inf, math.nan):
        fails(encoder.compress, wrong)


def test_arrays_that_are_no_image_are_refused(run, china):
    for wrong in (china / 255, china[..., 0], china[:0], np.zeros((4, 4, 4), np.uint8)):
        assert "expected an image" in fails(codec.compress, wrong, run, 1.)


# Runs.


def test_a_file_of_another_run_is_refused_by_name(run, the_codec, refined, china, data):
    other = codec.compress(china, refined.run, 1.)
    message = fails(codec.decompress, other, run)
    assert "another run" in message and run.name in message and refined.fingerprint.hex() in message
    for field, lamb in (("code_points", 3.), ("index_counts", 3.)):
        quantizer = ChannelwisePriorCDFQuantizer.load(os.path.join(run.path, QUANTIZER))
        getattr(quantizer, field)[..., 0] += 1
        assert codec.Codec(run, quantizer).fingerprint != the_codec.fingerprint, field
    weights = types.SimpleNamespace(**{**vars(run), "fingerprint": run.fingerprint[::-1]})
    assert codec.Codec(weights, the_codec.quantizer).fingerprint != the_codec.fingerprint
    saved = ChannelwisePriorCDFQuantizer.load(os.path.join(run.path, QUANTIZER))
    assert codec.Codec(run, saved).fingerprint == the_codec.fingerprint == bitstream.unpack(data)[0].fingerprint


def test_of_several_quantizers_the_best_compresses_and_the_right_one_decompresses(tmp_path, china):
    run = fuzz_codec.make_run(tmp_path)
    old = codec.compress(china, run, 1.)
    fuzz_codec.add_quantizer(run, passes=10)
    fuzz_codec.add_quantizer(run, passes=3)
    utils.save_npz(os.path.join(run.path, "ChannelwisePriorCDFQuantizer-max_bits=10-passes=10-compression_results.npz"), {})
    new = codec.compress(china, run, 1.)
    assert codec.codec_of(run).quantizer.passes == 10 and len(new) < len(old)
    assert codec.codec_of(run, old).quantizer.passes == 2 and codec.codec_of(run, new).quantizer.passes == 10
    assert codec.decompress(old, run).shape == codec.decompress(new, run).shape == china.shape


def test_a_missing_or_stale_quantizer_is_named(tmp_path, china, capsys):
    shutil.copytree(os.path.join(GOLDEN, "checkpoints"), tmp_path, dirs_exist_ok=True)
    run = load_run(tmp_path, RUN_NAME)
    assert "post_process.py" in fails(codec.compress, china, run, 1.)
    quantizer = toy_quantizer()
    quantizer.save(os.path.join(run.path, QUANTIZER))
    assert "post_process.py" in fails(codec.compress, china, run, 1.)
    quantizer.provenance["model_fingerprint"] = run.fingerprint
    quantizer.save(os.path.join(run.path, QUANTIZER.replace("10", "4")))
    os.remove(os.path.join(run.path, QUANTIZER))
    assert "8 channels" in fails(codec.compress, china, run, 1.)
    status, out, err = command(capsys, "compress", tmp_path, RUN_NAME, os.path.join(GOLDEN, "test", "china.png"), tmp_path / "x.vbq")
    assert (status, out) == (1, "") and err.startswith("error: ") and not (tmp_path / "x.vbq").exists()


# Hostile files.


def test_every_flipped_bit_is_noticed(the_codec, data):
    for i in range(len(data)):
        for bit in range(8):
            fails(the_codec.read, data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1:])


def test_every_cut_and_growth_is_noticed(the_codec, data):
    for length in range(len(data)):
        fails(the_codec.read, data[:length])
    for more in (b"\0", b"\0" * 4, b"\xff" * 8, data):
        assert "grown" in fails(the_codec.read, data + more)


@pytest.mark.parametrize("field, value, message", [
    ("magic", 0, "expected a .vbq file, found one that starts"), ("version", 2, "version 1"), ("version", 0, "version 1"),
    ("fingerprint", 0, "another run"), ("width", 0, "expected pixels"), ("height", 0, "expected pixels"),
    ("table", 16, "table below 16"), ("table", 255, "table below 16"), ("lamb", math.nan, "nan"), ("lamb", 0., "0.0"),
    ("lamb", -1., "-1.0"), ("lamb", math.inf, "inf"), ("width", 2**32 - 1, "178956970 pixels"),
    ("height", 2**32 - 1, "178956970 pixels"), ("width", 49, "stream of 3 x 4 latents"), ("width", 3000000, "too short")])
def test_headers_that_lie_are_refused(the_codec, data, field, value, message):
    assert message in fails(the_codec.read, repair(put(field, value)(data)))


def test_sizes_that_nothing_justifies_take_no_memory(the_codec, data):
    for width, height in ((60000, 60000), (2**32 - 1, 2**32 - 1), (1, 2**27), (10000, 10000)):
        wrong = repair(put("height", height)(put("width", width)(data)))
        tracemalloc.start()
        fails(the_codec.read, wrong)
        assert tracemalloc.get_traced_memory()[1] < 2**17
        tracemalloc.stop()


def test_sizes_are_limited_when_compressing_as_well(the_codec, monkeypatch):
    assert bitstream.MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(bitstream, "MAX_PIXELS", 4096)
    codec.Encoder(the_codec, np.zeros((64, 64, 3), np.uint8))
    assert "at most 4096 pixels" in fails(codec.Encoder, the_codec, np.zeros((64, 65, 3), np.uint8))
    assert "at most 4096 pixels" in fails(codec.Encoder, the_codec, np.zeros((1, 300 * 16, 3), np.uint8))


@pytest.mark.parametrize("contexts", [False, True])
def test_mutated_files_end_in_a_picture_or_one_clear_error(run, tmp_path, contexts):
    """100,000 of them: `python tests/fuzz_codec.py`."""
    run = fuzz_codec.make_run(tmp_path, passes=4, contexts=True) if contexts else run
    outcomes, _ = fuzz_codec.fuzz(run, int(os.environ.get("CODEC_FUZZ_EXAMPLES", "3000")))
    assert sum(outcomes.values()) >= 1000 and len(outcomes) > 8  # nearly all layers of the decoder were reached


# Rates and qualities on demand.


@pytest.fixture(scope="module", params=["two passes", "ten passes"])
def encoder(request, the_codec, refined, china):
    flower = utils.read_image(os.path.join(GOLDEN, "test", "flower.png"))
    image = np.concatenate([np.concatenate([x, x[::-1], x[:, ::-1], 255 - x], axis=0) for x in (china, flower)], axis=1)
    return codec.Encoder(the_codec if request.param == "two passes" else refined, image)


def test_bpp_finds_the_largest_file_within_a_percent(encoder):
    low, high = (encoder.compress(lamb).bpp for lamb in LAMBS[[-1, 0]])
    for target in np.geomspace(low * 1.001, high * 1.005, 23):
        found = encoder.search_bpp(target)
        assert target * .99 <= found.bpp <= target
        assert encoder.codec.read(found.data)[0] == found.header
    assert encoder.search_bpp(low).bpp <= low


def test_psnr_finds_a_file_that_reaches_it_and_no_smaller_one(encoder):
    """The tiny model's PSNR does not always fall with lambda: targets are where it does, for the better part."""
    low, high = (encoder.psnr(encoder.compress(lamb)) for lamb in LAMBS[[-1, 8]])
    for target in np.linspace(low, high, 7)[1:-1]:
        found = encoder.search_psnr(target)
        assert target <= encoder.psnr(found) <= target + .15
        smaller = encoder.compress(found.header.lamb * 1.05, found.header.table)
        assert len(smaller.data) < len(found.data) and encoder.psnr(smaller) < target


def test_the_best_table_has_the_least_cost_of_all(encoder):
    for lamb in LAMBS[::3]:
        found = encoder.compress(lamb, "best")
        costs = []
        for table in range(16):
            indices = encoder.choose(lamb, table)
            z_hat = encoder.codec.quantizer.dequantize(indices, table)
            distortion = np.sum(np.square((z_hat - encoder.mean) / encoder.std, dtype=np.float64)) / 2
            costs.append(distortion + lamb * encoder.codec.quantizer.bits(indices, table).sum(dtype=np.float64))
        assert found.header.table == np.argmin(costs) and found.header.lamb == lamb
        header, indices = encoder.codec.read(found.data)
        np.testing.assert_array_equal(indices, encoder.choose(lamb, header.table))


def test_searches_take_few_steps(encoder, monkeypatch):
    calls = []
    reconstruct = codec.Codec.reconstruct
    monkeypatch.setattr(codec.Codec, "reconstruct", lambda *args: calls.append(args) or reconstruct(*args))
    target = encoder.psnr(encoder.compress(20.)) - .005
    calls.clear()
    encoder.search_psnr(target)
    assert len(calls) <= 20  # with a larger model, whose PSNR is a smoother function of lambda, about 10


def test_targets_out_of_range_are_told_the_range(encoder):
    for search, unit in ((encoder.search_bpp, "bits per pixel"), (encoder.search_psnr, "dB")):
        messages = {fails(search, target).partition(", found")[0] for target in (1e-6, 1e6)}
        message, = messages
        assert message.endswith(unit)
        for bound in message.partition("from ")[2].split()[:3:2]:
            assert search(float(bound)).data  # the printed bounds are good targets themselves


def test_a_picture_without_loss_is_told_as_such():
    colours = utils.to_uint8(np.array([[[8, 7, 16]], [[24, 3, 9]]]) / 32)  # of code points
    encoder = codec.Encoder(codec.Codec(ToyRun(), toy_quantizer()), np.repeat(np.repeat(colours, 16, axis=0), 16, axis=1))
    assert encoder.psnr(encoder.compress(1e-9)) == math.inf
    assert encoder.psnr(encoder.compress(10.)) < 40
    fails(encoder.search_psnr, 1.)


# The program.


@pytest.fixture
def place(run):
    """The first two arguments of the program."""
    return os.path.dirname(run.path), run.name


def test_there_and_back(tmp_path, place, capsys, china, run):
    source, file, target = os.path.join(GOLDEN, "test", "china.png"), tmp_path / "x.vbq", tmp_path / "x.png"
    status, out, err = command(capsys, "compress", *place, source, file, "--json")
    told = json.loads(out)
    data = file.read_bytes()
    assert (status, err) == (0, "") and data == codec.compress(china, run)
    assert told["bytes"] == len(data) and told["bpp"] == 8 * len(data) / china[..., 0].size and told["lamb"] == codec.DEFAULT_LAMB
    assert 0 < 8 * len(data) - told["estimated_bits"] < 8 * 64

    assert json.loads(command(capsys, "decompress", *place, file, target, "--json")[1]) == {
        "file": str(target), "width": 256, "height": 192}
    decoded = utils.read_image(target)
    np.testing.assert_array_equal(decoded, codec.decompress(data, run))
    assert told["psnr"] == pytest.approx(utils.ImageMetrics(china).evaluate(decoded)["PSNR (RGB)"], abs=1e-9)

    info = json.loads(command(capsys, "info", file, "--json")[1])
    assert info == {key: value for key, value in told.items() if key not in ("psnr", "estimated_bits")}
    for argv in (["compress", *place, source, file], ["info", file]):
        status, out, _ = command(capsys, *argv)
        assert status == 0 and len(out.splitlines()) == 1 and f"{len(data)} bytes" in out and "lambda 1" in out and "bpp" in out
        assert ("dB" in out) == (argv[0] == "compress")
    assert "256 x 192" in command(capsys, "decompress", *place, file, target)[1]


def test_targets_on_the_command_line(tmp_path, place, capsys):
    source = os.path.join(GOLDEN, "test", "flower.png")
    told = json.loads(command(capsys, "compress", *place, source, tmp_path / "x.vbq", "--bpp", .2, "--json")[1])
    assert .198 <= told["bpp"] <= .2 and told["bytes"] == os.path.getsize(tmp_path / "x.vbq")
    target = told["psnr"] - .3
    told = json.loads(command(capsys, "compress", *place, source, tmp_path / "x.vbq", "--psnr", target, "--json")[1])
    assert target <= told["psnr"] <= target + .1
    assert json.loads(command(capsys, "compress", *place, source, tmp_path / "x.vbq", "--lamb", 3, "--json")[1])["lamb"] == 3
    best = json.loads(command(capsys, "compress", *place, source, tmp_path / "x.vbq", "--lamb", 3, "--best_table", "--json")[1])
    assert best["lamb"] == 3 and best["table"] in range(16)
    status, out, err = command(capsys, "compress", *place, source, tmp_path / "y.vbq", "--psnr", 90)
    assert (status, out) == (1, "") and "flower.png: expected a target" in err and not (tmp_path / "y.vbq").exists()


@pytest.mark.parametrize("options", [["--lamb", "0"], ["--lamb", "nan"], ["--bpp", "-1"], ["--psnr", "x"],
                                     ["--lamb", "1", "--bpp", "1"], ["--bpp", "1", "--psnr", "30"]])
def test_wrong_usage_exits_with_2(options, capsys):
    with pytest.raises(SystemExit) as caught:
        codec.main(["compress", "d", "r", "i.png", "o.vbq", *options])
    assert caught.value.code == 2 and capsys.readouterr().out == ""
    with pytest.raises(SystemExit) as caught:
        codec.main([])
    assert caught.value.code == 2


def picture(kind, china):
    """A file of a kind, bytes and suffix."""
    image, options, suffix = Image.fromarray(china[:50, :70]), {}, "png"
    if kind == "16-bit":
        image = Image.fromarray((china[:50, :70, 0].astype(np.uint16) * 257))
    elif kind == "EXIF-rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        options, suffix = {"exif": exif}, "jpg"
    elif kind == "single pixel":
        image = image.crop((0, 0, 1, 1))
    else:
        image = image.convert(kind)
        if kind in ("RGBA", "LA"):
            image.putalpha(100)
    file = io.BytesIO()
    image.save(file, "jpeg" if suffix == "jpg" else suffix, **options)
    return file.getvalue(), suffix


@pytest.mark.parametrize("kind", ["L", "P", "1", "RGBA", "LA", "16-bit", "EXIF-rotated", "single pixel"])
def test_all_kinds_of_images(tmp_path, place, capsys, china, kind):
    contents, suffix = picture(kind, china)
    source = tmp_path / f"x.{suffix}"
    source.write_bytes(contents)
    status, _, err = command(capsys, "compress", *place, source, tmp_path / "x.vbq")
    assert status == 0 and (err.count("transparency") == len(err.splitlines()) == int("A" in kind))
    assert command(capsys, "decompress", *place, tmp_path / "x.vbq", tmp_path / "y.png")[0] == 0
    expected = {"EXIF-rotated": (70, 50, 3), "single pixel": (1, 1, 3)}.get(kind, (50, 70, 3))
    assert utils.read_image(source).shape == utils.read_image(tmp_path / "y.png").shape == expected


def test_bad_input_is_told_in_one_line(tmp_path, place, capsys, data):
    good, bad, image = tmp_path / "good.vbq", tmp_path / "bad.vbq", os.path.join(GOLDEN, "test", "china.png")
    good.write_bytes(data)
    bad.write_bytes(data[:-1])
    (tmp_path / "text.png").write_text("no image")
    for argv, message in (
            (["info", bad], "bad.vbq: expected"), (["info", tmp_path], str(tmp_path)), (["info", tmp_path / "none.vbq"], "none.vbq"),
            (["info", image], "expected a .vbq file"), (["decompress", *place, bad, tmp_path / "x.png"], "bad.vbq: expected"),
            (["decompress", *place, image, tmp_path / "x.png"], "expected a .vbq file"),
            (["decompress", *place, good, tmp_path / "x.xyz"], "x.xyz"),
            (["decompress", *place, good, tmp_path / "none" / "x.png"], "none"),
            (["decompress", place[0], "none", good, tmp_path / "x.png"], "none"),
            (["compress", *place, tmp_path / "text.png", tmp_path / "x.vbq"], "text.png"),
            (["compress", *place, image, tmp_path / "none" / "x.vbq"], "none"),
            (["compress", place[0], "none", image, tmp_path / "x.vbq"], "none")):
        status, out, err = command(capsys, *argv)
        assert (status, out) == (1, "") and err.startswith("error: ") and len(err.splitlines()) == 1 and message in err, argv
    assert sorted(os.listdir(tmp_path)) == ["bad.vbq", "good.vbq", "text.png"]


@pytest.mark.parametrize("place_of_failure", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_writes_leave_nothing(tmp_path, place, capsys, monkeypatch, data, place_of_failure, failure):
    def interrupted(*_):
        raise failure

    (tmp_path / "in.vbq").write_bytes(data)
    monkeypatch.setattr(place_of_failure, interrupted)
    source = os.path.join(GOLDEN, "test", "china.png")
    for argv in (["compress", *place, source, tmp_path / "x.vbq"], ["decompress", *place, tmp_path / "in.vbq", tmp_path / "x.png"]):
        status, out, _ = command(capsys, *argv)
        assert (status, out) == (1 if isinstance(failure, OSError) else 130, "")
        assert os.listdir(tmp_path) == ["in.vbq"]


# Real photographs.


def kodak_crops(folder):
    for path in utils.find_images(os.path.join(folder, "*.png")):
        image = utils.read_image(path)
        yield utils.center_crop(image, image.shape[0] - 16, image.shape[1] - 16)


def test_kodak_at_every_lambda(kodak, the_codec):
    crops = list(kodak_crops(kodak))
    assert len(crops) == 24
    for image in crops:
        encoder = codec.Encoder(the_codec, image)
        for table, lamb in enumerate(LAMBS):
            check_file(the_codec, encoder, lamb, table)


@pytest.mark.slow
def test_kodak_at_every_lambda_with_the_shipped_model(kodak):
    """With contexts, which take longer, every lambda on six of the images."""
    run = load_run(SHIPPED, os.listdir(SHIPPED)[0])
    contexts = codec.codec_of(run)
    assert contexts.quantizer.contexts is not None
    passes = codec.Codec(run, ChannelwisePriorCDFQuantizer.load(os.path.join(run.path, QUANTIZER.replace(".npz", "-passes=20.npz"))))
    for number, image in enumerate(kodak_crops(kodak)):
        for one, tables in ((passes, range(16)), (contexts, range(number % 4, 16, 4))):
            encoder = codec.Encoder(one, image)
            for table in tables:
                check_file(one, encoder, LAMBS[table], table)
