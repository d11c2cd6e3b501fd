"""Gains of the decoder: pictures get closer to their images, and files are read as they were written."""

import os

import numpy as np
import pytest
from codec_runs import add_fit, copy_of, fails, flower, golden_fit, make_run, validation_latents
from conftest import GOLDEN
from shipped import CHECKPOINTS, PAPER_RUN, RUN

import codec
from quantizers import ChannelwisePriorCDFQuantizer
from vbq import gains as module
from vbq.files import save_npz
from vbq.fits import DEFAULT_LAMBS, FitOptions, FitStore
from vbq.gains import DecoderGains, usable
from vbq.image_codec import Codec, Encoder
from vbq.runs import load_run

NAME = "DecoderGains-max_bits=10"


@pytest.fixture(scope="module")
def golden_images():
    """The golden validation images, uint8 [24, 64, 64, 3]."""
    return np.load(os.path.join(GOLDEN, "val_imgs_uint8.npy"))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, golden_images):
    """The golden run with a fit, and with gains that are saved."""
    run = make_run(tmp_path_factory.mktemp("runs"))
    quantizer = codec.codec_of(run).quantizer
    provenance = {"model_fingerprint": run.fingerprint}
    found = DecoderGains.fit(run, quantizer, golden_images, *validation_latents(), provenance)
    found.save(os.path.join(run.path, NAME + ".npz"))
    return run, quantizer, found


def errors(run, quantizer, images):
    """Squared error of what images decode to, by lambda and image."""
    the_codec = Codec(run, quantizer)
    encoders = [Encoder(the_codec, image) for image in images]
    psnr = [[encoder.psnr(encoder.compress(lamb)) for encoder in encoders] for lamb in quantizer.lambs]
    return 10 ** (-np.array(psnr) / 10)


def test_pictures_get_closer_to_the_images_at_every_lambda(fitted, golden_images):
    run, quantizer, gains = fitted
    images = golden_images[::5]
    before, after = errors(run, quantizer, images), errors(run, quantizer.with_gains(gains), images)
    assert (after.mean(axis=1) < 0.99 * before.mean(axis=1)).all()


def test_a_second_fit_is_the_same(fitted, golden_images, monkeypatch):
    run, quantizer, _ = fitted
    monkeypatch.setattr(module, "FIRST_STEPS", 4)
    monkeypatch.setattr(module, "STEPS", 1)
    one, two = (DecoderGains.fit(run, quantizer, golden_images, *validation_latents()) for _ in range(2))
    np.testing.assert_array_equal(one.scales, two.scales)
    np.testing.assert_array_equal(one.offsets, two.offsets)
    assert one.scales.shape == (len(quantizer.lambs), 24) and not np.array_equal(one.scales[0], one.scales[1])
    # Floats in [0, 1] are the same images, and images whose sides are no multiples of the stride will do.
    of_floats = DecoderGains.fit(run, quantizer, golden_images / 255, *validation_latents())
    np.testing.assert_allclose(of_floats.scales, one.scales, rtol=1e-3)
    DecoderGains.fit(run, quantizer, golden_images[:, :50, :49], *validation_latents())


def test_what_is_saved_comes_back(fitted):
    run, quantizer, gains = fitted
    loaded = DecoderGains.load(os.path.join(run.path, NAME + ".npz"))
    assert loaded.base == quantizer.identity() and loaded.identity() == gains.identity() != gains.base
    for name, x in gains.arrays().items():
        np.testing.assert_array_equal(loaded.arrays()[name], x)
    with_gains = quantizer.with_gains(loaded)
    assert with_gains.identity() == gains.identity() and quantizer.gains is None
    assert with_gains.decoder_gains(quantizer.lambs[2]) is not None
    np.testing.assert_array_equal(with_gains.codebook(2).gains.scales, gains.scales[2])


def test_gains_of_another_fit_are_refused(fitted):
    run, quantizer, gains = fitted
    other = copy_of(golden_fit(passes=3), provenance=quantizer.provenance)
    with pytest.raises(ValueError, match="belong to fit"):
        other.with_gains(gains)
    store = FitStore(run.path, run.fingerprint)
    options = FitOptions(lambs=tuple(quantizer.lambs), base=quantizer.identity())
    assert store.find(DecoderGains, options)[0].name == NAME
    found, reasons = store.find(DecoderGains, FitOptions(lambs=(3.0,), base=other.identity()))
    assert found is None and "the fit that its gains belong to and --lambs" in reasons[0]


@pytest.mark.parametrize(
    "changes", [{"scales": np.ones((2, 24))}, {"offsets": np.full((16, 24), np.nan)}, {"scales": np.ones(24)}]
)
def test_damaged_gains_are_told(fitted, tmp_path, changes):
    path = tmp_path / "x.npz"
    save_npz(path, {**fitted[2].arrays(), **changes})
    assert "not a saved DecoderGains" in fails(DecoderGains.load, str(path))


def test_gains_of_another_decoder_are_skipped(tmp_path, china):
    run = make_run(tmp_path)
    quantizer = codec.codec_of(run).quantizer
    ones = np.ones((len(quantizer.lambs), 23))
    provenance = {"model_fingerprint": run.fingerprint}
    wrong = DecoderGains(quantizer.identity(), quantizer.lambs, ones, ones, provenance)
    wrong.save(os.path.join(run.path, NAME + ".npz"))
    assert codec.codec_of(run).quantizer.gains is None
    assert codec.decompress(codec.compress(china, run), run).shape == china.shape
    the_codec = Codec(run, quantizer)
    the_codec.fingerprint = bytes.fromhex(wrong.identity())[:8]
    data = Encoder(the_codec, china).compress(1.0).data
    assert "its gains are of 23 channels" in fails(codec.codec_of, run, data)


