"""The benchmark, at sizes that try its rows: they give figures, and the results of the programs are those of plain ones."""
import math
import os
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, os.path.join(ROOT, "benchmarks"))
import inputs as benchmark_inputs  # pylint: disable=wrong-import-position
import measure  # pylint: disable=wrong-import-position
import run  # pylint: disable=wrong-import-position

run.load_rows()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return benchmark_inputs.Inputs(str(tmp_path_factory.mktemp("benchmark")), quick=True)


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
    wrong = measure.Row("wrong", "", "", (">=", 1), "", lambda inputs: measure.Outcome("1 s", "1 s", 2., False))
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


def test_step_flop():
    from rows_training import step_flop
    # By hand, for one filter: the layers at the image 64 * 243 products each, of which only the analysis' is done twice, not
    # three times; 5 x 5 layers at 16, 4, 4 (two outputs, or one) and 16 positions; GDN at 64 and 16, in either transform.
    assert step_flop(1, 1, 32) == 2 * (2 * 64 * 243 + 3 * (64 * 243 + 25 * (16 + 4 * 2 + 4 + 16) + 2 * (64 + 16)))


def test_peak_memory_of_a_child_is_its_own():
    ballast = bytearray(200 * 2**20)
    code = "x = b'x' * int(sys.argv[2])\nreport(size=len(x))"
    small, large = (measure.run_child(code, size) for size in (1, 10**8))
    assert large["size"] == 10**8
    assert 0.9e8 < large["peak"] - small["peak"] < 1.2e8
    assert small["peak"] < 150e6 < len(ballast)
