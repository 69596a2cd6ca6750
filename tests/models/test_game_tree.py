"""Games of turns walked whole: against tic-tac-toe played on a list of nine cells, which knows nothing of PettingZoo."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distrl.envs.make import describe_env
from distrl.errors import UserError
from distrl.models import game_tree
from distrl.models.game_tree import examine_game
from distrl.settings import EnvSettings
from distrl.types import Array

TICTACTOE = EnvSettings(id="classic/tictactoe_v3")
ROWS = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]
Board = tuple[int, ...]  # 1: of who is to move, -1: of the other, 0: free


def lost(board: Board) -> bool:
    return any(board[a] == board[b] == board[c] == -1 for a, b, c in ROWS)


def after(board: Board, move: int) -> Board:
    return tuple(-1 if cell == move else -held for cell, held in enumerate(board))


def free(board: Board) -> list[int]:
    return [cell for cell in range(9) if not board[cell]]


@cache
def value(board: Board) -> int:
    """Of who is to move, by perfect play of both."""
    if lost(board):
        return -1
    return max((-value(after(board, move)) for move in free(board)), default=0)


def perfect(board: Board) -> int:
    return max(free(board), key=lambda move: -value(after(board, move)))


def first(board: Board) -> int:
    return free(board)[0]


class Played:
    """A policy that looks at the board, as far as `examine_game` asks one."""

    def __init__(self, move: Any) -> None:
        info = describe_env(TICTACTOE)
        self.move, self.obs_layout, self.action_layout = move, info.obs_layout, info.action_layout

    def greedy(self, obs: Array) -> Array:
        planes = next(part for part in self.obs_layout.parts if part.name == "observation").of(obs)[0]
        return np.array([self.move(tuple((planes[..., 0].astype(int) - planes[..., 1]).ravel().tolist()))])


def slow(move: Any, mine: bool, board: Board = (0,) * 9) -> tuple[int, Array]:
    """Lines of the others' moves, and shares of won, drawn and lost games, of who is to move first or second."""
    if lost(board):
        return 1, np.array([0.0, 0.0, 1.0] if mine else [1.0, 0.0, 0.0])
    if not free(board):
        return 1, np.array([0.0, 1.0, 0.0])
    moves = [move(board)] if mine else free(board)
    below = [slow(move, not mine, after(board, chosen)) for chosen in moves]
    return sum(lines for lines, _ in below), sum((share for _, share in below), np.zeros(3)) / len(moves)


@pytest.mark.parametrize(("move", "never"), [(perfect, True), (first, False)], ids=["perfect", "first"])
def test_the_whole_tree_of_tictactoe(move: Any, never: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(game_tree, "load_to_play", lambda path, modules: (Played(move), TICTACTOE, {}))
    seats = examine_game(Path(), [])
    assert [seat.agent for seat in seats] == ["player_1", "player_2"]
    for seat, mine in zip(seats, (True, False), strict=True):
        lines, shares = slow(move, mine)
        assert seat.lines == lines and [seat.win, seat.draw, seat.loss] == pytest.approx(shares.tolist())
        assert seat.never_loses == never == (shares[2] == 0)


class First(Played):
    """Takes the first allowed move."""

    def __init__(self, env: EnvSettings) -> None:
        super().__init__(first)
        self.obs_layout = describe_env(env).obs_layout

    def greedy(self, obs: Array) -> Array:
        mask = self.obs_layout.mask_of(obs)
        assert mask is not None
        return np.flatnonzero(mask[0])[:1]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("mpe2/simple_spread_v3", "no game of turns"),
        ("classic/connect_four_v3", "more than 50 lines"),
        ("teams:Nim", "has chance in it"),  # how large its heap is
    ],
)
def test_what_has_no_tree_is_one_message(env: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EnvSettings(id=env)
    monkeypatch.setattr(game_tree, "MOST", 50)
    monkeypatch.setattr(game_tree, "load_to_play", lambda path, modules: (First(settings), settings, {}))
    with pytest.raises(UserError, match=message):
        examine_game(Path(), [])
