"""The identity of a fit: it changes with every part of the content, and that of a shipped fit never."""

import os

import brute_force
import numpy as np
import pytest
from conftest import ROOT
from shipped import CHECKPOINTS, PAPER_RUN, RUN

from quantizers import ChannelwisePriorCDFQuantizer, KmeansQuantizer, UniformQuantizer
from vbq.contexts import Contexts
from vbq.gains import DecoderGains
from vbq.latents import PriorFit
from vbq.priors import DeepFactorizedPrior


def changed(array):
    """A copy with another last value."""
    array = array.copy()
    array.flat[-1] += 1
    return array


def test_the_identity_of_a_fit_changes_with_every_part_of_it():
    quantizer, _, _ = brute_force.context_fit(model_fingerprint="abc", validation="x")
    found = {quantizer.identity()}

    def add(model_fingerprint="abc", contexts=quantizer.contexts, **other):
        names = "code_points", "lambs", "bit_length_counts", "index_counts", "passes", "shifts"
        parts = {name: other.get(name, getattr(quantizer, name)) for name in names}
        provenance = {"model_fingerprint": model_fingerprint}
        found.add(
            ChannelwisePriorCDFQuantizer(*parts.values(), provenance=provenance, contexts=contexts).identity()
        )

    add()  # the same fit: the validation images' name is no part of its content
    assert len(found) == 1
    add(model_fingerprint="abd")
    for name in "code_points", "index_counts", "shifts":
        add(**{name: changed(getattr(quantizer, name))})
    add(shifts=None)
    add(contexts=None)
    arrays = quantizer.contexts.arrays()
    for name in "weights", "thresholds", "exponents", "class_counts":
        add(contexts=Contexts(**{**arrays, name: changed(arrays[name])}))
    add(contexts=Contexts(**{**arrays, "order": np.ascontiguousarray(arrays["order"][:, ::-1])}))
    assert len(found) == 1 + 1 + 3 + 2 + 5
    assert quantizer.identity("abd") in found and quantizer.identity() == quantizer.identity("abc")


@pytest.mark.parametrize("kind", [UniformQuantizer, KmeansQuantizer])
def test_the_identity_of_a_baseline_changes_with_every_part_of_it(kind):
    _, mean, _ = brute_force.random_latents(0)
    one = kind.fit(mean, [2, 5], {"model_fingerprint": "abc", "validation": "x"})
    same = kind(one.code_points, one.counts, {"model_fingerprint": "abc"})
    assert same.identity() == one.identity() and len(one.identity()) == 64
    others = [
        kind(one.code_points, one.counts, {"model_fingerprint": "abd"}),
        kind({**one.code_points, 5: changed(one.code_points[5])}, one.counts, one.provenance),
        kind(one.code_points, {**one.counts, 5: changed(one.counts[5])}, one.provenance),
        kind({2: one.code_points[2]}, {2: one.counts[2]}, one.provenance),
    ]
    assert len({fit.identity() for fit in [one, *others]}) == 5


def test_different_quantizers_of_the_same_arrays_have_different_identities():
    arrays = {2: np.zeros((3, 2))}, {2: np.zeros((3, 2), int)}
    assert UniformQuantizer(*arrays).identity() != KmeansQuantizer(*arrays).identity()


@pytest.mark.parametrize(
    "run, kind, name, fingerprint",
    [
        (PAPER_RUN, ChannelwisePriorCDFQuantizer, "", "b7f32569e8c36eac"),
        (PAPER_RUN, DecoderGains, "", "a01ff73046c1e988"),
        (RUN, ChannelwisePriorCDFQuantizer, "", "ab124ce0214f82ec"),
        (RUN, ChannelwisePriorCDFQuantizer, "-passes=20", "78ec05e1551ee046"),
        (RUN, ChannelwisePriorCDFQuantizer, "-passes=20-contexts", "b66cf9aef8d258a2"),
        (RUN, DecoderGains, "", "beae4138ba15c2f3"),
        (RUN, DecoderGains, "-passes=20-contexts", "d99490db29a39e37"),
    ],
)
def test_the_fingerprints_of_the_shipped_fits_are_pinned(run, kind, name, fingerprint):
    """They stand in the .vbq files that these fits have written, and in the documentation."""
    path = os.path.join(CHECKPOINTS, run, f"{kind.__name__}-max_bits=10{name}.npz")
    assert kind.load(path).identity()[:16] == fingerprint
    with open(os.path.join(ROOT, "docs", "file_format.md"), encoding="utf-8") as file:
        assert f"| {fingerprint} |" in file.read()


def test_the_identity_of_gains_changes_with_every_part_of_them():
    arrays = {"base": "ab", "lambs": [1.0], "scales": np.ones((1, 3)), "offsets": np.zeros((1, 3))}
    changes = {"base": "ac"}, {"lambs": [2.0]}, {"scales": np.full((1, 3), 2)}, {"offsets": np.ones((1, 3))}
    found = {DecoderGains(**arrays | change).identity("abc") for change in ({}, *changes)}
    assert len(found | {DecoderGains(**arrays).identity("abd")}) == 6


def test_the_identity_of_a_prior_changes_with_every_part_of_it():
    random = np.random.default_rng(0)
    prior = DeepFactorizedPrior.fit(random.normal(size=(50, 1)))
    same = DeepFactorizedPrior(prior.parameters.copy())
    found = {PriorFit(x, {"model_fingerprint": "abc", "seed": 1}).identity() for x in (prior, same)}
    assert len(found) == 1
    found.add(PriorFit(prior, {"model_fingerprint": "abd"}).identity())
    for i in range(prior.parameters.shape[1]):
        parameters = prior.parameters.copy()
        parameters[0, i] += 1
        found.add(PriorFit(DeepFactorizedPrior(parameters), {"model_fingerprint": "abc"}).identity())
    assert len(found) == 2 + prior.parameters.shape[1]
