"""That no saved fit is lost, with the codec, whose files depend on the fits."""

import copy
import os
import types

import numpy as np
import pytest
from conftest import GOLDEN_RUN
from evaluation import CHECKPOINTS, contents
from fitting import (
    DEFAULT,
    FILES,
    KMEANS,
    NAMES,
    UNIFORM,
    VBQ,
    all_beside,
    beside,
    fails,
    fit_or_load,
    images,
    names_of,
    run_in,
)

import codec
from quantizers import (
    ChannelwisePriorCDFQuantizer,
    FitOptions,
    KmeansQuantizer,
    UniformQuantizer,
)
from vbq.files import load_npz, save_npz
from vbq.latents import PriorFit
from vbq.runs import load_run
from vbq.validation import Validation

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_priors")]  # whole evaluations or trainings


@pytest.fixture(scope="module")
def model():
    """The golden run."""
    return load_run(CHECKPOINTS, GOLDEN_RUN)


@pytest.fixture
def run(tmp_path, model):
    return run_in(tmp_path / "run", model)


def check_decodes(run, data, expected):
    np.testing.assert_array_equal(codec.decompress(data, run), expected)


# What is kept, and where a new fit goes.


def test_first_fits_take_the_originals_names(run):
    fits = fit_or_load(run, images())
    assert names_of(fits) == NAMES and set(contents(run.path)) == FILES
    channelwise, *baselines = (fit.quantizer.provenance for fit in fits)
    common = {"model_fingerprint": run.fingerprint, "validation": images().label}
    assert channelwise == {**common, "seed": 0} and baselines == [common] * 2
    assert PriorFit.load(os.path.join(run.path, "prior.npz")).provenance == {**common, "seed": 0}


def test_other_settings_keep_the_first_fits_and_their_files(run, china):
    """An evaluation with other --lambs, without --rebuild, after files were written."""
    fit_or_load(run, images())
    data = codec.compress(china, run, 1.0)
    image, before = codec.decompress(data, run), contents(run.path)
    others = fit_or_load(run, images(), lambs=(1.0, 3.0), levels=(3,))
    assert names_of(others) == all_beside(others)
    after = contents(run.path)
    assert set(after) == FILES | set(names_of(others))
    assert {name: after[name] for name in before} == before
    check_decodes(run, data, image)
    other = codec.Encoder(codec.Codec(run, others[0].quantizer), china).compress(1.0)
    assert other.data != data
    the_codec = codec.codec_of(run, other.data)
    assert the_codec.quantizer.lambs.tolist() == [1, 3]
    np.testing.assert_array_equal(the_codec.read(other.data)[1], other.indices)
    assert codec.codec_of(run).quantizer.lambs.tolist() == [0.5, 8]  # the plain name is preferred

    again = fit_or_load(run, lambs=(1.0, 3.0), levels=(3,))  # found beside
    assert [fit.quantizer.identity() for fit in again] == [fit.quantizer.identity() for fit in others]
    assert contents(run.path) == after


def test_rebuild_keeps_the_old_fits_and_their_files(run, china):
    first = fit_or_load(run, images())
    data = codec.compress(china, run, 1.0)
    image, before = codec.decompress(data, run), contents(run.path)
    old_prior = PriorFit.load(os.path.join(run.path, "prior.npz"))
    second = fit_or_load(run, images(1), rebuild=True)
    assert names_of(second) == NAMES
    after = contents(run.path)
    old = {beside("prior", old_prior): "prior.npz"}
    old |= dict(zip(all_beside(first), NAMES))
    assert set(after) == FILES | set(old)
    assert {name: after[new] for new, name in old.items()} == before
    assert all(after[name] != before[name] for name in FILES)
    check_decodes(run, data, image)
    new = codec.compress(china, run, 1.0)
    assert codec.codec_of(run, new).quantizer.identity() == second[0].quantizer.identity()
    assert codec.codec_of(run, data).quantizer.identity() == first[0].quantizer.identity()
    assert [fit.quantizer.provenance["validation"] for fit in fit_or_load(run)] == [images(1).label] * 3
    # The old one serves its own images.
    assert names_of(fit_or_load(run, images()))[0] == beside(VBQ, first[0].quantizer)
    assert contents(run.path) == after


def test_rebuilding_the_same_fits_changes_nothing(run):
    fit_or_load(run, images())
    before = contents(run.path)
    assert names_of(fit_or_load(run, images(), rebuild=True)) == NAMES
    assert contents(run.path) == before


def test_other_validation_images_make_other_fits_beside(run, china, capsys):
    first = fit_or_load(run, images())
    data = codec.compress(china, run, 1.0)
    image, before = codec.decompress(data, run), contents(run.path)
    capsys.readouterr()
    second = fit_or_load(run, images(1))
    assert f"{VBQ} differs in the validation images (val0.npy sha256:0)" in capsys.readouterr().err
    after = contents(run.path)
    assert {name: after[name] for name in before} == before and len(after) == 8
    assert names_of(second) == all_beside(second)
    check_decodes(run, data, image)
    assert names_of(fit_or_load(run, images(1))) == names_of(second)
    assert names_of(fit_or_load(run)) == names_of(first)
    renamed = Validation(images(1).images, "other_name.npy sha256:1")
    assert names_of(fit_or_load(run, renamed)) == names_of(second)
    assert contents(run.path) == after


