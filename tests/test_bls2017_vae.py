"""The flags of training, and the name of a run."""

import subprocess
import sys

import pytest
from conftest import ROOT

import bls2017_vae


def test_run_names_are_the_originals():
    flags = "--patchsize 256 --last_step 2000000 --likelihood_variance 0.001 --num_filters 256 256 256"
    args = bls2017_vae.parse_args(flags.split())
    assert bls2017_vae.runname(args) == (
        "bls2017_vae-num_filters=256_256_256-filter_dims=9_5_5-sampling_rates=4_2_2-learned_prior=False"
        "-likelihood_variance=0.001-last_step=2000000"
    )
    args = bls2017_vae.parse_args(["--learned_prior"])
    assert (
        "-learned_prior=True-prior_init_scale=10.0-prior_lr=0.001-likelihood_variance=0.02-"
        in bls2017_vae.runname(args)
    )


def test_flags_of_a_start_are_no_part_of_the_name():
    plain, init = (bls2017_vae.parse_args(flags) for flags in ([], ["--init_run", "other"]))
    assert bls2017_vae.runname(plain) == bls2017_vae.runname(init)
    assert plain.init_run is None and init.init_run == "other"


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--num_filters 4 4", "lists of one length"),
        ("--num_filters 4 0 4", "integer >= 1"),
        ("--batchsize -1", "integer >= 1"),
        ("--likelihood_variance 0", "number > 0"),
        ("--learning_rate nan", "number > 0"),
        ("--last_step 1.5", "integer >= 1"),
        ("--patchsize 40", "multiple of 16"),
        ("--ema_decay 1", "< 1"),
        ("--min_scale 1.5", "<= 1"),
        ("--seed -1", ">= 0"),
        ("--seed 5000000000", "< 4294967296"),
        ("--strategy all", "invalid choice"),
        ("--nonsense", "unrecognized"),
    ],
)
def test_usage_errors_exit_with_2_and_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as error:
        bls2017_vae.main(flags.split())
    assert error.value.code == 2
    text = capsys.readouterr().err
    assert message in text and text.count("\n") == 1


def test_help_and_flags_import_nothing_slow():
    code = """
import sys, bls2017_vae
bls2017_vae.parse_args([])
try:
    bls2017_vae.main(["--help"])
except SystemExit as error:
    assert error.code == 0
slow = {"tensorflow", "matplotlib", "scipy", "absl"} & set(sys.modules)
assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "--train_glob" in done.stdout and "--logtostderr" not in done.stdout  # absl's flags are not ours
