"""BFGS: minimizes many small, independent functions at once.

Axis letters: C functions, A functions that have not converged, P parameters of a function.
"""

import numpy as np

_PATIENCE = 10  # steps between two tests of convergence


def minimize(objective, start, max_steps, tolerance):
    """Minimizes C functions by BFGS with backtracking. A function that has converged drops out.

    Args:
      objective: function of (parameters [A, P], numbers [A] of the functions) that returns the values [A] and
        the gradients [A, P].
      start: float64 array [C, P].
      max_steps: int.
      tolerance: float. A function has converged when `_PATIENCE` steps together lower it by at most this
        much.

    Returns:
      float64 array [C, P].
    """
    result = start.copy()
    active, x = np.arange(len(start)), start.copy()
    loss, gradient = objective(x, active)
    inverse = np.eye(x.shape[1]) / np.maximum(1, np.linalg.norm(gradient, axis=1))[:, None, None]  # (A, P, P)
    reference = loss
    for step in range(1, max_steps + 1):
        direction = -np.einsum("cij,cj->ci", inverse, gradient)
        new_x, new_loss, new_gradient = _backtrack(objective, active, x, loss, gradient, direction)
        _update_inverse(inverse, new_x - x, new_gradient - gradient)
        x, loss, gradient = new_x, new_loss, new_gradient
        result[active] = x
        if step % _PATIENCE == 0:
            going = reference - loss > tolerance
            if not going.any():
                break
            active, x, loss, gradient, inverse = (a[going] for a in (active, x, loss, gradient, inverse))
            reference = loss
    return result


def _backtrack(objective, active, x, loss, gradient, direction):
    """Takes the first of the steps 1, 1/3, 1/9, ... that lowers a function enough, or none if all 15 fail."""
    x, loss, gradient = x.copy(), loss.copy(), gradient.copy()
    start, base = x.copy(), loss.copy()
    descent = np.sum(direction * gradient, axis=1)
    pending, length = np.arange(len(x)), 1.0
    for _ in range(15):
        trial = start[pending] + length * direction[pending]
        with np.errstate(all="ignore"):  # a step that leaves the range of floats is rejected below
            trial_loss, trial_gradient = objective(trial, active[pending])
        good = trial_loss <= base[pending] + 1e-4 * length * descent[pending]
        good &= np.isfinite(trial_gradient).all(axis=1)
        done = pending[good]
        x[done], loss[done], gradient[done] = trial[good], trial_loss[good], trial_gradient[good]
        pending = pending[~good]
        if not len(pending):
            break
        length /= 3
    return x, loss, gradient


def _update_inverse(inverse, s, y):
    """Updates the inverse Hessians [A, P, P] in place, from steps s and gradient changes y, both [A, P]."""
    sy = np.sum(s * y, axis=1)
    good = sy > 1e-12 * np.linalg.norm(s, axis=1) * np.linalg.norm(y, axis=1)
    good &= sy > 0
    h, s, y, sy = inverse[good], s[good], y[good], sy[good, None, None]
    hy = np.einsum("cij,cj->ci", h, y)
    yhy = np.sum(y * hy, axis=1)[:, None, None]
    outer = hy[:, :, None] * s[:, None, :]
    outer_sum = outer + outer.transpose(0, 2, 1)
    inverse[good] = h + (1 + yhy / sy) / sy * s[:, :, None] * s[:, None, :] - outer_sum / sy
