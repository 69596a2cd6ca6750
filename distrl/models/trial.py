"""Whether something else does what a policy does: real observations, and the actions of both compared.

Floating point differs between libraries in the last bits, so that numbers differ a little, and of two choices that the
network finds equally good either may be taken. How far an action is from what the policy does is measured in the numbers
that the network gives out, the `slack`: the least change of them that would make it the policy's own. What lies within
float rounding of them is as good; anything more is another policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distrl.acting.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    Product,
)
from distrl.acting.episodes import Acting
from distrl.acting.normalise import NormalisedPolicy, without
from distrl.acting.policies import EpsilonGreedyPolicy, StochasticPolicy
from distrl.acting.recurrent import RecurrentNetwork, RecurrentPolicy
from distrl.envs.make import closed_after, make_env
from distrl.errors import UserError
from distrl.layouts import MASK, Layout, inside, joined_mask
from distrl.models.play import Actor, by_policy, play_episodes
from distrl.settings import EnvSettings
from distrl.types import Array, Arrays, EnvInfo, Policy

REMEMBERS = "memory_in", "memory_out"  # of a recurrent policy: what it remembers before a step and after it
OBSERVATIONS = 1000
AT_ONCE = 125  # observations in a batch
ROUNDING = (
    2e-5  # of the largest number that the network gives out: float32 has 6e-8, and its sums a few hundred of that
)


@dataclass(frozen=True)
class Trial:
    """Real observations."""

    inputs: Arrays  # [OBSERVATIONS, *shape] by name, as the env gives them; a mask behind them, then what is remembered
    flat: Array  # [OBSERVATIONS, ...] as the policy takes them
    memory: Array | None = None  # [OBSERVATIONS, M]: what a recurrent policy remembers of the episode before each


def input_names(policy: Policy) -> list[str]:
    """Of the parts of an observation, of the mask behind them, and of what is remembered; 'obs' for one part without a name."""
    layout = policy.obs_layout
    named = [part.name or "obs" for part in layout.parts] + ([MASK] if layout.mask is not None else [])
    return named + [REMEMBERS[0]] * remembers(policy)


def output_names(policy: Policy) -> list[str]:
    named = [f"action.{part.name}" if part.name else "action" for part in policy.action_layout.parts]
    return named + [REMEMBERS[1]] * remembers(policy)


def remembers(policy: Policy) -> bool:
    return isinstance(without(policy), RecurrentPolicy)


def observe(policy: Policy, info: EnvInfo, env: EnvSettings, team: Policy | None = None) -> Trial:
    """What the policy sees in the env, always the same: one half by its best actions, one by sampled ones.

    Args:
        team: that it is a member of, and plays with; `info` is then of its agents alone
    """
    layout = policy.obs_layout
    dtypes = [tensor["dtype"] for tensor in layout.tensors(info.observation_space)]
    rows: list[list[Array]] = []
    flat: list[Array] = []
    begins: list[bool] = []  # whether an episode does, with each row

    def watched(actor: Actor) -> Actor:
        """Acts as `actor`; what it acts on is kept."""

        def begin(episode: int) -> Callable[[Any, Mapping[str, Any]], Any]:
            act = actor(episode)
            first = len(rows)

            def keep(obs: Any, said: Mapping[str, Any]) -> Any:
                for seen, told in _seen(layout, obs, said):
                    row = [inside(seen, part) for part in layout.parts]
                    if layout.mask is not None:
                        mask = told[MASK] if layout.in_info else inside(seen, layout.mask)
                        row.append(joined_mask(mask).reshape(layout.mask.shape))
                    rows.append(row)
                    flat.append(layout.pack(seen, told.get(MASK)))
                    begins.append(len(begins) == first)
                return act(obs, said)

            return keep

        return begin

    game = make_env(env)
    with closed_after(game, env.id):
        for greedy, count in ((True, OBSERVATIONS // 2), (False, OBSERVATIONS)):
            seed = int(greedy)
            for _ in play_episodes(watched(by_policy(team or policy, seed, greedy)), game, seed, OBSERVATIONS):
                if len(rows) >= count:
                    break
            del rows[count:], flat[count:], begins[count:]
    columns = [np.stack(column).astype(dtype) for column, dtype in zip(zip(*rows, strict=True), dtypes, strict=True)]
    inputs = dict(zip(input_names(policy), columns, strict=False))
    if not remembers(policy):
        return Trial(inputs, np.stack(flat))
    memory = _remembered(policy, flat, begins)
    return Trial(inputs | {REMEMBERS[0]: memory}, np.stack(flat), memory)


def _remembered(policy: Policy, flat: Sequence[Array], begins: Sequence[bool]) -> Array:
    """What the policy remembers before each observation, [N, M]."""
    acting, memories = Acting(policy, 1), []
    for row, new in zip(flat, begins, strict=True):
        acting.forget(np.array([new]))
        assert acting.memory is not None
        memories.append(acting.memory)
        acting.greedy(row[None])
    return np.concatenate(memories)


def best(policy: Policy, flat: Array, memory: Array | None = None) -> list[Array]:
    """The best action for each observation, [N, *shape] a part, and of a recurrent policy what it remembers then, [N, M]."""
    acting = Acting(policy, len(flat))
    acting.memory = memory
    action = acting.greedy(flat)
    parts = [part.of(action) for part in policy.action_layout.parts]
    return parts if acting.memory is None else [*parts, acting.memory]


def _seen(layout: Layout, obs: Any, said: Mapping[str, Any]) -> list[tuple[Any, Mapping[str, Any]]]:
    """What is acted on, in the form that `pack` takes, and the info of each: of several agents of those who are to act."""
    if not layout.agents:
        return [(obs, said)]
    names = (name for name in said["acts"] if name in layout.agents)
    return [(layout.seen_by(name, obs[name]), said["infos"].get(name, {})) for name in names]


def compare(policy: Policy, trial: Trial, run: Callable[[Arrays], Sequence[Array]], what: str) -> list[str]:
    """Hold what `run` does against the policy: a line about each part of the action.

    Args:
        run: from a batch of `Trial.inputs` to what `best` gives
        what: is run, for the message
    Raises:
        UserError: it does something else
    """
    slices = [slice(i, i + AT_ONCE) for i in range(0, len(trial.flat), AT_ONCE)]
    theirs = _joined([run({name: x[rows] for name, x in trial.inputs.items()}) for rows in slices])
    memories = [None if trial.memory is None else trial.memory[rows] for rows in slices]
    own = _joined([best(policy, trial.flat[rows], memory) for rows, memory in zip(slices, memories, strict=True)])
    names = output_names(policy)
    for name, mine, other in zip(names, own, theirs, strict=True):
        if mine.shape != other.shape:
            raise _other_policy(what, f"{name} has shape {list(other.shape)}, where {list(mine.shape)} is due")
    largest, slacks = 1.0, [np.where(mine == other, 0.0, np.inf) for mine, other in zip(own, theirs, strict=True)]
    inner = without(policy)
    if isinstance(inner, StochasticPolicy | EpsilonGreedyPolicy):  # of any other kind every bit must be the same
        seen = policy.normalised(trial.flat) if isinstance(policy, NormalisedPolicy) else trial.flat
        params = np.concatenate(
            [_outputs(inner.network, seen[rows], memory) for rows, memory in zip(slices, memories, strict=True)]
        )
        largest = float(np.abs(params).max())
        parts = len(policy.action_layout.parts)
        slacks = slack(inner.distribution, params, policy.obs_layout.mask_of(trial.flat), theirs[:parts])
        slacks += [np.abs(mine - other).max(axis=1) for mine, other in zip(own[parts:], theirs[parts:], strict=True)]
    lines = []
    for name, mine, other, own_slack in zip(names, own, theirs, slacks, strict=True):
        line, far = f"{name}: {_told(mine, other)}", own_slack.max()
        if not far <= ROUNDING * largest:  # or it is not a number
            raise _other_policy(
                what, f"{line}; up to {far:.2g} from being the policy's own, where rounding is {ROUNDING * largest:.1g}"
            )
        if mine.dtype.kind != "f" and (mine != other).any():
            line += f": ties, decided by float rounding (numbers at most {far:.1g} apart, of up to {largest:.2g})"
        lines.append(line)
    return lines


def _outputs(network: Callable[[Array], Array], seen: Array, memory: Array | None) -> Array:
    if isinstance(network, RecurrentNetwork) and memory is not None:
        return network.step(seen, memory)[0]
    return network(seen)


def _joined(batches: Sequence[Sequence[Array]]) -> list[Array]:
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def _other_policy(what: str, how: str) -> UserError:
    return UserError(
        f"{what} does not do what the policy does, so it was not written. {how}. This is a mistake of distrl or of a "
        "library: take --format safetensors."
    )


def _told(mine: Array, other: Array) -> str:
    if mine.dtype.kind == "f":
        largest = np.abs(mine.astype(np.float64) - other).max()
        return f"largest difference {largest:.1g} over {len(mine):,} observations"
    differ = (mine != other).reshape(len(mine), -1).any(axis=1)
    return f"{differ.sum():,} of {len(mine):,} actions differ"


def slack(distribution: Distribution, params: Array, mask: Array | None, actions: Sequence[Array]) -> list[Array]:
    """How far the numbers [N, K] are from having these actions as their mode: [N] a part, 0 where they have.

    Args:
        mask: [N, M] bool
        actions: as the env gets them, [N, *shape] a part
    """
    if isinstance(distribution, Product):
        own = ((s.part, params[:, s.columns], s.masked(mask)) for s in distribution.spans)
        return [slack(*part, [action])[0] for part, action in zip(own, actions, strict=True)]
    action = actions[0].reshape(len(params), -1)
    match distribution:
        case Categorical():
            return [_regret(params, mask, action[:, 0] - distribution.start)]
        case MultiCategorical():
            groups = np.split(np.arange(distribution.outputs), np.cumsum(distribution.n)[:-1])
            regrets = [
                _regret(
                    params[:, group], None if mask is None else mask[:, group], action[:, d] - distribution.start[d]
                )
                for d, group in enumerate(groups)
            ]
            return [np.max(regrets, axis=0)]
        case Bernoulli():
            wrong = np.where(np.isin(action, (0, 1)), np.abs(params), np.inf)
            return [np.where(action == (params > 0), 0.0, wrong).max(axis=1)]
        case DiagonalGaussian():
            return [_distance(distribution, params, action)]
    raise TypeError(f"distrl.models.trial does not know {distribution}")


def _regret(logits: Array, mask: Array | None, index: Array) -> Array:
    """How much better the best allowed choice is, [N]; infinity for what is none."""
    allowed = logits if mask is None else np.where(mask, logits, -np.inf)
    known = (index >= 0) & (index < logits.shape[1])
    chosen = allowed[np.arange(len(index)), np.where(known, index, 0)]
    return np.where(known, allowed.max(axis=1) - chosen, np.inf)


def _distance(gaussian: DiagonalGaussian, params: Array, action: Array) -> Array:
    """How far actions [N, D] are from the mode, in the units of the raw action, but for the rounding of their own type."""
    middle, half, low, high = (x.astype(np.float64) for x in gaussian.bounds)
    u = params[:, : gaussian.size].astype(np.float64)
    x = np.clip((np.tanh(u) if gaussian.squash else u) * half + middle, low, high)
    inexact = gaussian.dtype.startswith("float")
    rounding = 4 * np.finfo(gaussian.dtype).eps * (np.abs(x) + np.abs(middle)) if inexact else 0.5
    distance = np.maximum(np.abs(x - action) - rounding, 0) / np.where(half > 0, half, 1)
    farthest: Array = distance.max(axis=1)
    return farthest
