"""Self-play against a league: an algorithm learns from the seats of the trained policy, and its versions join the league.

How games went is counted from the fragments, in their order, so that the league, who is met how often and the ratings are
functions of the run like the weights, with whose versions they travel (`distrl.acting.opponents`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from distrl.acting.opponents import OPPONENT, OUTCOMES, OpposedPolicy
from distrl.settings import Config
from distrl.types import Array, Arrays, Fragment, OnPolicy

KEPT = 0.95  # of the count of games, from one iteration to the next


def chance(rating: float, other: Array) -> Array:
    """What Elo's formula expects to be scored against others of these ratings: a win 1, a draw a half."""
    expected: Array = 1 / (1 + 10 ** ((other - rating) / 400))
    return expected


def rated(score: Array, games: Array, other: Array) -> float:
    """The Elo rating at which so much (of each opponent) would be scored in so many games. A draw with each is counted as well."""
    low, high = float(other.min()) - 800, float(other.max()) + 800
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if ((games + 1) * chance(middle, other)).sum() < (score + 0.5).sum() else (low, middle)
        )
    return (low + high) / 2


class League:
    """An algorithm that is shown what the trained policy did. `distrl.types.OnPolicy`."""

    def __init__(self, config: Config, policy: OpposedPolicy, algorithm: OnPolicy) -> None:
        assert config.opponents is not None
        self.settings, self.policy, self.algorithm = config.opponents.league, policy, algorithm
        slots, columns = len(policy.past), config.rollout.envs_per_shard * policy.obs_layout.rows
        self.fixed, self.rating = len(policy.names), 0.0  # opponents before the league, of whom one is oneself
        own = algorithm.weights()
        self.members, self.versions, self.ratings = (
            np.zeros((slots, len(own)), own.dtype),
            np.full(slots, -1),
            np.zeros(slots),
        )
        self.members[:1], self.versions[:1] = own, 0
        self.games = np.zeros((self.fixed + slots, len(OUTCOMES)))  # of late, by opponent
        self.returns = np.zeros((config.rollout.shards, columns))  # of the episodes under way

    def update(self, fragments: list[Fragment], iteration: int, progress: float) -> dict[str, float]:
        self.games *= KEPT
        shown = []
        for fragment in fragments:
            who = fragment.extras[OPPONENT]  # [T, N]
            self._count(fragment, who)
            active = np.ones((len(who) + 1, who.shape[1]), bool) if fragment.active is None else fragment.active
            shown.append(replace(fragment, active=active & (np.concatenate([who, who[-1:]]) == 0)))
        metrics = self.algorithm.update(shown, iteration, progress)
        metrics |= self._rate()
        if len(self.members) and (iteration + 1) % self.settings.add_every == 0:
            self._join(iteration + 1)
        return metrics

    def _count(self, fragment: Fragment, who: Array) -> None:
        """How the games ended that did, for the seats of the trained policy that has an opponent."""
        total = self.returns[fragment.shard]
        other = np.repeat(who.reshape(len(who), -1, fragment.agents).max(axis=2), fragment.agents, axis=1)
        for t, ended in enumerate(fragment.ended):
            total += fragment.reward[t]
            over = ended & (who[t] == 0) & (other[t] > 0)
            np.add.at(self.games, (other[t][over], 1 - np.sign(total[over]).astype(int)), 1)
            total[ended] = 0.0

    def _shares(self) -> Array:
        """Of games won [opponents, 3], with one of each outcome beside those that were played."""
        shares: Array = (self.games + 1 / 3) / (self.games.sum(axis=1, keepdims=True) + 1)
        return shares

    def _rate(self) -> dict[str, float]:
        """What is known of the games of late, and the rating by them: beginners, and random play, have 0."""
        names, games = self.policy.names, self.games
        there = np.concatenate([[name == "random" for name in names], self.versions >= 0])
        if there.any():
            scores = games @ np.array([1.0, 0.5, 0.0])
            others = np.concatenate([np.zeros(self.fixed), self.ratings])
            self.rating = rated(scores[there], games.sum(axis=1)[there], others[there])
        told = dict(zip(names[1:], games[1 : self.fixed], strict=True)) | {"league": games[self.fixed :].sum(axis=0)}
        shares = {
            f"against/{name}/{outcome}": float(count / counts.sum())
            for name, counts in told.items()
            if counts.sum()
            for outcome, count in zip(OUTCOMES, counts, strict=True)
        }
        return shares | {"elo": self.rating, "league": float((self.versions >= 0).sum())}

    def _join(self, version: int) -> None:
        """The policy of now joins; of a full league the one leaves that is beaten most, of equals the oldest."""
        won = np.where(self.versions >= 0, self._shares()[self.fixed :, 0], np.inf)
        place = int(np.lexsort((self.versions, -won))[0])
        self.members[place], self.versions[place], self.ratings[place] = self.algorithm.weights(), version, self.rating
        self.games[self.fixed + place] = 0

    def weights(self) -> Array:
        chances = (1 - self._shares()[self.fixed :, 0]) ** self.settings.priority
        return self.policy.join(self.algorithm.weights(), self.rating, chances, self.versions, self.members)

    def state(self) -> Arrays:
        own = {name: getattr(self, name).copy() for name in ("members", "versions", "ratings", "games", "returns")}
        return (
            {f"league.{name}": array for name, array in own.items()}
            | {"league.rating": np.array(self.rating)}
            | self.algorithm.state()
        )

    def load_state(self, state: Arrays) -> None:
        for name in ("members", "versions", "ratings", "games", "returns"):
            setattr(self, name, state[f"league.{name}"].copy())
        self.rating = float(state["league.rating"])
        self.algorithm.load_state(state)
