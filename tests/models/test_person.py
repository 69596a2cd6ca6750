"""A person in a seat of a game, against policies whose moves are known, and the game's own loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from distrl.envs.multi import Team, make_team
from distrl.errors import UserError
from distrl.layouts import OBSERVATION
from distrl.models.game_tree import allowed_moves
from distrl.models.person import board, sit
from distrl.settings import EnvSettings

TICTACTOE = EnvSettings(id="classic/tictactoe_v3")


def first_free(episode: int) -> Any:
    """Everybody takes the first allowed action."""

    def act(obs: Mapping[str, Any], info: Mapping[str, Any]) -> list[int]:
        [mover] = info["acts"]
        return [int(np.flatnonzero(obs[mover]["action_mask"])[0])] * 2

    return act


def played(env: EnvSettings, seat: str, answers: list[str], episodes: int = 1) -> tuple[list[str], list[str]]:
    """What was said and what was asked."""
    said: list[str] = []
    asked: list[str] = []
    left = iter(answers)

    def ask(question: str) -> str:
        asked.append(question)
        answer = next(left, None)
        if answer is None:
            raise EOFError
        return answer

    sit(first_free, env, seat, seed=1, episodes=episodes, ask=ask, say=said.append)
    return said, asked


def test_a_game_is_played_from_either_seat() -> None:
    said, asked = played(TICTACTOE, "player_1", ["4", "4", "no", "-1", "2", "6"])
    assert said[0] == "Game 1: you are player_1." and said[1].split() == list("012345678")
    assert said[2] == "player_2: 0"
    assert [text for text in said if "not allowed" in text] == [
        f"'{answer}' is not allowed now." for answer in ("4", "no", "-1")
    ]
    assert asked[1] == "Your move (1, 2, 3, 5, 6, 7, 8; q: leave): "
    assert said[-2].split() == ["O", "O", "X", ".", "X", ".", "X", ".", "."]
    assert said[-1] == "Over: player_1 1, player_2 -1"
    said, _ = played(TICTACTOE, "player_2", ["8", "q", "7"], episodes=3)
    assert said[1] == "player_1: 0" and said[-1] == "" and not any("Over" in text for text in said)
    said, _ = played(TICTACTOE, "player_2", ["8", "7"], episodes=2)  # no more answers come in the second game
    assert "Over: player_1 1, player_2 -1" in said and "Game 2: you are player_2." in said


@pytest.mark.parametrize("env", ["classic/tictactoe_v3", "classic/connect_four_v3"])
def test_squares_and_columns_have_the_numbers_of_their_moves(env: str) -> None:
    game = make_team(EnvSettings(id=env))
    moves = int(game.spaces[game.agents[0]][1].n)
    game.begin(1)
    rng, placed = np.random.default_rng(1), 0
    for _ in range(6):
        mover = next(name for name, acts in zip(game.agents, game.acts, strict=True) if acts)
        move = int(rng.choice(allowed_moves(game, mover)))
        before = str(board(seen(game, mover), moves)).split()
        game.advance([move] * 2)
        if not game.over:
            other = next(name for name in game.agents if name != mover)
            after = str(board(seen(game, other), moves)).split()
            [changed] = [
                i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b and b == "O" and a != "X"
            ]
            placed += 1
            if moves == 7:
                assert changed % 7 == move and before[-7:] == list("0123456")
            else:
                assert changed == move and before[changed] == str(move)
    assert placed >= 4


def seen(game: Team, name: str) -> Any:
    return game.seen[name][OBSERVATION]


def test_cards_have_names_and_hands_are_shown_at_the_end() -> None:
    pytest.importorskip("rlcard")
    said, asked = played(EnvSettings(id="classic/leduc_holdem_v4"), "player_1", ["2", "3", "3", "2"])
    assert "2 fold" in asked[0] and any(text.startswith("hand ") and "public card none" in text for text in said)
    assert not any("player_0: hand" in text for text in said[:-3]) and said[-2].startswith("player_0: hand ")
    assert said[-1].startswith("Over: player_0 ")


@pytest.mark.parametrize(
    ("env", "seat", "message"),
    [
        ("classic/tictactoe_v3", "player1", "--seat is 'player1'.*Did you mean 'player_1'"),
        ("mpe2/simple_spread_v3", "agent_0", "--seat is of games of turns"),
        ("CartPole-v1", "agent_0", "--seat is of games of turns"),
    ],
)
def test_where_nobody_can_sit(env: str, seat: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        played(EnvSettings(id=env), seat, [])
