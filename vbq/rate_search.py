"""Finds the lambda that meets a size or a PSNR, for any function from lambda to a value."""

import math
from typing import NamedTuple

from vbq.command import UserError

LEAST_RATIO = 1 + 1e-3  # of two lambdas; a search ends when they are this close
MOST_STRETCH = 2.0**10  # factor by which a search inside a jump goes below the smallest lambda of the fit
# If the fit's lambdas do not reach the target, the search goes beyond them: this factor, this many times.
END_FACTOR, END_STEPS = 4.0, 12
COARSE_RATIO = math.sqrt(2)  # of two lambdas; the first narrowing ends when they are this close


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
      UserError: no lambda leads to a value on the allowed side of the target.
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
        if (end.value <= target) if tolerance < 0 else (end.value >= target):
            return Bracket(end, end, is_end=True)
        raise UserError(_out_of_reach(at, above, below, ends, target, unit))

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
        if further.value == point.value:
            break
        point = further
    return point


def _out_of_reach(at, above, below, ends, target, unit):
    """The message for a target that no lambda reaches. It states the range, also beyond the fit's lambdas."""
    values = [_extend(at, point, end).value for point, end in zip((above, below), ends)]
    least, most = _rounded(min(values), math.ceil), _rounded(max(values), math.floor)
    return f"{target:g} {unit} cannot be reached: this model takes this image from {least} to {most} {unit}"


def _rounded(value, rounding):
    """Rounds a bound to four decimals, inwards, so that the printed bound can itself be reached."""
    return rounding(value * 1e4) / 1e4 if math.isfinite(value) else value
