"""Finds the lambda that meets a size or a PSNR, for any function from lambda to a value."""

import math
from typing import NamedTuple

from vbq.command import UserError

LEAST_RATIO = 1 + 1e-3  # of two lambdas; a search gives up where they are as close as that
MOST_STRETCH = 2.0**10  # how far below the smallest lambda of the fit a search goes
COARSE_RATIO = math.sqrt(2)  # of two lambdas; as close as the first narrowing brings them


class Point(NamedTuple):
    """What a lambda leads to."""

    value: float  # what is searched for: bits per pixel or dB
    lamb: float
    lamb_index: int  # the lambda of the fit whose lengths were used
    result: object  # anything that the caller wants back


def bracket(at, lambs, target, tolerance, unit):
    """Finds a point whose value is between target and target + tolerance, or else two points that bracket it
    closely.

    Args:
      at: function of a lambda, and of the number of one of `lambs`, or None for the best one, that returns a
        `Point`. The value falls as lambda grows.
      lambs: float [L] ascending, the lambdas of the fit.
      target: float.
      tolerance: float; negative where the value should not exceed the target.
      unit: str, of the value, for the message.

    Returns:
      Two points: the one above, and the one below the middle of the tolerance.

    Raises:
      UserError: the lambdas do not reach the target.
    """
    aim, (low, high) = target + tolerance / 2, sorted((target, target + tolerance))

    def narrow(above, below, ratio, lamb_index=None):
        """Moves the points together until one is inside the tolerance, or the ratio of their lambdas is
        reached.
        """
        halved = True
        while (
            not any(low <= point.value <= high for point in (above, below))
            and below.lamb > ratio * above.lamb
        ):
            width = math.log(below.lamb / above.lamb)
            interpolate = halved and above.value < math.inf  # where interpolation was slow, bisection follows
            share = (above.value - aim) / (above.value - below.value) if interpolate else 0.5
            point = at(above.lamb * math.exp(min(max(share, 0.05), 0.95) * width), lamb_index)
            above, below = (point, below) if point.value > aim else (above, point)
            halved = math.log(below.lamb / above.lamb) <= width / 2
        return above, below

    above, below = at(lambs[0], 0), at(lambs[-1], len(lambs) - 1)
    if above.value < min(aim, low) or below.value > max(aim, high):
        least, most = _rounded(below.value, math.ceil), _rounded(above.value, math.floor)
        raise UserError(
            f"a target out of reach: this model takes this image from {least} to {most} {unit}, found {target:g}"
        )
    above, below = narrow(above, below, COARSE_RATIO)
    # Where the lengths of one lambda give way to those of the next, the value jumps by some percent. Values
    # within the jump are reached with the lengths of the larger lambda, at lambdas that are smaller than
    # usual for them.
    lamb_index, lamb = below.lamb_index, above.lamb
    while above.value > high and above.lamb_index != lamb_index and lamb > lambs[0] / MOST_STRETCH:
        point = at(lamb, lamb_index)
        above, below = (point, below) if point.value > aim else (above, point)
        lamb /= 2
    return narrow(above, below, LEAST_RATIO, lamb_index) if above.lamb_index == lamb_index else (above, below)


def _rounded(value, rounding):
    """Rounds a bound to four decimals, inwards, so that the printed bound can itself be reached."""
    return rounding(value * 1e4) / 1e4 if math.isfinite(value) else value
