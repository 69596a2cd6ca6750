"""A person in one seat of a game of turns, in the terminal; a policy sits in the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from distrl.envs.make import closed_after, make_env
from distrl.envs.multi import Team
from distrl.errors import UserError, did_you_mean, shown
from distrl.layouts import OBSERVATION, split_mask
from distrl.models.game_tree import allowed_moves
from distrl.models.play import Actor, play_episodes
from distrl.settings import EnvSettings
from distrl.types import Array

MANY = 40  # allowed moves that are listed; of more their count is told


class Left(Exception):
    """The person has had enough."""


def sit(
    actor: Actor,
    env: EnvSettings,
    seat: str,
    seed: int,
    episodes: int,
    ask: Callable[[str], str] = input,
    say: Callable[[str], object] = print,
) -> None:
    """Play games against whoever `actor` acts by.

    Args:
        seat: the agent that the person plays
        ask: is given a question, and answers with a line; raises EOFError where no more come
    Raises:
        UserError: it is no game of turns with Discrete actions, or has no such seat
    """
    drawn = make_env(env)
    text = "ansi" in drawn.metadata.get("render_modes", ())
    drawn.close()
    game = make_env(env, "ansi") if text else drawn
    with closed_after(game, env.id):
        if not isinstance(game, Team) or not game.turns:
            raise UserError(f"--seat is of games of turns, and {env.id} is none. Leave it out to watch.")
        if seat not in game.place:
            near = did_you_mean(seat, game.agents)
            raise UserError(f"--seat is {shown(seat)}; it must be one of {', '.join(game.agents)}.{near}")
        if not isinstance(game.spaces[seat][1], gym.spaces.Discrete):
            raise UserError(f"Actions of {env.id} are not Discrete, so that none can be typed as a number.")
        table = _Table(game, seat, ask, say)
        try:
            for moment in play_episodes(table.seated(actor), game, seed, episodes):
                if moment.step == 0:
                    say(f"Game {moment.episode + 1}: you are {seat}.")
                    earned = dict.fromkeys(game.agents, 0.0)
                elif (mover := next(iter(moment.action))) != seat:
                    say(f"{mover}: {table.named(moment.action[mover])}")
                for name, reward in moment.rewards.items():
                    earned[name] += reward
                if moment.ended:
                    table.show(final=True)
                    say("Over: " + ", ".join(f"{name} {total:g}" for name, total in earned.items()))
        except (Left, EOFError):
            say("")


class _Table:
    """What the person sees and says."""

    def __init__(self, game: Team, seat: str, ask: Callable[[str], str], say: Callable[[str], object]) -> None:
        self.game, self.seat, self.ask, self.say = game, seat, ask, say

    def seated(self, actor: Actor) -> Actor:
        """An actor in whose place the person acts when it is the seat's turn."""

        def begin(episode: int) -> Callable[[Any, Mapping[str, Any]], Any]:
            act = actor(episode)

            def move(obs: Any, info: Mapping[str, Any]) -> Any:
                actions = act(obs, info)
                if info["acts"] == [self.seat]:
                    self.show()
                    actions[self.game.place[self.seat]] = self.choose()
                return actions

            return move

        return begin

    def choose(self) -> int:
        """Ask until there is a move that is allowed."""
        allowed = allowed_moves(self.game, self.seat)
        told = ", ".join(map(self.named, allowed)) if len(allowed) <= MANY else f"{len(allowed)} numbers"
        while True:
            answer = self.ask(f"Your move ({told}; q: leave): ").strip()
            if answer in ("q", "quit", "exit"):
                raise Left
            if answer.isdecimal() and int(answer) in allowed:
                return int(answer)
            self.say(f"{shown(answer)} is not allowed now.")

    def named(self, move: Any) -> str:
        """A move, with its name where the game tells one."""
        names = [str(getattr(name, "name", name)).lower() for name in getattr(self._cards, "actions", ())]
        return f"{move} {names[int(move)]}" if names else str(move)

    def show(self, final: bool = False) -> None:
        """What the person sees: a picture in text, cards, a board, or numbers."""
        if self.game.render_mode == "ansi":
            self.say(str(self.game.render()))
        elif (position := getattr(self.game.game.unwrapped, "_go", None)) is not None:
            self.say(str(position))
        elif self._cards is not None:
            hands = {name: self._cards.get_state(place)["raw_obs"] for name, place in self.game.place.items()}
            raw = hands.pop(self.seat)
            known = {name: value for name, value in raw.items() if "legal" not in name and "current" not in name}
            self.say(", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in known.items()))
            for name, other in hands.items() if final else ():
                self.say(f"{name}: hand {_plain(other['hand'])}")
        elif (seen := self.game.seen.get(self.seat)) is not None:
            observation = np.asarray(split_mask(seen)[OBSERVATION])
            moves = int(self.game.spaces[self.seat][1].n)
            self.say(board(observation, 0 if final else moves) or str(observation))

    @property
    def _cards(self) -> Any:
        """The game of RLCard below, where it is one."""
        below = getattr(self.game.game.unwrapped, "env", None)
        return below if hasattr(below, "get_state") else None


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value)) or "none"
    return "none" if value is None else str(getattr(value, "name", value))


def board(observation: Array, moves: int) -> str | None:
    """A board [R, C, 2] of own stones and the other's, as people read it, X being who sees it; free squares hold the number of their move. None: it is no board.

    Args:
        moves: how many there are: one for every square, or for every column
    """
    if observation.ndim != 3 or observation.shape[2] != 2:
        return None
    rows, columns, _ = observation.shape
    numbers = np.arange(rows * columns).reshape(rows, columns).astype(str)
    free = numbers if moves >= rows * columns else np.full((rows, columns), ".")
    cells = np.where(observation[..., 0] > 0, "X", np.where(observation[..., 1] > 0, "O", free))
    lines = [*cells.tolist(), *([numbers[0].tolist()] if moves == columns else [])]
    width = max(len(cell) for line in lines for cell in line) + 1
    return "\n".join("".join(cell.rjust(width) for cell in line) for line in lines)