def test_gains_for_other_lambdas_than_those_of_their_fit_are_skipped(tmp_path, china):
    run = make_run(tmp_path)
    quantizer = codec.codec_of(run).quantizer
    ones = np.ones((len(quantizer.lambs), 24))
    provenance = {"model_fingerprint": run.fingerprint}
    wrong = DecoderGains(quantizer.identity(), 2 * quantizer.lambs, ones, ones, provenance)
    wrong.save(os.path.join(run.path, NAME + ".npz"))
    assert codec.codec_of(run).quantizer.gains is None
    the_codec = Codec(run, quantizer)
    the_codec.fingerprint = bytes.fromhex(wrong.identity())[:8]
    data = Encoder(the_codec, china).compress(1.0).data
    assert f"{NAME}.npz: the gains have other lambdas" in fails(codec.codec_of, run, data)


def test_gains_of_other_fits_stand_beside_those_of_the_first(tmp_path):
    """Those of the shipped fit keep their name when a fit to other images gets gains."""
    store, shape = FitStore(str(tmp_path), "abc"), (len(DEFAULT_LAMBS), 3)
    names = []
    for base in ("a", "b", "c"):
        arrays = np.ones(shape), np.zeros(shape)
        gains = DecoderGains(base, DEFAULT_LAMBS, *arrays, {"model_fingerprint": "abc"})
        names.append(store.save(gains, FitOptions(base=base)).name)
    assert names[0] == NAME and all(name.startswith(NAME + "-fit=") for name in names[1:])
    for base, name in zip("abc", names):
        assert DecoderGains.load(str(tmp_path / f"{name}.npz")).base == base
        assert store.find(DecoderGains, FitOptions(base=base))[0].name == name


def test_files_are_read_with_the_gains_that_they_were_written_with(fitted, china):
    run, quantizer, gains = fitted
    plain = Encoder(Codec(run, quantizer), china).compress(2.0)
    data = codec.compress(china, run, 2.0)
    assert codec.codec_of(run).quantizer.gains is not None  # they are preferred
    assert codec.codec_of(run).quantizer is codec.codec_of(run).quantizer  # which keeps its tables
    assert codec.codec_of(run, plain.data).quantizer.gains is None
    assert len(data) == len(plain.data) and data != plain.data  # only the fingerprints differ
    with_gains = Codec(run, quantizer.with_gains(gains))
    expected = [
        one.reconstruct(plain.indices, plain.header.lamb_index, *china.shape[:2])
        for one in (with_gains, Codec(run, quantizer))
    ]
    assert not np.array_equal(*expected)
    np.testing.assert_array_equal(codec.decompress(data, run), expected[0])
    np.testing.assert_array_equal(codec.decompress(plain.data, run), expected[1])


def test_the_best_fit_comes_first_with_its_gains_before_it(tmp_path, fitted):
    _, quantizer, gains = fitted
    run = make_run(tmp_path)
    gains.save(os.path.join(run.path, NAME + ".npz"))
    add_fit(run, passes=3)
    with open(os.path.join(run.path, NAME + "-fit=00.npz"), "wb") as file:
        file.write(b"no fit")
    found = list(usable(FitStore(run.path, run.fingerprint), ChannelwisePriorCDFQuantizer))
    assert found[0][0] is None and "-fit=00.npz" in found[0][1]
    fits = [fit for fit, _ in found[1:]]
    assert [(fit.quantizer.passes, fit.quantizer.gains is None) for fit in fits] == [
        (3, True),
        (2, False),
        (2, True),
    ]
    assert [fit.name for fit in fits[1:]] == [NAME, "ChannelwisePriorCDFQuantizer-max_bits=10"]
    assert fits[1].quantizer.identity() == gains.identity() and fits[2].quantizer.identity() == gains.base


@pytest.mark.slow
def test_the_gains_that_ship(china):
    """On pictures that nothing was fitted to."""
    run = load_run(CHECKPOINTS, RUN)
    with_gains = codec.codec_of(run).quantizer
    assert with_gains.description == "20 passes, contexts, gains"
    store, options = FitStore(run.path, run.fingerprint), FitOptions(passes=20, contexts=True)
    plain = store.find(ChannelwisePriorCDFQuantizer, options)[0].quantizer
    images = china, flower()
    gained = 10 * np.log10(errors(run, plain, images) / errors(run, with_gains, images))
    assert gained.min() > 0 and (gained.mean(axis=0) > (0.15, 0.4)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name, plain, with_gains", [(PAPER_RUN, 1, 1), (RUN, 3, 2)])
def test_a_file_of_any_fit_that_ships_is_read_with_tables_that_are_kept(china, name, plain, with_gains):
    run = load_run(CHECKPOINTS, name)
    store, image = FitStore(run.path, run.fingerprint), china[:64, :64]
    fits = [fit for fit, _ in usable(store, ChannelwisePriorCDFQuantizer)]
    found = [fit.quantizer.gains is not None for fit in fits]
    assert (found.count(False), found.count(True)) == (plain, with_gains)
    for fit in fits:
        data = Encoder(Codec(run, fit.quantizer), image).compress(8.0).data
        assert codec.codec_of(run, data).quantizer is codec.codec_of(run, data).quantizer
