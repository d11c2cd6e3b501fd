"""Which saved fit serves, and what is said where none does."""

import copy
import dataclasses
import os

import numpy as np
import pytest
from conftest import GOLDEN_RUN
from evaluation import CHECKPOINTS, SMALL_OPTIONS, TEST_IMAGES, contents
from fitting import (
    KMEANS,
    NAMES,
    UNIFORM,
    VBQ,
    beside,
    fails,
    fit_or_load,
    images,
    names_of,
    run_in,
)

import post_process
from quantizers import (
    QUANTIZERS,
    ChannelwisePriorCDFQuantizer,
)
from vbq import code_lengths
from vbq.files import load_npz, save_npz
from vbq.fits import FitStore
from vbq.latents import PriorFit, ValidationLatents
from vbq.results import MEASURES
from vbq.runs import load_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_priors")]  # fits, many of them


@pytest.fixture(scope="module")
def model():
    """The golden run."""
    return load_run(CHECKPOINTS, GOLDEN_RUN)


@pytest.fixture
def run(tmp_path, model):
    return run_in(tmp_path / "run", model)


def test_fewer_lambdas_or_levels_are_served_with_the_same_numbers(run):
    options = dataclasses.replace(SMALL_OPTIONS, lambs=(0.25, 1.0, 8.0), levels=(2, 4, 6))
    paths = post_process.find_test_images(TEST_IMAGES)[:1]
    fits = post_process.fit_or_load(run, images(), options)
    full, before = post_process.evaluate(run, fits, options, paths), contents(run.path)
    some = dataclasses.replace(options, lambs=(1.0, 8.0), levels=(4,))
    served = post_process.fit_or_load(run, None, some)
    assert names_of(served) == names_of(fits)
    for whole, part in zip(full, post_process.evaluate(run, served, some, paths)):
        columns = [list(whole["settings"]).index(setting) for setting in part["settings"]]
        assert len(columns) == len(part["settings"]) < len(whole["settings"]) and list(part) == list(whole)
        for key, x in part.items():
            by_setting = key == "settings" or key in MEASURES
            expected = whole[key][..., columns] if by_setting else whole[key]
            np.testing.assert_array_equal(x, expected, err_msg=key)
    assert names_of(post_process.fit_or_load(run, images(), some)) == names_of(fits)
    assert contents(run.path) == before


@pytest.mark.parametrize(
    "other, words",
    [
        ({"lambs": (0.5, 3.0, 8.0)}, [f"{VBQ} differs in --lambs (it has no 3)"]),
        ({"lambs": (0.25, 3.0)}, [f"{VBQ} differs in --lambs (it has no 0.25, 3)"]),
        ({"levels": (2, 3, 5)}, [f"{KMEANS} differs in --quantization_levels (it has no 3, 5)"]),
        ({"seed": 7}, [f"{VBQ} differs in --seed (0 instead of 7)"]),
        ({"seed": 7, "lambs": (3.0,)}, ["--seed (0 instead of 7) and --lambs (it has no 3)"]),
        ({"max_bits": 5}, ["there is no ChannelwisePriorCDFQuantizer-max_bits=5.npz"]),
        ({"passes": 3}, ["there is no ChannelwisePriorCDFQuantizer-max_bits=4-passes=3.npz"]),
    ],
)
def test_a_message_says_which_setting_differs(saved_run, other, words):
    message = fails(fit_or_load, saved_run, **other)
    assert saved_run.path in message and "no saved fit serves" in message
    assert message.endswith(tuple(f"; it has {name.removesuffix('.npz')}" for name in NAMES))
    for word in words:
        assert word in message


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory, model):
    """A run with fits, only to be read."""
    run = run_in(tmp_path_factory.mktemp("saved") / "run", model)
    fit_or_load(run, images())
    return run


def test_the_note_of_a_new_fit_says_which_setting_differs(run, capsys):
    fit_or_load(run, images())
    capsys.readouterr()
    fit_or_load(run, images(), lambs=(3.0,), levels=(2,))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        f"fits ChannelwisePriorCDFQuantizer to 12 validation images: {VBQ} differs in --lambs (it has no 3)"
    )
    assert len(lines) == 2 and lines[1].startswith("uses the saved fits KmeansQuantizer, UniformQuantizer")


