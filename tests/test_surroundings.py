"""The order of coding, and what is known of a latent's surroundings, against plain loops."""

import numpy as np
import pytest

from vbq.surroundings import (
    Surroundings,
    features_of,
    group_bounds,
    map_shapes,
    weight_count,
)

CROSS = (-1, 0), (1, 0), (0, -1), (0, 1)
DIAGONAL = (-1, -1), (1, 1), (1, -1), (-1, 1)


@pytest.mark.parametrize("channels", [1, 2, 3, 64, 100, 192, 256])
def test_groups_double_and_cover_all_channels(channels):
    bounds = group_bounds(channels)
    assert bounds[0] == 0 and bounds[-1] == channels
    assert all(a < b <= max(2 * a, 1) for a, b in zip(bounds, bounds[1:]))
    sizes = [(6 * a + b - a) * (b - a) for a, b in zip(bounds, bounds[1:])]
    assert weight_count(channels) == sum(sizes)


def test_features_are_eighths_of_a_bit_up_to_a_limit():
    lengths = np.array([0, 31, 32, 256, 255 * 32, 255 * 32 + 31, 256 * 32, 10**6], np.int32)
    features = features_of(lengths)
    assert features.dtype == np.uint8 and features.tolist() == [0, 0, 1, 8, 255, 255, 255, 255]


def mirrored(i, side):
    if side == 1:
        return 0
    return -i if i < 0 else 2 * (side - 1) - i if i >= side else i


def around(features, position, channel, places):
    """The sum of a channel's features, [N, h, w, C], at places around a position (n, i, j)."""
    n, i, j = position
    rows, columns = features.shape[1:3]
    return sum(
        int(features[n, mirrored(i + di, rows), mirrored(j + dj, columns), channel]) for di, dj in places
    )


@pytest.mark.parametrize("shape", [(2, 4, 5), (3, 1, 6), (1, 5, 1), (2, 1, 1)])
def test_what_is_known_is_that_of_plain_loops(shape):
    channels = 5
    features = np.random.default_rng(0).integers(0, 256, (*shape, channels)).astype(np.uint8)
    flat = features.reshape(-1, channels)
    surroundings, bounds = Surroundings(shape, channels), group_bounds(channels)
    assert surroundings.groups == len(bounds) - 1
    assert sorted(np.concatenate(surroundings.phases).tolist()) == list(range(len(flat)))
    widths = []
    for group in range(surroundings.groups):
        here = surroundings.open_group(group)
        assert (here.start, here.stop) == (bounds[group], bounds[group + 1])
        for phase, positions in enumerate(surroundings.phases):
            for most in (None, 1, 3):
                pieces = list(surroundings.known(phase, np.float32, most))
                known = np.concatenate([piece for _, piece in pieces], axis=1)
                assert [at for some, _ in pieces for at in range(len(positions))[some]] == [
                    *range(len(positions))
                ]
                assert known.dtype == np.float32 and all(
                    piece.shape[1] <= (most or 99) for _, piece in pieces
                )
            widths.append((group, phase, len(known), here.stop - here.start))
            for row, place in zip(known.T, positions):
                at = np.unravel_index(place, shape)
                assert (at[1] + at[2]) % 2 == phase
                expected = [
                    around(features, at, c, places)
                    for places in (((0, 0),), CROSS, DIAGONAL)
                    for c in range(here.start)
                ]
                # The own group's latents of the first phase are the direct neighbours of the second, except
                # that a side of one latent is its own neighbour, which is still unknown.
                own = np.zeros_like(features)
                first = (np.add.outer(np.arange(shape[1]), np.arange(shape[2])) % 2 == 0)[None, :, :, None]
                own[..., here] = features[..., here] * first
                expected += [around(own, at, c, CROSS) for c in range(here.start, here.stop) if phase]
                assert row.tolist() == expected
            surroundings.put(phase, flat[positions, here].T)
        surroundings.close_group()
    assert widths == map_shapes(channels)
