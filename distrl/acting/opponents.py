"""Playing against others: the trained policy sits in some seats of a game, and in the rest somebody who is not trained.

Opponents are numbered: 0 the trained policy itself, then those who never change (random play, a function, the policy of a run),
then the places of the league, its past versions. Their weights, and how often each is played against, lie behind the trained
policy's own in the vector of a version: so who plays is known by the version, and travels and is kept with it.

Who sits where is drawn anew for every episode of an env copy from the seed and the episode's number (`drawn`), or follows a
table, in which each opponent is met from each seat in turn (`arranged`). Until the episode is over it is what `Acting` remembers.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, Self, cast

import numpy as np

from distrl.acting.distributions import Distribution
from distrl.acting.episodes import Acting
from distrl.errors import UserError, shown, users_code
from distrl.layouts import OBSERVATION, Layout, widened
from distrl.seeding import stream
from distrl.types import Array, Arrays, Policy

OUTCOMES = ("win", "draw", "loss")
OPPONENT = "opponent"  # of a fragment's extras: who acts in each row
GIVEN = " Give a function that takes an observation, and if it wants to the mask of actions and a generator, and returns an action."


class Games(Protocol):
    """A shard of env copies with several agents each."""

    seed: int
    shard: int
    copies: int
    episode: Array  # [N]
    active: Array | None


Seats = Callable[[Games, int], Array]  # who sits in the seats [A] of an env copy in its episode of now


@dataclass(frozen=True)
class Pairing:
    """A game of an evaluation."""

    name: str  # of the opponent
    number: int  # of the opponent
    seat: str  # of the trained policy


class RandomPolicy:
    """Every allowed action is as likely; of Box actions, what an untrained policy does."""

    def __init__(self, distribution: Distribution, obs_layout: Layout, action_layout: Layout) -> None:
        self.distribution, self.obs_layout, self.action_layout = distribution, obs_layout, action_layout

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        return self.distribution.draw(rng, steps, copies)

    def act(self, obs: Array, noise: Array) -> tuple[Array, Arrays]:
        params = np.tile(self.distribution.initial().astype(np.float32), (len(obs), 1))
        raw, _ = self.distribution.sample(params, noise, self.obs_layout.mask_of(obs))
        return self.action_layout.join(self.distribution.env_actions(raw)), {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {}


class ScriptedPolicy:
    """A function of the user's, `module:name`, of an observation as the env gives it, and, if it takes more, of the mask of
    actions (None where there is none) and a generator of random numbers.
    """

    def __init__(self, place: str, obs_layout: Layout, action_layout: Layout) -> None:
        self.place, self.obs_layout, self.action_layout = place, obs_layout, action_layout

    @property
    def function(self) -> Callable[..., Any]:
        """Raises `UserError` where there is none."""
        module, _, name = self.place.rpartition(":")
        remedy = " Give a function as module:name, of a module that lies here or is installed."
        with users_code(f"opponents name {self.place!r}, which cannot be imported", remedy):
            found: Any = getattr(importlib.import_module(module), name)
        if not callable(found):
            raise UserError(f"opponents name {self.place!r}, which is of type {type(found).__name__}. Give a function.")
        return cast(Callable[..., Any], found)

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        return rng.integers(2**31, size=(steps, copies))

    def act(self, obs: Array, noise: Array, agents: Sequence[str]) -> Array:
        """Of rows [K, ...] in which somebody acts, and who that is: of others the function knows nothing."""
        actions, function = [], self.function
        takes = len(inspect.signature(function).parameters)
        for row, drawn, agent in zip(obs, noise, agents, strict=True):
            layout, does = self.obs_layout.of(agent), self.action_layout.of(agent)
            flat = layout.narrow(row) if self.obs_layout.members else row
            allowed = layout.mask_of(flat)
            mask = None if allowed is None else allowed.astype(np.int8)
            with users_code(f"The opponent {self.place} raised", GIVEN):
                action = function(*(layout.unpack(flat)[OBSERVATION], mask, np.random.default_rng(drawn))[:takes])
                done = np.array(action, does.dtype).reshape(1, *does.shape)
            part = does.parts[0]
            if mask is not None and part.n == (len(mask),):
                index = int(done.flat[0]) - part.start[0]
                if not (0 <= index < len(mask) and mask[index]):
                    raise UserError(
                        f"The opponent {self.place} did {shown(action)}, which the mask {mask.tolist()} forbids. Have it choose "
                        "among the actions whose mask is 1."
                    )
            actions.append(widened(done, self.action_layout.nbytes) if self.action_layout.members else done)
        return np.concatenate(actions)


class OpposedPolicy:
    """The trained policy and whom it plays against. `distrl.types.Policy`, which by itself sits everywhere."""

    def __init__(
        self,
        own: Policy,
        fixed: Mapping[str, Any],
        slots: int,
        games: Mapping[str, float],
        evaluation: Sequence[str],
        seats: Mapping[str, Sequence[str]],
    ) -> None:
        """
        Args:
            own: is trained
            fixed: never change, by name
            slots: places of the league
            games, evaluation: as the settings name them
            seats: agents whose places it takes at once, by the name of that seat
        """
        self.own, self.fixed, self.evaluation = own, dict(fixed), tuple(evaluation)
        self.obs_layout, self.action_layout = own.obs_layout, own.action_layout
        self.seats = {name: [self.obs_layout.agents.index(agent) for agent in seats[name]] for name in seats}
        self.past = [copy.deepcopy(own) for _ in range(slots)]
        self.names = ["self", *fixed]  # of those before the league
        self.games = np.array([games.get(name, 0.0) for name in self.names])
        self.of_league = games.get("league", 0.0)
        self.size = sum(map(prod, own.shapes().values()))
        self.parts = {"rating": 1, "shares": len(self.names) + slots, "versions": slots, "league": slots * self.size}
        self.tail = np.zeros(sum(self.parts.values()))
        self.load_tail()

    def load(self, vector: Array) -> None:
        """`vector`: of a version, or of what is trained alone, which has met nobody yet."""
        if len(vector) == self.size:
            vector = self.begun(vector)
        self.own.load(vector[: self.size])
        self.tail = vector[self.size :]
        self.load_tail()

    def load_tail(self) -> None:
        parts = np.split(self.tail, np.cumsum(list(self.parts.values()))[:-1])
        self.rating, self.shares, self.versions = float(parts[0][0]), parts[1], parts[2]
        for policy, vector, version in zip(
            self.past, parts[3].reshape(len(self.past), self.size), self.versions, strict=True
        ):
            if version >= 0:
                policy.load(vector)

    def join(self, own: Array, rating: float, chances: Array, versions: Array, league: Array) -> Array:
        """The vector [P] of a version.

        Args:
            chances: [slots] of each place of the league, of which those with version -1 are empty
            league: [slots, own size]
        """
        chances = np.where(versions >= 0, chances, 0.0)
        if total := chances.sum():
            chances = self.of_league * chances / total
        shares = np.concatenate([self.games, chances])
        return np.concatenate([own, [rating], shares, versions, league.ravel()]).astype(own.dtype)

    def begun(self, own: Array) -> Array:
        """The vector of version 0: the league has the policy's beginning as its first."""
        versions = np.full(len(self.past), -1.0)
        versions[:1] = 0
        league = np.zeros((len(self.past), self.size))
        league[:1] = own
        return self.join(own, 0.0, np.ones(len(self.past)), versions, league)

    # --- who sits where ---------------------------------------------------------------------------------------------

    def drawn(self, games: Games, copy: int) -> Array:
        """Seats [A] of a training episode."""
        rng = stream(games.seed, OPPONENT, games.shard * games.copies + copy, int(games.episode[copy]))
        borders = np.cumsum(self.shares, dtype=np.float64)
        other = int(np.searchsorted(borders, rng.random() * borders[-1], side="right"))
        seats = list(self.seats)
        return self._seated(min(other, len(borders) - 1), seats[int(rng.integers(len(seats)))])

    @property
    def pairings(self) -> list[Pairing]:
        """Of an evaluation: each opponent from each seat."""
        numbers = {name: number for number, name in enumerate(self.names)}
        if len(self.past):
            half = np.abs(np.where(self.versions >= 0, self.versions, np.inf) - self.versions.max() / 2)
            numbers["earlier"] = len(self.names) + int(half.argmin())
        return [Pairing(name, numbers[name], seat) for name in self.evaluation for seat in self.seats]

    def pairing(self, number: int) -> Pairing:
        """Of an episode of an evaluation."""
        return self.pairings[number % len(self.pairings)]

    def arranged(self, games: Games, copy: int) -> Array:
        """Seats [A] of an episode of an evaluation."""
        pairing = self.pairing(int(games.episode[copy]) * games.copies + copy)
        return self._seated(pairing.number, pairing.seat)

    def _seated(self, other: int, seat: str) -> Array:
        who = np.full(len(self.obs_layout.agents), other)
        who[self.seats[seat]] = 0
        return who

    # --- as a policy ------------------------------------------------------------------------------------------------

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Any:
        """A row a step: what is drawn for the policy, which past ones share (they act in other rows), and for the fixed."""
        drawn = [policy.draw(rng, steps, copies) for policy in (self.own, *self.fixed.values())]
        return list(zip(*drawn, strict=True))

    def act(self, obs: Array, noise: Any) -> tuple[Array, Arrays]:
        return self.own.act(obs, noise[0])

    def greedy(self, obs: Array) -> Array:
        return self.own.greedy(obs)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.own.shapes() | {"opponents": (len(self.tail),)}

    def arrays(self) -> Arrays:
        return self.own.arrays() | {"opponents": self.tail}

    def describe(self) -> dict[str, Any]:
        return {"type": "opposed", "own": self.own.describe(), "names": self.names, "slots": len(self.past)}

    @classmethod
    def from_description(cls, data: Mapping[str, Any]) -> Self:
        raise ValueError("a model is of what was trained, without its opponents")


