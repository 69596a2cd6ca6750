"""`distrl.envs.boards` against PettingZoo's own games; and the opponent of connect four in positions made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toys import same

from distrl.envs.boards import BoardShard
from distrl.envs.connect_four import ConnectFourShard, look_ahead
from distrl.envs.journal import Underway
from distrl.envs.shard import make_shard
from distrl.envs.team import TeamShard
from distrl.envs.tictactoe import TicTacToeShard
from distrl.settings import EnvSettings
from distrl.types import Array, Snapshot, Step

GAMES = [TicTacToeShard, ConnectFourShard]


def settings(game: type[BoardShard], **changes: Any) -> EnvSettings:
    return EnvSettings(**{"id": game.ID, **changes})


def moves(shard: BoardShard, rng: np.random.Generator, avoid: bool) -> Array:
    """[2 N] of who is to move anything that is allowed, with `avoid` nothing that wins; of the others a number that nobody reads."""
    action = rng.integers(0, 7, 2 * shard.copies)
    for copy, player in enumerate(shard.turn):
        new = shard.places(shard.stones[copy].sum())
        allowed = np.flatnonzero(new)
        harmless = allowed[~shard.won(shard.stones[copy, player] | new[allowed])]
        action[2 * copy + player] = rng.choice(harmless if avoid and len(harmless) else allowed)
    return action


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("avoid", [False, True])
def test_thousands_of_random_moves_are_those_of_pettingzoo(avoid: bool, game: type[BoardShard]) -> None:
    ours, theirs = make_shard(settings(game), 3, 1, 4), make_shard(settings(game, vectorize="single"), 3, 1, 4)
    assert isinstance(ours, game) and isinstance(theirs, TeamShard)
    rng, outcomes = np.random.default_rng(5), []
    assert same(ours.obs, theirs.obs)
    for _ in range(700):
        action = moves(ours, rng, avoid)
        one, other = ours.step(action), theirs.step(action)
        for name in ("obs", "reward", "terminated", "truncated"):
            assert same(getattr(one, name), getattr(other, name)), name
        assert same(np.asarray(one.final_obs), np.array(other.final_obs, ours.obs.dtype).reshape(-1, ours.obs.shape[1]))
        assert same(ours.active, theirs.active) and same(ours.episode, theirs.episode)
        outcomes += one.reward.reshape(4, 2)[one.terminated[::2], 0].tolist()
    assert {1, -1, 0} <= set(outcomes) if avoid else min(outcomes.count(1), outcomes.count(-1)) > 30


@pytest.mark.parametrize("game", GAMES)
def test_a_shard_goes_on_from_its_snapshot(game: type[BoardShard]) -> None:
    first, other = (make_shard(settings(game), 3, 0, 5) for _ in range(2))
    rng = np.random.default_rng(0)
    assert isinstance(first, game) and not first.replays
    underway = Underway(5, 2)
    for _ in range(55):
        underway.count(first.step(moves(first, rng, False)))
    snapshot = Snapshot(1, underway.returns, underway.lengths, first.arrays())
    steps: list[tuple[Array, Step]] = []
    for _ in range(60):
        action = moves(first, rng, False)
        steps.append((action, first.step(action)))
    assert other.restore(snapshot).all()
    for action, wanted in steps:
        step = other.step(action)
        assert same(step.reward, wanted.reward) and same(step.terminated, wanted.terminated)
    assert same(other.obs, first.obs) and same(other.active, first.active) and max(first.episode) > 1


@pytest.mark.parametrize(
    "changes", [{"vectorize": "single"}, {"kwargs": {"screen_scaling": 5}}, {"max_episode_steps": 9}]
)
def test_what_arrays_do_not_know_is_left_to_pettingzoo(changes: dict[str, Any]) -> None:
    assert isinstance(make_shard(settings(ConnectFourShard, **changes), 0, 0, 1), TeamShard)


def test_no_stone_goes_into_a_full_column() -> None:
    shard = make_shard(settings(ConnectFourShard), 0, 0, 1)
    for _ in range(6):
        shard.step(np.array([2, 2]))
    with pytest.raises(ValueError, match="the move 2 was made"):
        shard.step(np.array([2, 2]))


POSITIONS = {  # the lowest rows of a board; o is to move, and where it must
    "a win upwards": ("o......|o.x....|o.xx...", 0),
    "a win to the right": ("x......|ooo.xx.", 3),
    "a win in the gap": ("oo.oxx.", 2),
    "a win along a diagonal": ("..ox...|.oxo...|oxxo...", 3),
    "a win along the other one": ("xo.....|oxo....|xoxo...", 0),
    "a win, though the other has one as well": ("x.....o|x.....o|x.....o", 6),
    "a block upwards": ("x......|x......|xoo....", 0),
    "a block in the gap": ("xx.xo.o", 2),
    "a block at the edge": ("oxxx...", 4),
    "a block along a diagonal": ("..xo...|.xoo...|xoxx...", 3),
}


def board(rows: str) -> tuple[Array, Array]:
    """The observation and the mask of o."""
    lowest = rows.split("|")
    squares = np.array([*map(list, ["......."] * (6 - len(lowest)) + lowest)])
    return np.stack([squares == "o", squares == "x"], axis=2).astype(np.int8), (squares[0] == ".").astype(np.int8)


@pytest.mark.parametrize(("rows", "column"), POSITIONS.values(), ids=POSITIONS.keys())
def test_the_opponent_takes_a_win_and_blocks_a_loss(rows: str, column: int) -> None:
    for seed in range(20):
        assert look_ahead(*board(rows), np.random.default_rng(seed)) == column


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ("...x...", range(7)),
        ("xx.....|oo.....", range(7)),  # three of them would be no four
        ("xx.....|oxoo.x.", range(7)),
        ("xxx....|oox....", range(7)),  # what would complete it has nothing to lie on yet
        ("x......|o......|x......|o......|x......|o......", range(1, 7)),  # the first column is full
    ],
)
def test_else_it_does_anything_that_is_allowed(rows: str, columns: range) -> None:
    found = [look_ahead(*board(rows), np.random.default_rng(seed)) for seed in range(120)]
    assert set(found) == set(columns) and max(map(found.count, columns)) < 60
