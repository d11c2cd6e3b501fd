"""Images as files at any lambda: pinned bytes, lengths, damage, rates and qualities that are asked for."""

import math
import os
import tracemalloc
import types

import numpy as np
import pytest
from codec_runs import (
    ToyRun,
    check_file,
    fails,
    fit_path,
    flower,
    golden_fit,
    make_run,
    toy_quantizer,
)
from conftest import GOLDEN
from fuzz_codec import put, repair
from shipped import CHECKPOINTS, RUN

from quantizers import DEFAULT_LAMBS, ChannelwisePriorCDFQuantizer
from vbq import bitstream, joint
from vbq.command import UserError
from vbq.files import find_images, load_npz
from vbq.image_codec import Codec, Encoder
from vbq.images import center_crop, read_image, to_uint8
from vbq.runs import load_run

LAMBS = np.array(DEFAULT_LAMBS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The golden run with the paper's quantizer."""
    return make_run(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def the_codec(run):
    return Codec(run, golden_fit())


@pytest.fixture(scope="module")
def refined(run):
    """A codec whose quantizer had ten passes."""
    return Codec(run, golden_fit(passes=10))


@pytest.fixture(scope="module")
def with_contexts(run):
    """A codec whose quantizer has contexts."""
    return Codec(run, golden_fit(passes=4, contexts=True))


@pytest.fixture(scope="module")
def data(the_codec, china):
    return Encoder(the_codec, china[:48, :40]).compress(1.0).data


# The bytes. If these tests fail, files that people have can no longer be read: the change takes another
# version number.

PINNED = {
    0.7: (
        "56425101" "249b418dec111cbe" "30000000" "20000000" "00" "666666666666e63f" "14000000" "dc660079"
        "6f9fbf02c80eb238dd96bee555ba65e1c10f4a59",
        [[[5, 5, 3], [5, 5, 7], [5, 5, 7]], [[14, 13, 14], [14, 13, 14], [16, 17, 16]]],
    ),
    3.0: (
        "56425101" "249b418dec111cbe" "30000000" "20000000" "01" "0000000000000840" "0c000000" "7e7c580a"
        "a4c9d316cb0c8f8ca9e82cb4",
        [[[3, 7, 7], [3, 7, 7], [3, 7, 7]], [[13, 11, 14], [13, 11, 14], [17, 19, 16]]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("lamb", PINNED)
def test_the_bytes_of_a_file_are_pinned(lamb):
    image = (np.arange(32 * 48 * 3).reshape(32, 48, 3) // 29 % 256).astype(np.uint8)
    found = Encoder(Codec(ToyRun(), toy_quantizer()), image).compress(lamb)
    assert found.data.hex() == PINNED[lamb][0]


@pytest.mark.parametrize("lamb", PINNED)
def test_the_meaning_of_a_file_is_pinned(lamb):
    toy = Codec(ToyRun(), toy_quantizer())
    header, indices = toy.read(bytes.fromhex(PINNED[lamb][0]))
    assert header == (toy.fingerprint, 48, 32, int(lamb > 1), lamb)
    assert indices.tolist() == PINNED[lamb][1]


def test_the_fingerprint_is_that_of_weights_and_fit(run, the_codec, data):
    for field in ("code_points", "index_counts"):
        quantizer = ChannelwisePriorCDFQuantizer.load(fit_path(run))
        getattr(quantizer, field)[..., 0] += 1
        assert Codec(run, quantizer).fingerprint != the_codec.fingerprint, field
    weights = types.SimpleNamespace(**{**vars(run), "fingerprint": run.fingerprint[::-1]})
    assert Codec(weights, the_codec.quantizer).fingerprint != the_codec.fingerprint
    saved = ChannelwisePriorCDFQuantizer.load(fit_path(run))
    fingerprints = Codec(run, saved).fingerprint, bitstream.unpack(data)[0].fingerprint
    assert set(fingerprints) == {the_codec.fingerprint}


# Lengths, and what is decoded.


def test_files_are_as_long_as_estimated_and_decode_to_what_was_encoded(the_codec, refined, china):
    for one in (the_codec, refined):
        for image in (china, flower()):
            encoder = Encoder(one, image)
            for lamb_index, lamb in enumerate(LAMBS):
                check_file(one, encoder, lamb, lamb_index)


@pytest.mark.slow
def test_files_with_contexts_and_steps_are_as_long_as_estimated(with_contexts, china):
    encoder = Encoder(with_contexts, china, joint_steps=3)
    for lamb_index in range(0, 16, 3):
        check_file(with_contexts, encoder, with_contexts.quantizer.lambs[lamb_index], lamb_index)


def test_estimates_are_those_of_the_originals_results(the_codec, china):
    """The choices are the original's, except for one latent in a thousand; the bits are the same."""
    name = "ChannelwisePriorCDFQuantizer-max_bits=10-compression_results.npz"
    results = load_npz(os.path.join(GOLDEN, name))
    number = list(results["compressed_files"]).index("china.png")
    encoder = Encoder(the_codec, china)
    found = [encoder.compress(lamb).estimated_bits for lamb in LAMBS]
    np.testing.assert_allclose(found, results["B"][number], rtol=2e-3)


def test_any_lambda_is_coded_with_the_nearest_of_the_fit(the_codec, china):
    encoder = Encoder(the_codec, china[:64, :64])
    for lamb, lamb_index in ((1e-300, 0), (0.001, 0), (1.4, 8), (1.42, 9), (1e4, 15), (1e300, 15)):
        header, _ = the_codec.read(encoder.compress(lamb).data)
        assert (header.lamb, header.lamb_index) == (lamb, lamb_index)
    lengths = [len(encoder.compress(lamb).data) for lamb in (1e4, 128.0, 0.001)]
    assert lengths[0] <= lengths[1] < lengths[2]
    for wrong in (0.0, -1.0, math.inf, math.nan):
        fails(encoder.compress, wrong)


def test_fits_of_other_models_are_refused(run):
    assert "8 channels" in fails(Codec, run, toy_quantizer())


# Damaged and hostile files.


def test_every_flipped_bit_is_noticed(the_codec, data):
    for i in range(len(data)):
        for bit in range(8):
            fails(the_codec.read, data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :])


def test_every_flipped_bit_of_a_stream_with_contexts_is_noticed(with_contexts, china):
    data = Encoder(with_contexts, china[:48, :40]).compress(1.0).data
    for bit in range(0, 8 * len(data), 7):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UserError):
            with_contexts.read(bytes(wrong))
        try:
            with_contexts.read(repair(bytes(wrong)))  # a CRC-32 that fits: a picture or one error
        except UserError as error:
            assert len(str(error).splitlines()) == 1


def test_every_cut_and_growth_is_noticed(the_codec, data):
    for length in range(len(data)):
        fails(the_codec.read, data[:length])
    for more in (b"\0", b"\0" * 4, b"\xff" * 8, data):
        assert "grown" in fails(the_codec.read, data + more)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("magic", 0, "not a .vbq file: it starts"),
        ("version", 2, "version 1"),
        ("version", 0, "version 1"),
        ("fingerprint", 0, "another run"),
        ("width", 0, "0 x 48 pixels"),
        ("height", 0, "40 x 0 pixels"),
        ("lamb_index", 16, "names lambda 16 of a fit of 16"),
        ("lamb_index", 255, "names lambda 255 of a fit of 16"),
        ("lamb", math.nan, "nan"),
        ("lamb", 0.0, "0.0"),
        ("lamb", -1.0, "-1.0"),
        ("lamb", math.inf, "inf"),
        ("width", 2**32 - 1, "178956970 pixels"),
        ("height", 2**32 - 1, "178956970 pixels"),
        ("width", 49, "does not hold 3 x 4 latents"),
        ("width", 3000000, "too short"),
    ],
)
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
    monkeypatch.setattr(bitstream, "MAX_IMAGE_PIXELS", 4096)
    Encoder(the_codec, np.zeros((64, 64, 3), np.uint8))
    for shape in ((64, 65, 3), (1, 300 * 16, 3)):
        assert "at most 4096 pixels" in fails(Encoder, the_codec, np.zeros(shape, np.uint8))


# Rates and qualities on demand.


@pytest.fixture(scope="module", params=["two passes", "ten passes"])
def encoder(request, the_codec, refined, china):
    columns = [np.concatenate([x, x[::-1], x[:, ::-1], 255 - x], axis=0) for x in (china, flower())]
    one = the_codec if request.param == "two passes" else refined
    return Encoder(one, np.concatenate(columns, axis=1))


@pytest.mark.slow
def test_bpp_finds_the_largest_file_within_a_percent(encoder):
    low, high = (encoder.compress(lamb).bpp for lamb in LAMBS[[-1, 0]])
    for target in np.geomspace(low * 1.001, high * 1.005, 23):
        found = encoder.search_bpp(target)
        assert target * 0.99 <= found.bpp <= target
        assert encoder.codec.read(found.data)[0] == found.header
    assert encoder.search_bpp(low).bpp <= low


@pytest.mark.slow
def test_psnr_finds_a_file_that_reaches_it_and_no_smaller_one(encoder):
    """The tiny model's PSNR does not always fall with lambda; the targets are where it mostly does."""
    low, high = (encoder.psnr(encoder.compress(lamb)) for lamb in LAMBS[[-1, 8]])
    for target in np.linspace(low, high, 7)[1:-1]:
        found = encoder.search_psnr(target)
        assert target <= encoder.psnr(found) <= target + 0.15
        smaller = encoder.compress(found.header.lamb * 1.05, found.header.lamb_index)
        assert len(smaller.data) < len(found.data) and encoder.psnr(smaller) < target


@pytest.fixture
def refined_files(monkeypatch):
    """A list that grows by one with every file that is made with joint steps."""
    calls, refine = [], joint.refine
    monkeypatch.setattr(joint, "refine", lambda *args: calls.append(args) or refine(*args))
    return calls


@pytest.mark.parametrize("steps", [1, 3])
def test_targets_with_joint_steps_take_three_compressions(with_contexts, china, refined_files, steps):
    """The guarantees hold, and a picture of a size is no worse than without steps."""
    image = china[96:, 64:192]
    encoder, plain = Encoder(with_contexts, image, steps), Encoder(with_contexts, image)
    for lamb in (3.0, 12.0):  # where the PSNR of the tiny model mostly falls
        without = plain.compress(lamb)
        refined_files.clear()
        found = encoder.search_bpp(without.bpp)
        assert 1 <= len(refined_files) <= 3 and not found.is_end
        assert 0.9 * without.bpp <= found.bpp <= without.bpp
        assert encoder.psnr(found) >= encoder.psnr(plain.search_bpp(without.bpp)) - 0.05
        assert with_contexts.read(found.data)[0] == found.header
        refined_files.clear()
        target = plain.psnr(without)
        found = encoder.search_psnr(target)
        assert 1 <= len(refined_files) <= 3 and not found.is_end
        assert encoder.psnr(found) >= target


@pytest.mark.slow
def test_joint_steps_come_close_to_targets_with_the_shipped_model(china, refined_files):
    """Within 3 % and 0.3 dB, and better than without steps."""
    run = load_run(CHECKPOINTS, RUN)
    one, image = Codec(run, ChannelwisePriorCDFQuantizer.load(fit_path(run, 20, True))), china[96:, 64:160]
    encoder, plain = Encoder(one, image, joint_steps=4), Encoder(one, image)
    for bpp in (0.5, 1.5):
        found = encoder.search_bpp(bpp)
        assert 0.97 * bpp <= found.bpp <= bpp
        assert encoder.psnr(found) > encoder.psnr(plain.search_bpp(bpp)) + 0.1
    for psnr in (24.0, 28.0):
        found = encoder.search_psnr(psnr)
        assert psnr <= encoder.psnr(found) <= psnr + 0.3
        assert len(found.data) < len(plain.search_psnr(psnr).data)
    assert len(refined_files) <= 12


def test_ends_with_joint_steps(with_contexts, china, refined_files):
    encoder = Encoder(with_contexts, china[:48, :64], joint_steps=2)
    assert encoder.search_bpp(1e6).is_end and encoder.search_psnr(1e-6).is_end
    assert len(refined_files) == 2
    for search, beyond in ((encoder.search_bpp, 1e-6), (encoder.search_psnr, 1e6)):
        refined_files.clear()
        message = fails(search, beyond)
        assert f"{beyond:g} " in message and "cannot be reached" in message and len(refined_files) <= 3


def test_a_quality_that_only_joint_steps_reach(with_contexts, china):
    image = china[:48, :64]
    plain, encoder = Encoder(with_contexts, image), Encoder(with_contexts, image, joint_steps=8)
    best = float(fails(plain.search_psnr, 99).split()[-2])
    target = best + 0.2
    assert "cannot be reached" in fails(plain.search_psnr, target)
    found = encoder.search_psnr(target)
    assert encoder.psnr(found) >= target and not found.is_end


def test_searches_tell_what_they_have_tried(the_codec, china):
    for steps in (0, 1):
        encoder, values = Encoder(the_codec, china[:48, :64], steps), []
        found = encoder.search_bpp(1.0, values.append)
        assert found.bpp in values and len(values) > 2
        values.clear()
        found = encoder.search_psnr(15.0, values.append)
        assert encoder.psnr(found) in values and len(values) > 2


@pytest.mark.slow
def test_the_best_lambda_of_the_fit_has_the_least_cost_of_all(encoder):
    quantizer, (mean, std, _) = encoder.codec.quantizer, encoder.posterior
    for lamb in LAMBS[::3]:
        found = encoder.compress(lamb, best=True)
        costs = []
        for lamb_index in range(16):
            codebook, indices = quantizer.codebook(lamb_index), encoder.quantize(lamb, lamb_index)
            error = (codebook.dequantize(indices) - mean) / std
            distortion = np.sum(np.square(error, dtype=np.float64)) / 2
            costs.append(distortion + lamb * codebook.bits(indices).sum(dtype=np.float64))
        assert found.header.lamb_index == np.argmin(costs) and found.header.lamb == lamb
        header, indices = encoder.codec.read(found.data)
        np.testing.assert_array_equal(indices, encoder.quantize(lamb, header.lamb_index))


def test_searches_take_few_steps(encoder, monkeypatch):
    calls = []
    reconstruct = Codec.reconstruct
    monkeypatch.setattr(Codec, "reconstruct", lambda *args: calls.append(args) or reconstruct(*args))
    target = encoder.psnr(encoder.compress(20.0)) - 0.005
    calls.clear()
    encoder.search_psnr(target)
    assert len(calls) <= 20  # about 10 with a larger model, whose PSNR is a smoother function of lambda


@pytest.mark.slow
def test_targets_out_of_range_are_told_the_range(encoder):
    """Largest files and worst pictures are caps that hold. The other way round is an error."""
    for search, cap, beyond, unit in (
        (encoder.search_bpp, 1e6, 1e-6, "bits per pixel"),
        (encoder.search_psnr, 1e-6, 1e6, "dB"),
    ):
        message = fails(search, beyond)
        assert f"{beyond:g} {unit} cannot be reached" in message and message.endswith(unit)
        least, most = map(float, message.partition("from ")[2].split()[:3:2])
        assert least < most
        end = search(cap)
        assert end.is_end
        found = end.bpp if unit != "dB" else encoder.psnr(end)
        assert found == pytest.approx(most if unit != "dB" else least, abs=1e-4)
        for bound in (least, most):
            assert search(bound).data  # the printed bounds can be reached


def test_a_picture_without_loss_is_told_as_such():
    colours = to_uint8(np.array([[[8, 7, 16]], [[24, 3, 9]]]) / 32)  # those of code points
    image = np.repeat(np.repeat(colours, 16, axis=0), 16, axis=1)
    encoder = Encoder(Codec(ToyRun(), toy_quantizer()), image)
    assert encoder.psnr(encoder.compress(1e-9)) == math.inf
    assert encoder.psnr(encoder.compress(10.0)) < 40
    assert encoder.search_psnr(1.0).is_end


# Real photographs.


def kodak_crops(folder):
    for path in find_images(os.path.join(folder, "*.png")):
        image = read_image(path)
        yield center_crop(image, image.shape[0] - 16, image.shape[1] - 16)


@pytest.mark.slow
def test_kodak_at_every_lambda(kodak, the_codec):
    crops = list(kodak_crops(kodak))
    assert len(crops) == 24
    for image in crops:
        encoder = Encoder(the_codec, image)
        for lamb_index, lamb in enumerate(LAMBS):
            check_file(the_codec, encoder, lamb, lamb_index)


@pytest.mark.slow
def test_kodak_at_every_lambda_with_the_shipped_model(kodak):
    """With contexts, which take longer, every lambda on six of the images."""
    run = load_run(CHECKPOINTS, RUN)
    fits = [ChannelwisePriorCDFQuantizer.load(fit_path(run, 20, contexts)) for contexts in (False, True)]
    assert fits[1].contexts is not None
    passes, contexts = (Codec(run, fit) for fit in fits)
    for number, image in enumerate(kodak_crops(kodak)):
        for one, lambdas in ((passes, range(16)), (contexts, range(number % 4, 16, 4))):
            encoder = Encoder(one, image)
            for lamb_index in lambdas:
                check_file(one, encoder, LAMBS[lamb_index], lamb_index)
