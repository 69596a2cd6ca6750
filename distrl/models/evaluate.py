"""Scoring a trained model: by playing episodes, or exactly where the MDP is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distrl.acting.network import flatten, single_threaded
from distrl.acting.opponents import beginning
from distrl.acting.team import TeamPolicy
from distrl.envs.exact import Exact, examine
from distrl.envs.mdp import Table, read_table
from distrl.errors import UserError, did_you_mean, reading, shown
from distrl.models.export import read_safetensors
from distrl.models.opponents import against
from distrl.models.store import env_of, find_model, read_model
from distrl.models.table_files import read_export
from distrl.models.trust import check_modules
from distrl.settings import EnvSettings
from distrl.types import Evaluation, Policy, Weights
from distrl.workers.evaluator import Evaluator


def load_to_play(path: Path, modules: Sequence[str] = ()) -> tuple[Policy, EnvSettings, dict[str, Any]]:
    """As `load_model`, for playing, which imports the modules that the model names.

    Raises:
        UserError: one of these neither lies in this project nor is among `modules`; or as `load_model`
    """
    policy, env, about = load_model(path)
    if "group" in about:
        raise UserError(
            f"{str(path)!r} holds the policy of {about['group']} alone, and others play {env.id}, too. Take the run."
        )
    check_modules(path, env, policy, modules)
    return policy, env, about


def one_of(
    policy: Policy, about: dict[str, Any], path: Path, agent: str | None
) -> tuple[Policy, dict[str, Any], TeamPolicy | None]:
    """The one policy that is meant: of several that of an agent, with their team. What is known of it names its `group`.

    Raises:
        UserError: there are several, and no agent is named, or one that has none of them
    """
    if not isinstance(policy, TeamPolicy):
        if agent is not None:
            raise UserError(f"--agent {agent}: {str(path)!r} holds one policy alone. Leave it out.")
        return policy, about, None
    first = [member.agents[0] for member in policy.members]
    if agent not in policy.agents:
        groups = ", ".join(f"{member.name} ({', '.join(member.agents)})" for member in policy.members)
        given = "" if agent is None else f" --agent is {shown(agent)}.{did_you_mean(agent, policy.agents)}"
        raise UserError(
            f"{str(path)!r} holds several policies, of {groups}; one goes out at a time.{given} Take --agent {' or --agent '.join(first)}."
        )
    member = next(member for member in policy.members if agent in member.agents)
    return member.policy, about | {"group": member.name}, policy


def load_model(path: Path) -> tuple[Policy, EnvSettings, dict[str, Any]]:
    """A policy, the settings of its env, and what is known about it. Imports nothing that the model names.

    Args:
        path: a run, a checkpoint, a model, an exported file
    """
    single_threaded()
    with reading(f"{shown(str(path))} cannot be read"):
        policy, about = _read(path)
    return policy, env_of(path, about), about


def _read(path: Path) -> tuple[Policy, dict[str, Any]]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return read_export(path) if path.is_file() else read_model(find_model(path))


def play_episodes(
    path: Path,
    episodes: int,
    *,
    greedy: bool,
    seed: int,
    max_steps: int | None = None,
    modules: Sequence[str] = (),
    opponents: Sequence[str] = (),
) -> tuple[Evaluation, EnvSettings]:
    """Play episodes in fresh envs.

    Args:
        max_steps: time limit of an episode; None: as in training
        modules: see `load_to_play`
        opponents: who is played against from each seat in turn, as `opponents.evaluation` names them; none: oneself
    """
    policy, env, about = load_to_play(path, modules)
    if max_steps is not None:
        env = env.model_copy(update={"max_episode_steps": max_steps})
    vector = flatten(policy.arrays(), policy.shapes())
    if opponents:
        policy = against(policy, opponents, env, modules)
    weights = Weights(about["version"], beginning(policy, vector))
    return Evaluator(env, seed, policy).evaluate(weights, about["env_steps"], episodes, greedy, 0), env


def evaluate_exactly(path: Path, modules: Sequence[str] = ()) -> tuple[Exact, Table, EnvSettings, dict[str, Any]]:
    """What the greedy policy is worth, and the optimum. Raises `UserError` where the transition table is not known."""
    policy, env, about = load_to_play(path, modules)
    table = read_table(env)
    return examine(table, policy), table, env, about
