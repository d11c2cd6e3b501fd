"""What the tests of saved fits share: runs without fits, fits to few images, and the names of their files."""

import copy
import dataclasses
import os

import pytest
from evaluation import SMALL_NAMES, SMALL_OPTIONS, validation_images

import post_process
from vbq.command import UserError
from vbq.fits import DEFAULT_LAMBS, DEFAULT_LEVELS
from vbq.validation import Validation

VBQ, KMEANS, UNIFORM = NAMES = [name + ".npz" for name in SMALL_NAMES]
FILES = {*NAMES, "prior.npz"}
DEFAULT = {"lambs": DEFAULT_LAMBS, "levels": DEFAULT_LEVELS}


def run_in(folder, model):
    """The golden run with a directory of its own, without fits."""
    os.mkdir(folder)
    run = copy.copy(model)
    run.path = str(folder)
    return run


def images(which=0):
    """Validation images; different ones for another number."""
    return Validation(validation_images()[:, which:], f"val{which}.npy sha256:{which}")


def fit_or_load(run, validation=None, rebuild=False, **other):
    """The fits, with SMALL_OPTIONS except for what is given."""
    options = dataclasses.replace(SMALL_OPTIONS, **other)
    return post_process.fit_or_load(run, validation, options, rebuild)


def names_of(fits):
    return [fit.name + ".npz" for fit in fits]


def beside(name, fit):
    """The name of the file of a fit that stands beside the plain name."""
    return f"{name.removesuffix('.npz')}-fit={fit.identity()[:16]}.npz"


def all_beside(fits):
    """The names of all three files, if all stand beside the plain names."""
    return [beside(name, fit.quantizer) for name, fit in zip(NAMES, fits)]


def fails(call, *args, **kwargs):
    """Calls a function that should raise a UserError, and returns its message, which has to be one line."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)