class Opposing(Acting):
    """Acts in all rows of games: in each as who sits there. What it remembers is that, [N, 1]; -1 where an episode begins."""

    def __init__(self, policy: OpposedPolicy, games: Games, seats: Seats) -> None:
        super().__init__(policy.own, len(policy.obs_layout.agents) * games.copies)
        self.opposed, self.games, self.seats, self.rng = policy, games, seats, stream(games.seed, "opponent action")
        self.memory = np.full((len(policy.obs_layout.agents) * games.copies, 1), -1, np.int16)

    def act(self, obs: Array, noise: Any) -> tuple[Array, Arrays]:
        action, extra = self.opposed.own.act(obs, noise[0])
        who = self._who()
        return self._together(action, obs, noise, who), extra | {OPPONENT: who}

    def greedy(self, obs: Array) -> Array:
        """The trained policy does its best; others do what they do."""
        noise = self.opposed.draw(self.rng, 1, len(obs))[0]
        return self._together(self.opposed.own.greedy(obs), obs, noise, self._who())

    def forget(self, ended: Array) -> None:
        """Seats stay until the episode is over for all."""
        assert self.memory is not None
        agents = len(ended) // self.games.copies
        over = np.repeat(ended.reshape(-1, agents).all(axis=1), agents)
        self.memory = np.where(over[:, None], np.int16(-1), self.memory)

    def arrays(self) -> Arrays:
        return {}

    def _who(self) -> Array:
        """Who acts in each row [N]."""
        assert self.memory is not None
        by_copy = self.memory.reshape(self.games.copies, -1)
        if (new := np.flatnonzero(by_copy[:, 0] < 0)).size:
            by_copy = by_copy.copy()
            for one in new.tolist():
                by_copy[one] = self.seats(self.games, one)
            self.memory = by_copy.reshape(self.memory.shape)
        return self.memory[:, 0]

    def _together(self, action: Array, obs: Array, noise: Any, who: Array) -> Array:
        """The action of who acts in each row."""
        opposed, active = self.opposed, self.games.active
        others = [*opposed.fixed.values(), *opposed.past]
        turns = who if active is None else np.where(active, who, 0)
        present = [number for number in np.unique(turns).tolist() if number]
        action = action.copy() if present else action
        for number in present:
            policy, rows = others[number - 1], np.flatnonzero(turns == number)
            drawn = noise[number] if number < len(noise) else noise[0]
            if isinstance(policy, ScriptedPolicy):
                names = opposed.obs_layout.agents
                action[rows] = policy.act(obs[rows], drawn[rows], [names[row % len(names)] for row in rows.tolist()])
            else:  # a batch of one shape, whoever sits where
                action[rows] = policy.act(obs, drawn)[0][rows]
        return action


def acting_in(policy: Policy, games: Any, copies: int, evaluating: bool = False) -> Acting:
    """What acts for `copies` env copies, which are a shard's."""
    if not isinstance(policy, OpposedPolicy):
        return Acting(policy, copies * policy.obs_layout.rows)
    return Opposing(policy, games, policy.arranged if evaluating else policy.drawn)


def beginning(policy: Policy, own: Array) -> Array:
    """The vector of version 0, where what is trained begins with `own`."""
    return policy.begun(own) if isinstance(policy, OpposedPolicy) else own


def apart(policy: Policy, vector: Array) -> tuple[Policy, Array, Array]:
    """What is trained without its opponents, its part of a vector of weights, and the rest of that."""
    if not isinstance(policy, OpposedPolicy):
        return policy, vector, vector[:0]
    return policy.own, vector[: policy.size], vector[policy.size :]
