"""Leduc hold'em of RLCard, as PettingZoo has it, walked whole: what a policy wins against random play, and what can be won of it.

    NashConv = sum over players i of   max over all that i may do of what i wins   against what the other does

is 0 in an equilibrium (Lanctot et al. 2017, arXiv:1711.00832). Who answers best knows all bids, its card and, later, the public
one. Policies are averaged as Kuhn (1953) says: one is drawn before a hand, and played to its end.

A hand is two rounds of bids. Each rank has two cards, so that all that matters is who has which rank: values are arrays over
own rank and public rank [3, 3], each counted with how likely these are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distrl.acting.normalise import NormalisedPolicy, without
from distrl.acting.policies import StochasticPolicy, from_description
from distrl.acting.team import TeamPolicy
from distrl.errors import UserError
from distrl.files import open_arrays
from distrl.layouts import MASK, OBSERVATION
from distrl.models.evaluate import load_to_play
from distrl.models.store import list_checkpoints
from distrl.types import Array, Policy

ID, AGENTS = "classic/leduc_holdem_v4", ("player_0", "player_1")
CALL, RAISE, FOLD, CHECK = range(4)
RAISES, BIG_BLIND = 2, 2  # in a round, at most; in chips
_own, _other, _public = np.indices((3, 3, 3))
CHANCE = (2 * (2 - (_own == _other)) * (2 - (_public == _own) - (_public == _other))) / (6 * 5 * 4)  # of these ranks
WINS = np.where(_public == _own, 1, np.where(_public == _other, -1, np.sign(_own - _other)))

# Of who sits at a place (0: the small blind): the chances [K, 3, 3, 4] of moves by each of K policies, by own and public rank.
Plays = Callable[[int, "Bids"], Array]


@dataclass(frozen=True)
class Bids:
    """What both have seen of a hand, by place: 0 the small blind, who begins."""

    chips: tuple[int, int] = (1, 2)
    raised: tuple[int, int] = (1, 2)  # in this round
    raises: int = 0
    calls: int = 0  # who has bid without raising since
    mover: int = 0
    round: int = 0

    @property
    def moves(self) -> list[int]:
        behind = self.raised[self.mover] < max(self.raised)
        return [*([CALL] * behind), *([RAISE] * (self.raises < RAISES)), FOLD, *([CHECK] * (not behind))]

    def after(self, move: int) -> Bids:
        """By any move but to fold; round 2 is the end."""
        due = max(self.raised) - self.raised[self.mover] if move != CHECK else 0
        due += BIG_BLIND * (1 + self.round) * (move == RAISE)
        chips, raised = _with(self.chips, self.mover, due), _with(self.raised, self.mover, due)
        calls, other = 1 if move == RAISE else self.calls + 1, 1 - self.mover
        if calls == 2:
            return Bids(chips, (0, 0), 0, 0, other, self.round + 1)
        return Bids(chips, raised, self.raises + (move == RAISE), calls, other, self.round)


BEGIN, ALL = Bids(), np.ones((1, 3, 3))


def _with(both: tuple[int, int], place: int, due: int) -> tuple[int, int]:
    return (both[0] + due, both[1]) if place == 0 else (both[0], both[1] + due)


def worth(place: int, own: Plays | None, other: Plays, bids: Bids = BEGIN, reach: Array = ALL) -> Array:
    """What who sits there wins, in big blinds, [3, 3] by own and public rank, each counted with its chance.

    Args:
        own: None: its best answer
        reach: [K, 3, 3] how far the other's policies go along with these bids
    """
    if bids.round == 2:
        return _paid(WINS * bids.chips[0], reach)
    worths = []
    chances = other(bids.mover, bids) if bids.mover != place else None
    for move in bids.moves:
        along = reach if chances is None else reach * chances[..., move]
        if move == FOLD:
            worths.append(
                _paid(np.full(WINS.shape, bids.chips[bids.mover] * (-1 if bids.mover == place else 1)), along)
            )
        else:
            worths.append(worth(place, own, other, bids.after(move), along))
    below: Array = np.array(worths)  # [moves, 3, 3]
    if chances is not None or own is not None:
        shares = 1.0 if own is None or chances is not None else np.moveaxis(own(place, bids)[0][..., bids.moves], -1, 0)
        mean: Array = (shares * below).sum(axis=0)
        return mean
    known = below if bids.round else below.sum(axis=2, keepdims=True)  # the public rank is not, in the first round
    best: Array = np.take_along_axis(below, np.broadcast_to(known.argmax(axis=0), (3, 3))[None], 0)[0]
    return best


def _paid(chips: Array, reach: Array) -> Array:
    paid: Array = (CHANCE * chips * reach.mean(axis=0)).sum(axis=1) / BIG_BLIND
    return paid


def mean_worth(own: Plays | None, other: Plays) -> float:
    """From both places, as often."""
    return float(np.mean([worth(place, own, other).sum() for place in range(2)]))


def at_random(place: int, bids: Bids) -> Array:
    chances = np.zeros(4)
    chances[bids.moves] = 1 / len(bids.moves)
    return np.broadcast_to(chances, (1, 3, 3, 4))


def plays(policies: Sequence[Policy], agent: str, greedy: bool) -> Plays:
    """What an agent does by each of the policies."""

    def chances(place: int, bids: Bids) -> Array:
        return np.stack([_chances(policy, agent, greedy, place, bids) for policy in policies])

    return chances


def seen(place: int, bids: Bids) -> tuple[Array, Array]:
    """Observations [3, 3, 36] of who sits there, by own and public rank, and the mask [4]."""
    rank, obs, mask = np.arange(3), np.zeros((3, 3, 36), np.float32), np.zeros(4, np.int8)
    obs[rank, :, rank] = 1
    obs[:, rank, 3 + rank] = bids.round
    obs[..., 6 + bids.chips[place]] = obs[..., 21 + bids.chips[1 - place]] = 1
    mask[bids.moves] = 1
    return obs, mask


def _chances(policy: Policy, agent: str, greedy: bool, place: int, bids: Bids) -> Array:
    own = policy.of(agent) if isinstance(policy, TeamPolicy) else policy
    (obs, mask), layout = seen(place, bids), own.obs_layout
    told = {OBSERVATION: obs.reshape(9, 36), MASK: np.tile(mask, (9, 1))}
    rows = layout.pack(layout.seen_by(agent, told, (9,)))
    if greedy:
        return np.eye(4)[own.greedy(rows)].reshape(3, 3, 4)
    inner = without(own)
    assert isinstance(inner, StochasticPolicy)
    logits = inner.network(own.normalised(rows) if isinstance(own, NormalisedPolicy) else rows)
    allowed = np.where(mask, logits.astype(np.float64), -np.inf)
    weights = np.exp(allowed - allowed.max(axis=1, keepdims=True))
    chances: Array = (weights / weights.sum(axis=1, keepdims=True)).reshape(3, 3, 4)
    return chances


def nash_conv(policies: Sequence[Policy], greedy: bool = False) -> float:
    """Of the average of the policies."""
    return sum(mean_worth(None, plays(policies, other, greedy)) for other in AGENTS)


@dataclass(frozen=True)
class Leduc:
    """What is known of a policy; in big blinds a hand."""

    against_random: dict[str, float]  # by its best actions, of each agent
    at_most: float  # that can be won of random play
    greedy: float  # NashConv of its best actions
    sampled: float  # of what it does in training
    league: float | None  # of the average of the league of the newest checkpoint
    members: int


def examine_leduc(path: Path, modules: Sequence[str] = ()) -> Leduc:
    """Raises `UserError` where there is no policy that can be examined."""
    policy, env, _ = load_to_play(path, modules)
    inner = (
        [without(member.policy) for member in policy.members] if isinstance(policy, TeamPolicy) else [without(policy)]
    )
    if env.kwargs.get("num_players", 2) != 2 or not all(type(one) is StochasticPolicy for one in inner):
        raise UserError(
            "Of Leduc hold'em policies of PPO and A2C without memory are examined, with two players. Leave out --exact."
        )
    past = _league(path, policy)
    return Leduc(
        {agent: mean_worth(plays([policy], agent, True), at_random) for agent in AGENTS},
        mean_worth(None, at_random),
        nash_conv([policy], True),
        nash_conv([policy]),
        nash_conv(past) if past else None,
        len(past),
    )


def _league(path: Path, policy: Policy) -> list[Policy]:
    """The league that the newest checkpoint of a run holds; none elsewhere, or where it is empty."""
    checkpoints = list_checkpoints(path) if (path / "checkpoints").is_dir() else []
    if not checkpoints:
        return []
    with open_arrays(checkpoints[-1] / "driver.npz") as file:
        tail = file["opponents/weights"] if "opponents/weights" in file.files else np.zeros(0)
    size = sum(array.size for array in policy.arrays().values())
    slots = len(tail) // (size + 2)  # beside its weights each has a share and a version
    vectors = tail[len(tail) - slots * size :].reshape(slots, size)
    members = []
    for vector in vectors[vectors.any(axis=1)]:  # empty places are zeros
        member = from_description(policy.describe())
        member.load(vector)
        members.append(member)
    return members
