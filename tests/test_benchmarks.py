"""The benchmarks in small sizes: rows give figures, and results equal those of plain implementations."""

import math
import os
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, os.path.join(ROOT, "benchmarks"))
import codec_shares
import codec_sizes
import inputs as benchmark_inputs
import measure
import run

from vbq.images import read_image

run.load_rows()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return benchmark_inputs.Inputs(str(tmp_path_factory.mktemp("benchmark")), quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", measure.ROWS)
def test_row(name, inputs):
    row = measure.ROWS[name]
    outcome = row.function(inputs)
    assert outcome.equal is True
    assert math.isfinite(outcome.ratio) and outcome.ratio > 0
    line = run.result_line(row, outcome, 1)
    assert line.count("|") == len(run.COLUMNS) + 1


def test_table(capsys):
    assert run.main(["--quick", "--rows", "metrics"]) == 0
    text = capsys.readouterr().out
    assert "tensorflow 2.14" in text and "cores" in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("| ")][-1] == "metrics"


def test_unequal_results_fail(capsys, monkeypatch):
    wrong = measure.Row(
        "wrong", "", "", (">=", 1), "", lambda inputs: measure.Outcome("1 s", "1 s", 2.0, False)
    )
    monkeypatch.setitem(measure.ROWS, "wrong", wrong)
    assert run.main(["--quick", "--rows", "wrong"]) == 1
    assert "NOT equal: wrong" in capsys.readouterr().out


def test_list(capsys):
    assert run.main(["--list"]) == 0
    text = capsys.readouterr().out
    assert all(f"{name}: " in text for name in measure.ROWS)


def test_bad_row():
    with pytest.raises(SystemExit) as status:
        run.main(["--rows", "nothing"])
    assert status.value.code == 2


@pytest.mark.slow
def test_shares_of_the_codec(capsys):
    assert codec_shares.main(["--quick", "--rounds", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 8 |")]
    assert [line.split()[3] for line in lines[:2]] == ["compress", "decompress"]
    assert "400 x 300" in lines[2] and lines[2].count(" GB") == 2


@pytest.mark.slow
def test_sizes_of_files(inputs, capsys):
    from codec import Encoder, codec_of

    inputs.fits("small_run", 4)  # saves them in the run's directory
    (path,) = inputs.test_images(1)
    encoder = Encoder(codec_of(inputs.load("small_run")), read_image(path))
    target = round(encoder.psnr(encoder.compress(1.0)) - 0.1, 3)
    checkpoint_dir, runname = inputs.small_run()
    args = [path, "--checkpoint_dir", checkpoint_dir, "--runname", runname, "--crop", "0"]
    assert codec_sizes.main([*args, "--psnr", str(target), "90"]) == 0
    reached, out_of_reach = capsys.readouterr().out.splitlines()[-2:]
    assert reached.startswith(f"| {target:g} dB | 1 | ") and "nan" not in reached
    assert out_of_reach.startswith("| 90 dB | 0 | nan")


def test_step_flop():
    from rows_training import step_flop

    # By hand, for one filter. The two layers at the image have 64 * 243 products each; that of the analysis
    # needs no gradient of its input, so it counts twice, the other three times. The 5 x 5 layers have 16, 4
    # (two outputs), 4 and 16 positions. GDN has 64 and 16 positions in each transform.
    assert step_flop(1, 1, 32) == 2 * (
        2 * 64 * 243 + 3 * (64 * 243 + 25 * (16 + 4 * 2 + 4 + 16) + 2 * (64 + 16))
    )


def test_peak_memory_of_a_child_is_its_own():
    ballast = bytearray(200 * 2**20)
    code = "x = b'x' * int(sys.argv[2])\nreport(size=len(x))"
    small, large = (measure.run_child(code, size) for size in (1, 10**8))
    assert large["size"] == 10**8
    assert 0.9e8 < large["peak"] - small["peak"] < 1.2e8
    assert small["peak"] < 150e6 < len(ballast)
