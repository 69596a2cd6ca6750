"""What a policy is worth in a game of turns against all that the others can do: by walking the whole tree of the game.

In its own turns the policy takes its best action, in those of others every allowed one is tried. A game goes the same way
whenever the same moves are made, or it is refused; it is played again from the start for every line of moves, which any env can do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from distrl.acting.team import TeamPolicy
from distrl.envs.make import closed_after, make_env
from distrl.envs.multi import Team
from distrl.errors import UserError
from distrl.layouts import MASK, split_mask
from distrl.models.evaluate import load_to_play
from distrl.types import Array, Policy

MOST = 20_000  # lines of moves, of each seat
SEEDS = range(4)  # by which every line is played: where it does not come out the same, the game has chance


@dataclass(frozen=True)
class Seat:
    """A policy as one of the agents, over all lines that the others may choose."""

    agent: str
    lines: int
    win: float  # shares of the games against who plays at random: each allowed move is as likely
    draw: float
    loss: float
    losing: int  # lines that are lost, whoever plays them

    @property
    def never_loses(self) -> bool:
        return self.losing == 0


def examine_game(path: Path, modules: list[str]) -> list[Seat]:
    """Each seat of the game that a model was trained on.

    Raises:
        UserError: it is no game of turns with Discrete actions, one with chance, or one with more lines than can be walked
    """
    policy, env, _ = load_to_play(path, modules)
    game = make_env(env)
    with closed_after(game, env.id):
        if not isinstance(game, Team) or not game.turns:
            raise UserError(
                f"{env.id} is no game of turns, which alone has a tree that can be walked. Leave out --exact."
            )
        if not all(isinstance(space, gym.spaces.Discrete) for _, space in game.spaces.values()):
            raise UserError(f"Actions of {env.id} are not Discrete, so that not all can be tried. Leave out --exact.")
        return [_seat(policy, game, agent, env.id) for agent in game.agents]


def _seat(policy: Policy, game: Team, agent: str, env_id: str) -> Seat:
    shares, lines, losing = np.zeros(3), 0, 0
    for line, *others in zip_longest(*(_lines(policy, game, agent, env_id, seed) for seed in SEEDS)):
        if any(other != line for other in others):
            raise UserError(
                f"{env_id} has chance in it, such as cards that are dealt: the same moves do not lead to the same game, so that its tree "
                "says nothing about what may happen. Leave out --exact, and play many episodes: --episodes 10000 --against random."
            )
        chance, outcome, _ = line
        lines += 1
        shares[1 - int(np.sign(outcome))] += chance
        losing += outcome < 0
    win, draw, loss = shares.tolist()
    return Seat(agent, lines, win, draw, loss, losing)


def _lines(policy: Policy, game: Team, agent: str, env_id: str, seed: int) -> Iterator[tuple[float, float, int]]:
    """Of every line of moves how likely it is against random play, what the agent earns in it, and a hash of all that was seen."""
    first: tuple[tuple[int, ...], float] = (), 1.0  # moves of the others, in order, and their chance
    waiting = deque([first])
    for played in count():
        if played + len(waiting) > MOST:
            raise UserError(
                f"{env_id} has more than {MOST:,} lines of moves; its tree is not walked. Leave out --exact."
            )
        if not waiting:
            return
        chosen, chance = waiting.popleft()  # the shortest first, so that a tree that is too large shows soon
        left, total, seen = iter(chosen), 0.0, 0
        game.begin(seed)
        while not game.over:
            mover = game.agents[int(np.flatnonzero(game.acts)[0])]
            seen = hash((seen, mover, _packed(policy, game, mover).tobytes()))
            if mover == agent:
                move = _best(policy, game, mover)
            else:
                allowed = allowed_moves(game, mover)
                found = next(left, None)
                if found is None:
                    waiting += [((*chosen, other), chance / len(allowed)) for other in allowed[1:]]
                    found, chance = allowed[0], chance / len(allowed)
                    chosen = (*chosen, found)
                move = found
            game.advance([move] * len(game.agents))
            total += float(game.reward[game.place[agent]])
        yield chance, total, seen


def _best(policy: Policy, game: Team, agent: str) -> int:
    own = _own(policy, agent)
    return int(own.action_layout.unpack(own.greedy(_packed(policy, game, agent)[None])[0]))


def _packed(policy: Policy, game: Team, agent: str) -> Array:
    """What an agent is told, as its policy takes it."""
    layout = _own(policy, agent).obs_layout
    return layout.pack(layout.seen_by(agent, game.seen[agent]), game.infos.get(agent, {}).get(MASK))


def _own(policy: Policy, agent: str) -> Policy:
    return policy.of(agent) if isinstance(policy, TeamPolicy) else policy


def allowed_moves(game: Team, agent: str) -> list[int]:
    """What the agent may do now, by the numbers of Discrete actions."""
    space: Any = game.spaces[agent][1]
    mask = game.infos.get(agent, {}).get(MASK, split_mask(game.seen[agent]).get(MASK, np.ones(space.n)))
    allowed: list[int] = (np.flatnonzero(mask) + space.start).tolist()
    return allowed