def test_fits_to_the_same_images_serve_together(run):
    """The first quantizer's fit that serves says which images; the others follow."""
    fit_or_load(run, images())
    second = fit_or_load(run, images(1))
    os.remove(os.path.join(run.path, VBQ))
    assert names_of(fit_or_load(run)) == names_of(second)
    os.remove(os.path.join(run.path, second[2].name + ".npz"))
    message = fails(fit_or_load, run)
    assert f"{UNIFORM} differs in the validation images (val0.npy" in message


def test_a_default_fit_takes_the_plain_name(run, china):
    """From one that has other settings, which is not lost."""
    first = fit_or_load(run, images())
    data = codec.compress(china, run, 1.0)
    image, before = codec.decompress(data, run), contents(run.path)
    default = fit_or_load(run, images(), **DEFAULT)
    assert names_of(default) == NAMES
    after = contents(run.path)
    old = dict(zip(all_beside(first), NAMES))
    assert set(after) == FILES | set(old) and after["prior.npz"] == before["prior.npz"]
    assert {name: after[new] for new, name in old.items()} == {name: before[name] for name in old.values()}
    check_decodes(run, data, image)
    # Now it stays there, whatever comes.
    third = fit_or_load(run, images(1))
    assert names_of(third) == all_beside(third)
    other_default = fit_or_load(run, images(1), **DEFAULT)
    assert not set(names_of(other_default)) & FILES
    seed = fit_or_load(run, images(), seed=3, **DEFAULT)
    assert names_of(seed)[1:] == [KMEANS, UNIFORM] and names_of(seed)[0] != VBQ
    final = contents(run.path)
    assert {name: final[name] for name in after} == after


def test_a_prior_of_the_default_seed_takes_the_plain_name(run):
    fit_or_load(run, images(), seed=3)
    old = PriorFit.load(os.path.join(run.path, "prior.npz"))
    channelwise = fit_or_load(run, images())[0]
    assert channelwise.name + ".npz" != VBQ  # its lambdas are not the default
    assert PriorFit.load(os.path.join(run.path, "prior.npz")).provenance["seed"] == 0
    beside_path = os.path.join(run.path, beside("prior", old))
    assert PriorFit.load(beside_path).identity() == old.identity()


def test_priors_and_baselines_of_other_settings_stand_beside_each_other(run):
    fit_or_load(run, images())
    fit_or_load(run, images(1), levels=(2, 3))
    fit_or_load(run, images(), levels=(5,), seed=3)
    found = [
        (kind, sorted(name for name in contents(run.path) if name.startswith(start)))
        for kind, start in ((KmeansQuantizer, "Kmeans"), (UniformQuantizer, "Uniform"), (PriorFit, "prior"))
    ]
    for kind, names in found:
        fits = [kind.load(os.path.join(run.path, name)) for name in names]
        assert len(fits) == 3 == len({fit.identity() for fit in fits})
        of_images = [fit.provenance["validation"] for fit in fits]
        assert sorted(of_images) == [images().label] * 2 + [images(1).label]
        for name, fit in zip(names, fits):
            assert name in (f"{kind.file_name(FitOptions())}.npz", beside(kind.file_name(FitOptions()), fit))
    levels = [UniformQuantizer.load(os.path.join(run.path, name)).levels for name in found[1][1]]
    assert sorted(levels) == [[2, 3], [2, 4], [5]]


def test_a_fit_of_other_weights_gives_its_name_and_is_kept(run):
    first = fit_or_load(run, images())
    before = contents(run.path)
    trained = copy.copy(run)
    trained.fingerprint = "0" * 64
    assert f"{VBQ} differs in the model's weights" in fails(fit_or_load, trained)
    second = fit_or_load(trained, images())
    assert names_of(second) == NAMES
    after = contents(run.path)
    for new, name in zip(all_beside(first), NAMES):
        assert after[new] == before[name]
    assert names_of(fit_or_load(run)) == all_beside(first)


def test_only_rebuild_overwrites_a_damaged_fit(run):
    path = os.path.join(run.path, VBQ)
    with open(path, "wb") as file:
        file.write(b"damaged")
    assert path in fails(fit_or_load, run)
    fit = fit_or_load(run, images())[0]
    assert fit.name + ".npz" == beside(VBQ, fit.quantizer) and contents(run.path)[VBQ] == b"damaged"
    assert names_of(fit_or_load(run)) == [
        fit.name + ".npz",
        KMEANS,
        UNIFORM,
    ]  # the damaged one is passed over
    assert fit_or_load(run, images(), rebuild=True)[0].name + ".npz" == VBQ
    assert ChannelwisePriorCDFQuantizer.load(path).identity() == fit.quantizer.identity()