@pytest.mark.parametrize(
    "other, words",
    [
        ({"max_bits": 5}, "--max_bits (4 instead of 5)"),
        ({"passes": 3}, "--passes (2 instead of 3)"),
        ({"passes": 3, "contexts": True}, "--contexts (False instead of True)"),
    ],
)
def test_what_a_file_holds_counts_and_not_its_name(run, saved_run, other, words):
    options = dataclasses.replace(SMALL_OPTIONS, **other)
    name = ChannelwisePriorCDFQuantizer.file_name(options)
    with open(os.path.join(run.path, name + ".npz"), "wb") as file:
        file.write(contents(saved_run.path)[VBQ])
    store = FitStore(run.path, run.fingerprint)
    found, reasons = store.find(ChannelwisePriorCDFQuantizer, options)
    assert found is None and len(reasons) == 1
    assert words in reasons[0] and reasons[0].startswith(f"{name}.npz differs in ")


def test_the_seed_concerns_the_channelwise_fit_and_the_prior(run, capsys):
    first = fit_or_load(run, images())
    capsys.readouterr()
    second = fit_or_load(run, images(), seed=3)
    err = capsys.readouterr().err
    assert f"{VBQ} differs in --seed (0 instead of 3)" in err and "fits the prior" in err
    assert "uses the saved fits KmeansQuantizer, UniformQuantizer" in err
    assert names_of(second) == [beside(VBQ, second[0].quantizer), KMEANS, UNIFORM]
    priors = {name for name in contents(run.path) if name.startswith("prior")}
    assert len(priors) == 2 and len(contents(run.path)) == 6
    seeds = [PriorFit.load(os.path.join(run.path, name)).provenance["seed"] for name in priors]
    assert sorted(seeds) == [0, 3]
    assert names_of(fit_or_load(run)) == names_of(first)
    assert names_of(fit_or_load(run, seed=3)) == names_of(second)
    assert not any("seed" in fit.quantizer.provenance for fit in second[1:])


def test_a_saved_prior_serves_other_numbers_of_bits(run, capsys):
    fit_or_load(run, images())
    capsys.readouterr()
    other = fit_or_load(run, images(), max_bits=3)
    assert "fits the prior" not in capsys.readouterr().err
    prior = PriorFit.load(os.path.join(run.path, "prior.npz")).prior
    expected = prior.inverse_cdf(np.arange(1, 16) / 16).astype(np.float32)
    np.testing.assert_array_equal(other[0].quantizer.code_points, expected)


def test_contexts_are_added_to_the_saved_fit_of_as_many_passes(run, monkeypatch):
    asked = {"passes": 3, "contexts": True}
    fresh = fit_or_load(run, images(), **asked)[0]
    os.remove(os.path.join(run.path, fresh.name + ".npz"))
    fit_or_load(run, images(), passes=3)
    fit_counts, calls = code_lengths.fit_counts, []
    monkeypatch.setattr(code_lengths, "fit_counts", lambda *args: calls.append(args) or fit_counts(*args))
    for rebuild in (False, True):
        fit = fit_or_load(run, images(), rebuild, **asked)[0].quantizer
        assert fit.contexts and fit.identity() == fresh.quantizer.identity()
        assert len(calls) == rebuild
    fit_or_load(run, images(), passes=4)
    few = fit_or_load(run, images(), passes=4, contexts=True, lambs=(8.0,))[0].quantizer
    assert few.lambs.tolist() == [8.0]  # not those of the saved fit


def test_latents_are_computed_when_they_are_needed(saved_run):
    """Fits that serve need no transform of the validation images."""
    broken = copy.copy(saved_run)
    broken.encode = None
    assert names_of(fit_or_load(broken, images())) == NAMES
    store = FitStore(broken.path, broken.fingerprint)
    latents = ValidationLatents(broken, images(), store)
    assert latents.code_points(2, 0).shape == (8, 7)  # from the saved prior
    with pytest.raises(TypeError):
        _ = latents.mean


def test_fits_of_older_versions_serve(run, saved_run):
    """They saved the seed with the baselines, too."""
    for name in contents(saved_run.path):
        arrays = load_npz(os.path.join(saved_run.path, name))
        save_npz(os.path.join(run.path, name), {**arrays, "seed": 0})
    assert names_of(fit_or_load(run)) == NAMES
    assert names_of(fit_or_load(run, images(), seed=3))[1:] == [KMEANS, UNIFORM]
    for kind, name in zip(QUANTIZERS, NAMES):
        old, new = (kind.load(os.path.join(place.path, name)) for place in (run, saved_run))
        assert old.identity() == new.identity()
