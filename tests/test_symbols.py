"""Symbols: which code points share one, against plain loops."""

import numpy as np
import pytest

from vbq.symbols import Symbols


def plain_symbols(row):
    """The code points of each symbol of a channel: a list of lists."""
    symbols = []
    for k, count in enumerate(row):
        is_alone = count > 0 or k == 0
        if symbols and not is_alone and row[k - 1] == 0 and symbols[-1] != [0]:
            symbols[-1].append(k)
        else:
            symbols.append([k])
    return symbols


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_symbols_are_counted_code_points_and_runs_of_others(share):
    random = np.random.default_rng(0)
    counts = random.integers(1, 9, (20, 31)) * (random.random((20, 31)) < share)
    symbols = Symbols(counts)
    expected = [plain_symbols(row) for row in counts.tolist()]
    assert np.diff(symbols.starts).tolist() == [len(row) for row in expected]
    flat = [(c, points) for c, row in enumerate(expected) for points in row]
    assert symbols.channels.tolist() == [c for c, _ in flat]
    assert symbols.sizes.tolist() == [len(points) for _, points in flat]
    assert symbols.firsts.tolist() == [c * 31 + points[0] for c, points in flat]
    assert symbols.points.tolist() == [points[0] if len(points) == 1 else -1 for _, points in flat]
    for c, row in enumerate(expected):
        assert symbols.of_channel(c) == slice(*symbols.starts[c : c + 2])
        numbers = [s if len(points) == 1 else -1 for s, points in enumerate(row) for _ in points]
        assert symbols.numbers[c].tolist() == numbers
        assert len(row) > 1  # the range coder takes no fewer
