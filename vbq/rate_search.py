"""Finds the lambda that meets a size or a PSNR, for any function from lambda to a value."""

import math
from typing import NamedTuple

from vbq.command import UserError

LEAST_RATIO = 1 + 1e-3  # of two lambdas; a search ends when they are this close
MOST_STRETCH = 2.0**10  # factor by which a search inside a jump goes below the smallest lambda of the fit
# If the fit's lambdas do not reach the target, the search goes beyond them: this factor, this many times.
END_FACTOR, END_STEPS = 4.0, 12
COARSE_RATIO = math.sqrt(2)  # of two lambdas; the first narrowing ends when they are this close
MOST_COSTLY = 3  # calls of a costly function, see `approach`
FIRST_WIDTH = 3.0  # tolerances by which the first of these calls may miss the target of the cheap function
SLOPE_RATIO = 1.3  # of the two lambdas between which a slope is measured
LAST_MARGIN = 0.3  # of the last correction
MOST_CHANGE = 16.0  # factor by which a correction changes lambda


class Point(NamedTuple):
    """What a lambda leads to."""

    value: float  # what is searched for: bits per pixel or dB
    lamb: float
    lamb_index: int  # the lambda of the fit whose lengths were used
    result: object  # anything that the caller wants back


class Bracket(NamedTuple):
    """Two points around a target, or twice the point at the end of what can be reached."""

    above: Point
    below: Point
    # Whether every lambda meets the target. Both points are then the one that is closest to it.
    is_end: bool = False


class OutOfReach(UserError):
    """No lambda leads to a value on the allowed side of the target.

    Attributes:
      values: list of float, the least value that can be reached and the largest.
    """

    def __init__(self, target, unit, values):
        """Takes the target, the unit of the message, and `values`, two or more."""
        self.values = [min(values), max(values)]
        # Bounds are rounded inwards, so that the printed bounds can themselves be reached.
        least, most = _rounded(self.values[0], math.ceil), _rounded(self.values[1], math.floor)
        super().__init__(
            f"{target:g} {unit} cannot be reached: this model takes this image from {least} to {most} {unit}"
        )


def bracket(at, lambs, target, tolerance, unit):
    """Finds a point between target and target + tolerance, or else two points close around the target.

    Args:
      at: function (lamb, lamb_index) that returns a `Point`. Its value falls as lamb grows. lamb_index is the
        number of one of `lambs`, whose lengths are used, or None for the best one.
      lambs: float64 [L] ascending, the lambdas of the fit.
      target: float.
      tolerance: float. If it is positive, values should be at least the target; if it is negative, at most.
      unit: str, of the value, for the message.

    Returns:
      Bracket of the points above and below the middle of the tolerance.

    Raises:
      OutOfReach: no lambda leads to a value on the allowed side of the target.
    """
    aim, (low, high) = target + tolerance / 2, sorted((target, target + tolerance))
    above, below = at(lambs[0], 0), at(lambs[-1], len(lambs) - 1)
    ends = lambs[0] / END_FACTOR**END_STEPS, lambs[-1] * END_FACTOR**END_STEPS
    if above.value < low:
        above = _extend(at, above, ends[0], lambda value: value > aim)
    if below.value > high:
        below = _extend(at, below, ends[1], lambda value: value <= aim)
    if above.value < low or below.value > high:
        end = above if above.value < low else below
        if meets(end.value, target, tolerance):
            return Bracket(end, end, is_end=True)
        # The range is that of all lambdas, also those beyond the fit's.
        above, below = _extend(at, above, ends[0]), _extend(at, below, ends[1])
        raise OutOfReach(target, unit, [above.value, below.value])

    above, below = _narrow(at, above, below, (low, aim, high), COARSE_RATIO)
    # Where the lengths of one lambda give way to those of the next, the value jumps by some percent. Values
    # within the jump are reached with the lengths of the larger lambda, at lambdas that are smaller than
    # usual for them.
    lamb_index, lamb = below.lamb_index, above.lamb
    while above.value > high and above.lamb_index != lamb_index and lamb > lambs[0] / MOST_STRETCH:
        point = at(lamb, lamb_index)
        above, below = (point, below) if point.value > aim else (above, point)
        lamb /= 2
    if above.lamb_index == lamb_index:
        above, below = _narrow(at, above, below, (low, aim, high), LEAST_RATIO, lamb_index)
    return Bracket(above, below)


