"""The search for a lambda, on functions that are known: targets are met in few calls, jumps are crossed."""

import math

import numpy as np
import pytest
from codec_runs import fails

from vbq.rate_search import LEAST_RATIO, MOST_COSTLY, Point, approach, bracket

LAMBS = 2.0 ** np.arange(-4, 5)


class Curve:
    """A function of lambda that counts its calls; the lambda of the fit is the nearest unless it is given."""

    def __init__(self, value):
        """Takes value(lamb, lamb_index), which falls with lamb."""
        self.value, self.calls = value, []

    def __call__(self, lamb, lamb_index):
        if lamb_index is None:
            lamb_index = int(np.argmin(np.abs(np.log(LAMBS / lamb))))
        self.calls.append((lamb, lamb_index))
        return Point(self.value(lamb, lamb_index), lamb, lamb_index, f"file at {lamb}")


SMOOTH = {
    "logarithm": lambda lamb, _: 40 - 3 * math.log(lamb),
    "power": lambda lamb, _: lamb**-0.7,
    "steep at one end": lambda lamb, _: 1 / (lamb - LAMBS[0] + 0.01),
    "sigmoid": lambda lamb, _: 1 / (1 + (lamb / 3) ** 4),
    "infinite below one": lambda lamb, _: 30 / (lamb - 1) if lamb > 1 else math.inf,
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("share", [0.0, 0.03, 0.2, 0.5, 0.77, 0.99, 1.0])
@pytest.mark.parametrize("tolerance", [0.005, -0.005])
def test_targets_are_met_in_few_calls(name, share, tolerance):
    curve = Curve(SMOOTH[name])
    lamb = LAMBS[-1] * (max(LAMBS[0], 1.5 * (name == "infinite below one")) / LAMBS[-1]) ** share
    target = curve.value(lamb, None)
    tolerance *= target
    points = bracket(curve, LAMBS, target, tolerance, "units")[:2]
    low, high = sorted((target, target + tolerance))
    assert any(low <= point.value <= high for point in points)
    assert len(curve.calls) <= 16
    for point in points:
        assert point.value == curve.value(point.lamb, None) and point.result == f"file at {point.lamb}"


def test_interpolation_hits_a_straight_line_at_once():
    curve = Curve(SMOOTH["logarithm"])
    points = bracket(curve, LAMBS, 41.3, 0.01, "dB")[:2]
    assert any(41.3 <= point.value <= 41.31 and point.lamb == curve.calls[2][0] for point in points)
    assert len(curve.calls) <= 4


def test_the_two_points_are_on_either_side_of_the_middle():
    curve = Curve(lambda lamb, _: round(10 - math.log2(lamb)))  # steps: no value is inside the tolerance
    above, below, _ = bracket(curve, LAMBS, 9.4, 0.2, "units")
    assert (above.value, below.value) == (10, 9)
    assert above.lamb < below.lamb <= LEAST_RATIO * above.lamb * (1 + 1e-9)
    assert len(curve.calls) <= 30


def test_targets_out_of_reach_are_told_the_whole_range_rounded_inwards():
    """The range goes beyond the lambdas of the fit, by the factor 4^12, as long as the value changes."""
    curve = Curve(lambda lamb, _: 1 / 3 - math.log2(lamb) / 7)
    for target, tolerance in ((-9.0, -0.001), (9.0, 0.001)):
        message = fails(bracket, curve, LAMBS, target, tolerance, "bits per pixel")
        assert message.startswith(f"{target:g} bits per pixel cannot be reached")
        assert message.endswith("from -3.6666 to 4.3333 bits per pixel")
    for bound in (-3.6666, 4.3333):
        found = bracket(curve, LAMBS, bound, -0.001, "bits per pixel")
        assert not found.is_end and any(bound - 0.001 <= point.value <= bound for point in found[:2])


def test_targets_beyond_the_range_are_caps_where_the_value_may_lie_on_that_side():
    def at(lamb, lamb_index):
        lamb_index = 0 if lamb_index is None else lamb_index
        return Point(min(max(10 - math.log2(lamb), 2), 18), lamb, lamb_index, "file")

    above, below, is_end = bracket(at, LAMBS, 50.0, -0.1, "bpp")  # at most 50: the largest there is
    assert is_end and above == below and above.value == 18
    above, below, is_end = bracket(at, LAMBS, 1.0, 0.1, "dB")  # at least 1: the smallest there is
    assert is_end and above == below and above.value == 2
    assert "from 2.0 to 18.0 dB" in fails(bracket, at, LAMBS, 50.0, 0.1, "dB")
    assert "from 2.0 to 18.0 bpp" in fails(bracket, at, LAMBS, 1.0, -0.1, "bpp")
    assert not bracket(at, LAMBS, 17.0, -0.1, "bpp").is_end  # beyond the lambdas of the fit, within the range


def test_a_fit_of_one_lambda_reaches_what_other_lambdas_lead_to():
    def at(lamb, _):
        return Point(min(max(10 - math.log2(lamb), 2), 18), lamb, 0, "file")

    for target in (2.5, 7.0, 10.0, 13.0, 17.5):
        found = bracket(at, LAMBS[4:5], target, 0.05, "dB")
        assert any(target <= point.value <= target + 0.05 for point in found[:2])
    assert "from 2.0 to 18.0 dB" in fails(bracket, at, LAMBS[4:5], 50.0, 0.1, "dB")


def test_the_range_is_told_in_increasing_order_where_the_value_rises_with_lambda():
    message = fails(bracket, lambda lamb, i: Point(lamb, lamb, i or 0, "file"), LAMBS[:1], 1e30, 0.1, "dB")
    least, most = map(float, message.partition("from ")[2].split()[:3:2])
    assert least < most


def test_a_value_without_end_is_told_as_such():
    curve = Curve(SMOOTH["infinite below one"])
    assert "to inf dB" in fails(bracket, curve, LAMBS, 1e-9, -1e-10, "dB")


@pytest.mark.parametrize("target", [0.92, 0.97, 1.03, 1.08])
@pytest.mark.parametrize("tolerance", [0.004, -0.004])
def test_values_within_a_jump_are_reached_with_the_lengths_of_the_larger_lambda(target, tolerance):
    """At lambda 2^-1.5, lambda number 2 of the fit gives way to number 3: the value jumps from 1.1 to 0.9."""
    curve = Curve(lambda lamb, lamb_index: -math.log2(lamb) - 0.2 * lamb_index)
    points = bracket(curve, LAMBS, target, tolerance, "units")[:2]
    low, high = sorted((target, target + tolerance))
    (found,) = (point for point in points if low <= point.value <= high)
    assert found.lamb_index == 3 and found.lamb < 2**-1.5
    assert len(curve.calls) <= 12


def test_a_jump_that_no_lambda_crosses_ends_the_search():
    """The larger lambda's lengths never lead above the jump: the two sides of it are returned."""
    curve = Curve(lambda lamb, lamb_index: 10.0 - lamb_index)
    above, below, _ = bracket(curve, LAMBS, 6.5, 0.1, "units")
    assert (above.value, below.value) == (7, 6) and (above.lamb_index, below.lamb_index) == (3, 4)
    assert len(curve.calls) <= 30


# A costly function, approached with the help of a cheap one.


def parallel(value, shift, jitter=0.0):
    """A cheap curve, and a costly one whose value is higher by a shift that depends on lambda."""
    cheap = Curve(value)
    costly = Curve(lambda lamb, i: value(lamb, i) + shift(lamb) + jitter * math.sin(1e4 * lamb))
    return costly, cheap


@pytest.mark.parametrize("tolerance", [0.1, -0.1])
@pytest.mark.parametrize("target", [33.7, 38.2, 40.0, 43.3, 45.9])
@pytest.mark.parametrize("jump", [0.0, 0.3])
def test_a_costly_target_is_met_in_three_calls(target, tolerance, jump):
    value = lambda lamb, i: 40 - 3 * math.log(lamb) - jump * i
    costly, cheap = parallel(value, lambda lamb: 1.5 - 0.1 * math.log(lamb), jitter=0.01)
    points, is_end = approach(costly, cheap, LAMBS, target, tolerance)
    low, high = sorted((target, target + tolerance))
    assert len(costly.calls) == len(points) <= MOST_COSTLY and not is_end
    assert low <= points[-1].value <= high and points[-1].result.startswith("file")
    assert len(cheap.calls) <= 16


def test_a_costly_function_that_equals_the_cheap_one_is_called_once_if_the_first_value_is_good():
    costly, cheap = parallel(SMOOTH["logarithm"], lambda lamb: 0)
    target = 41.0
    points, _ = approach(costly, cheap, LAMBS, target, 0.1)
    assert len(costly.calls) <= 2 and target <= points[-1].value <= target + 0.1


def test_a_costly_target_beyond_the_cheap_range():
    """A target that only the costly function reaches is met from the allowed side, if not closely."""
    value = lambda lamb, _: 30 - math.log(1 + lamb)
    costly, cheap = parallel(value, lambda lamb: 3 / (1 + lamb))
    points, is_end = approach(costly, cheap, LAMBS, 32.0, 0.1)
    assert not is_end and any(point.value >= 32.0 for point in points) and len(points) <= MOST_COSTLY
    points, is_end = approach(costly, cheap, LAMBS, 50.0, 0.1)
    assert not is_end and all(point.value < 50 for point in points) and len(points) <= MOST_COSTLY


def test_costly_caps_that_hold():
    def at(shift):
        return lambda lamb, i: Point(min(max(10 - math.log2(lamb), 2), 18) + shift, lamb, i or 0, "file")

    for target, tolerance, value in ((50.0, -0.1, 19), (1.0, 0.1, 3)):
        (point,), is_end = approach(at(1), at(0), LAMBS, target, tolerance)
        assert is_end and point.value == value
    points, is_end = approach(at(1), at(0), LAMBS, 18.5, -0.1)  # a cap that the costly function exceeds
    assert not is_end and points[0].value == 19 and len(points) <= MOST_COSTLY


def test_a_costly_function_without_loss_ends_at_once():
    costly, cheap = Curve(lambda lamb, _: math.inf), Curve(SMOOTH["logarithm"])
    points, is_end = approach(costly, cheap, LAMBS, 41.0, 0.1)
    assert len(points) == 1 and not is_end


def test_equal_sizes_do_not_end_what_can_be_reached():
    """Files come in few sizes: two lambdas with the same one may be followed by a smaller one."""
    sizes = Curve(lambda lamb, _: 45.0 if lamb < 1e5 else 41.0)
    found = bracket(sizes, LAMBS, 43.0, -0.1, "bytes")
    assert min(found.above.value, found.below.value) == 41.0
    assert "from 41.0 to 45.0" in fails(bracket, sizes, LAMBS, 40.0, -0.1, "bytes")