def test_a_directory_may_have_the_characters_of_a_glob(tmp_path, model):
    run = run_in(tmp_path / "[run]*", model)
    fit_or_load(run, images())
    other = fit_or_load(run, images(), lambs=(1.0,))
    assert names_of(fit_or_load(run, lambs=(1.0,))) == names_of(other)


def test_a_file_that_was_replaced_is_read_again(run):
    first = fit_or_load(run, images())
    fit_or_load(run)
    fits = fit_or_load(run, images(1), rebuild=True)
    found = [fit.quantizer.identity() for fit in fit_or_load(run)]
    assert found == [fit.quantizer.identity() for fit in fits]
    assert not set(found) & {fit.quantizer.identity() for fit in first}


def test_latents_that_are_not_finite_are_refused(run):
    def encode(x):
        mean = np.zeros((len(x), 4, 4, run.num_channels), np.float32)
        mean[-1] = np.nan
        return mean, np.zeros_like(mean)

    broken = copy.copy(run)
    broken.encode = encode
    assert "not finite" in fails(fit_or_load, broken, images())
    assert not contents(run.path)


# The codec.


def add_bad_fits(run):
    """Leaves fits in a run's directory that the codec prefers, but cannot use; returns their names."""
    name = "ChannelwisePriorCDFQuantizer-max_bits=10-passes={}-contexts.npz"
    arrays = load_npz(os.path.join(run.path, VBQ))
    save_npz(os.path.join(run.path, name.format(5)), {**arrays, "model_fingerprint": "0"})
    with open(os.path.join(run.path, name.format(6)), "wb") as file:
        file.write(contents(run.path)[VBQ][:500])
    save_npz(os.path.join(run.path, name.format(7)), {"x": 1})
    os.symlink("gone.npz", os.path.join(run.path, name.format(8)))
    os.mkdir(os.path.join(run.path, name.format(9)))
    return [name.format(passes) for passes in (5, 6, 7, 8, 9)]


def test_bad_fits_beside_a_good_one_stop_nothing(run, china, capsys):
    fit_or_load(run, images())
    data = codec.compress(china, run, 1.0)
    image = codec.decompress(data, run)
    add_bad_fits(run)
    capsys.readouterr()
    assert codec.compress(china, run, 1.0) == data
    check_decodes(run, data, image)
    assert capsys.readouterr() == ("", "")  # nobody needs to know


def test_the_codec_names_what_it_skipped_if_no_fit_is_left(run, china):
    fit_or_load(run, images())
    data = codec.compress(china, run, 1.0)
    bad = add_bad_fits(run)
    os.remove(os.path.join(run.path, VBQ))
    messages = fails(codec.compress, china, run, 1.0), fails(codec.decompress, data, run)
    for message in messages:
        for name in bad:
            assert message.count(name) == 1
        assert f"{bad[0]} was fitted to other weights" in message
    assert "post_process.py" in messages[0]
    assert "it has no fit that can be used; " in messages[1]
    assert "try the other runs" in messages[1] and "docs/file_format.md" in messages[1]


def test_the_codec_names_the_fits_that_did_not_write_a_file(run, china):
    fit_or_load(run, images())
    other = fit_or_load(run, images(), lambs=(1.0, 3.0))[0]
    data = codec.compress(china, run, 1.0)
    os.remove(os.path.join(run.path, VBQ))
    message = fails(codec.decompress, data, run)
    needed = f"the file needs the fit {data[4:12].hex()}, which {run.name} does not have; "
    assert f"{needed}it has {other.name}.npz; " in message


def test_files_that_are_no_fits_are_passed_over(run, china):
    assert "there is no ChannelwisePriorCDFQuantizer" in fails(codec.compress, china, run, 1.0)
    fit_or_load(run, images())
    data = codec.compress(china, run, 1.0)
    for name in ("-passes=9-contexts-compression_results", "-passes=9-joint_steps=3-compression_results"):
        with open(os.path.join(run.path, VBQ.replace(".npz", name + ".npz")), "wb") as file:
            file.write(b"damaged")
    assert codec.compress(china, run, 1.0) == data


def test_fits_are_found_by_the_start_of_their_identity(run, china):
    """Also under another name, as long as it is that of a fit."""
    fit = fit_or_load(run, images())[0].quantizer
    data = codec.compress(china, run, 1.0)
    assert data[4:12].hex() == fit.identity()[:16]
    os.replace(os.path.join(run.path, VBQ), os.path.join(run.path, beside(VBQ, fit)))
    assert codec.codec_of(run, data).fingerprint == data[4:12]
    stand_in = types.SimpleNamespace(**{**vars(run), "fingerprint": "0" * 64})
    assert "other weights" in fails(codec.codec_of, stand_in, data)
