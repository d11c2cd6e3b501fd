"""The descriptions of a model and of its training."""

import dataclasses

import pytest
from small_runs import TINY

import bls2017_vae
from vbq.config import ModelConfig, TrainingConfig


def training_config(flags):
    return TrainingConfig.of(vars(bls2017_vae.parse_args(flags.split())))


def test_fields_are_flags_and_lists_become_tuples():
    flags = vars(bls2017_vae.parse_args([]))
    assert ModelConfig.of(flags) == ModelConfig((32, 32, 32), (9, 5, 5), (4, 2, 2))
    assert TrainingConfig.of(flags).batchsize == flags["batchsize"]
    del flags["filter_dims"]
    with pytest.raises(KeyError, match="filter_dims"):
        ModelConfig.of(flags)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.num_filters = (5, 5)


def test_stride_channels_and_margin_follow_from_the_layers():
    assert (TINY.num_channels, TINY.stride, TINY.margin) == (3, 4, 1)
    original = ModelConfig((256, 256, 256), (9, 5, 5), (4, 2, 2))
    assert (original.num_channels, original.stride) == (256, 16)
    assert original.margin == 2  # 4 + 2 * 4 + 2 * 8 = 28 pixels


def test_learning_rate_schedules():
    constant = training_config("")
    assert {constant.rate(step) for step in (0, 50000, 99999)} == {1e-4}
    cosine = training_config("--lr_schedule cosine --warmup_steps 10 --last_step 110")
    rates = [cosine.rate(step) for step in range(110)]
    assert rates[0] == pytest.approx(1e-4 / 11) and max(rates) == rates[10] == 1e-4
    assert rates[60] == pytest.approx(0.5e-4) and 0 < rates[-1] < 1e-7
    assert rates[10:] == sorted(rates[10:], reverse=True)