def approach(costly, cheap, lambs, target, tolerance):
    """Approaches a target of a costly function in few calls.

    A cheap function differs from the costly one by nearly the same amount at all lambdas. The first call is
    at a lambda at which the cheap function meets the target; it measures that difference. The cheap function
    then tells for which lambda the costly one meets the target. The last call corrects what is left.

    Args:
      costly, cheap: functions like the first argument of `bracket`.
      lambs, target, tolerance: see `bracket`.

    Returns:
      List of at most `MOST_COSTLY` points of the costly function, and bool, whether every lambda meets the
      target.
    """

    def cheap_value(lamb, lamb_index):
        return cheap(lamb, lamb_index)._replace(result=None)  # results are large

    def is_good(point):
        return 0 <= (point.value - target) / tolerance <= 1

    aim = target + tolerance / 2
    near, is_end = _start(cheap_value, lambs, aim, FIRST_WIDTH * tolerance)
    first = costly(near.lamb, near.lamb_index)
    if is_good(first) or (is_end and meets(first.value, target, tolerance)):
        return [first], is_end
    slope = _slope(near, cheap_value(near.lamb * SLOPE_RATIO, near.lamb_index))
    if not (slope < 0 and math.isfinite(first.value - near.value)):
        return [first], False
    cheap_aim = aim - (first.value - near.value)
    near, far = cheap_value(_corrected(near, cheap_aim, slope), None), near
    slope = _better(slope, near, far)
    near, far = cheap_value(_corrected(near, cheap_aim, slope), near.lamb_index), near
    slope = _better(slope, near, far)
    second = costly(_corrected(near, cheap_aim, slope), near.lamb_index)
    if is_good(second) or not math.isfinite(second.value):
        return [first, second], False
    # The last call errs on the allowed side, by a share of what is left.
    aim += math.copysign(LAST_MARGIN * (aim - second.value), tolerance)
    return [first, second, costly(_corrected(second, aim, slope), second.lamb_index)], False


def _start(at, lambs, aim, width):
    """The point of a `bracket` around `aim` that is closest to it, or that of the fit's lambda closest to it.

    Returns:
      Point; and bool, whether every lambda leads to the allowed side, which the sign of `width` tells.
    """
    try:
        found = bracket(at, lambs, aim - width, 2 * width, "")
    except OutOfReach as error:
        lamb_index = 0 if aim > error.values[1] else len(lambs) - 1
        return at(lambs[lamb_index], lamb_index), False
    return min(found.above, found.below, key=lambda point: abs(point.value - aim)), found.is_end


def _slope(one, other):
    """The change of the value with the logarithm of lambda, between two points; 0 if they have the same."""
    if one.lamb == other.lamb:
        return 0.0
    return (other.value - one.value) / math.log(other.lamb / one.lamb)


def _better(slope, one, other):
    """The slope between two points; the one before if the new one is far flatter, as of close points."""
    found = _slope(one, other)
    return found if found < slope / 3 else slope


def _corrected(point, aim, slope):
    """The lambda at which the value is `aim`, a float, if it changes by a slope < 0 from a point on."""
    most = math.log(MOST_CHANGE)
    return point.lamb * math.exp(min(max((aim - point.value) / slope, -most), most))


def meets(value, target, tolerance):
    """Whether a value is on the allowed side of the target, which the sign of the tolerance tells."""
    return value <= target if tolerance < 0 else value >= target


def _narrow(at, above, below, goal, ratio, lamb_index=None):
    """Moves two points together until one is inside the goal, or their lambdas are as close as the ratio.

    Args:
      at, above, below: see `bracket`.
      goal: three floats: the lowest good value, the best one, the highest good one.
      ratio: float > 1.
      lamb_index: int or None, the second argument of `at`.

    Returns:
      Two points.
    """
    low, aim, high = goal
    halved = True
    while not any(low <= point.value <= high for point in (above, below)) and below.lamb > ratio * above.lamb:
        width = math.log(below.lamb / above.lamb)
        interpolate = halved and above.value < math.inf  # if interpolation was slow, bisection follows
        share = (above.value - aim) / (above.value - below.value) if interpolate else 0.5
        point = at(above.lamb * math.exp(min(max(share, 0.05), 0.95) * width), lamb_index)
        above, below = (point, below) if point.value > aim else (above, point)
        halved = math.log(below.lamb / above.lamb) <= width / 2
    return above, below


def _extend(at, point, end, reached=lambda value: False):
    """Moves a point's lambda to an end in steps, until the value is reached or stops changing.

    Returns:
      Point, the last one.
    """
    factor = END_FACTOR if end > point.lamb else 1 / END_FACTOR
    while not reached(point.value) and abs(math.log(end / point.lamb)) > 1e-9:
        further = at(point.lamb * factor, point.lamb_index)
        # Files come in few sizes: an equal one may still be followed by others.
        if further.value == point.value and at(end, point.lamb_index).value == point.value:
            break
        point = further
    return point


def _rounded(value, rounding):
    """Rounds a bound to four decimals, unless it is infinite; rounding: math.ceil or math.floor."""
    return rounding(value * 1e4) / 1e4 if math.isfinite(value) else value
