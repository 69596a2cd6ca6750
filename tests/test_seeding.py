"""Random streams: a function of their name alone."""

from __future__ import annotations

import itertools
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest

from distrl.seeding import derive, stream

NAMES: list[tuple[Any, ...]] = [
    (1, "action", 3, 7),
    (1, "action", 7, 3),
    (1, "action", 37),
    (1, "action", 3),
    (1, "action"),
    (1, "episode", 3, 7),
    (2, "action", 3, 7),
    (2**63 - 1, "action", 3, 7),
    (0, "action", 3, 7),
    (1, "action", 3, 7, 0),
    (1, "", 3, 7),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_name_gives_the_same_numbers_whatever_was_drawn_before(name: tuple[Any, ...]) -> None:
    first = stream(*name).random(5)
    seed = derive(*name)
    np.random.default_rng().random(3)
    stream(5, "noise").random(100)
    np.random.seed(0)  # noqa: NPY002
    assert stream(*name).random(5).tolist() == first.tolist()
    assert derive(*name) == seed


def test_different_names_give_different_numbers() -> None:
    assert len({float(stream(*name).random()) for name in NAMES}) == len(NAMES)
    assert len({derive(*name) for name in NAMES}) == len(NAMES)


def test_drawing_from_one_stream_leaves_the_others_alone() -> None:
    left, right = stream(1, "action", 0), stream(1, "action", 1)
    alone = stream(1, "action", 1).random(4)
    left.random(100)
    assert right.random(4).tolist() == alone.tolist()


def test_the_global_generator_is_left_alone() -> None:
    np.random.seed(3)  # noqa: NPY002
    before = np.random.random(3).tolist()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    stream(1, "action").random(10)
    derive(1, "action")
    assert np.random.random(3).tolist() == before  # noqa: NPY002


def test_other_processes_get_the_same_numbers() -> None:
    code = "from distrl.seeding import *; print(derive(7, 'episode', 2, 5), stream(7, 'episode', 2, 5).integers(2**40))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(derive(7, "episode", 2, 5)), str(stream(7, "episode", 2, 5).integers(2**40))]


def test_numbers_stay_what_they_were_in_earlier_versions() -> None:
    """Else a run of an older checkpoint would go on with other randomness, and nobody would notice."""
    assert [derive(1, "episode", 0, 0), derive(1, "episode", 5, 3), derive(2**62, "init")] == [
        181438768,
        1755235715,
        66528547,
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**40 + 3, 2**63 - 1])
@pytest.mark.parametrize("counters", [(), (0,), (3, 7), (2**32 - 1, 0), (1, 2**32), (2**50, 5, 6)])
def test_they_are_numpys_own_streams_of_seed_and_spawn_key(seed: int, counters: tuple[int, ...]) -> None:
    plain = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(b"x"), *counters))
    assert derive(seed, "x", *counters) == int(plain.generate_state(1)[0]) >> 1
    assert stream(seed, "x", *counters).random(3).tolist() == np.random.default_rng(plain).random(3).tolist()


def test_derived_seeds_fit_libraries_and_rarely_meet() -> None:
    seeds = [derive(1, "episode", copy, episode) for copy, episode in itertools.product(range(64), range(50))]
    assert all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) >= len(seeds) - 2  # 0.002 pairs are expected
    assert max(seeds) > 2**30  # all 31 bits are used


def test_first_numbers_of_neighbouring_streams_are_independent() -> None:
    draws = np.array([stream(1, "action", shard, k).random(2) for shard in range(10) for k in range(200)])
    counts = np.histogram2d(draws[:-1, 0], draws[1:, 0], bins=4, range=[[0, 1], [0, 1]])[0]
    expected = (len(draws) - 1) / 16
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 37.7  # 15 degrees of freedom: the 0.999 quantile
