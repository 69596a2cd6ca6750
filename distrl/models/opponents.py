"""Policies of other runs that are opponents: found, tried whether they may act, and copied.

The copies in RUN/opponents are made before anything else of a run, so that a resume needs not what they were copied from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from distrl.acting.make import opposed
from distrl.acting.network import flatten
from distrl.acting.opponents import OpposedPolicy, ScriptedPolicy
from distrl.acting.team import TeamPolicy
from distrl.envs.make import describe_env
from distrl.errors import UserError, did_you_mean, shown
from distrl.files import write_directory
from distrl.models.store import find_model, read_model, write_model
from distrl.models.trust import check_modules
from distrl.settings import EnvSettings, OpponentSettings
from distrl.types import Policy

COPIES = "opponents"  # in a run directory


def read_runs(
    opponents: OpponentSettings | None, run_dir: Path | None, modules: Sequence[str] = ()
) -> dict[str, Policy]:
    """The policies of runs among the opponents, by their short names.

    Args:
        run_dir: of a run that goes on, which has copies; None: a new one
        modules: see `distrl.models.trust`
    Raises:
        UserError: there is no readable model, or it names a module that nobody vouches for
    """
    found: dict[str, Policy] = {}
    for name, label in ({} if opponents is None else opponents.runs).items():
        try:
            path = find_model(name if run_dir is None else run_dir / COPIES / label)
            policy, _ = read_model(path)
        except UserError as error:
            near = did_you_mean(name, ("self", "league", "random", "earlier"))
            raise UserError(
                f"opponents name {shown(name)}, which is neither self, league nor random, nor a function as module:name, so that "
                f"it must be the path of a run: {error}{near}"
            ) from None
        check_modules(path, None, policy, modules)
        found[label] = policy
    return found


def copy_opponents(run_dir: Path, policy: Policy, about: Mapping[str, Any]) -> None:
    """Write those of other runs into RUN/opponents. `about`: JSON of the env and the algorithm."""
    for label, other in policy.fixed.items() if isinstance(policy, OpposedPolicy) else ():
        if label != "random" and not isinstance(other, ScriptedPolicy):
            vector, told = flatten(other.arrays(), other.shapes()), {**about, "version": 0, "env_steps": 0}
            write_directory(run_dir / COPIES / label, partial(write_model, policy=other, vector=vector, about=told))


def against(policy: Policy, names: Sequence[str], env: EnvSettings, modules: Sequence[str] = ()) -> OpposedPolicy:
    """A policy that plays evaluations against others, as `opponents.evaluation` names them. Raises `UserError` as that does."""
    if unfit := [name for name in names if name in ("self", "league", "earlier")]:
        raise UserError(
            f"--against {unfit[0]} is of a run that trains. Name random, a function as module:name, or a run."
        )
    settings = OpponentSettings(games=dict.fromkeys(names, 1.0), evaluation=tuple(names))
    groups = {member.name: member.agents for member in policy.members} if isinstance(policy, TeamPolicy) else {}
    info = replace(describe_env(env), groups=groups)
    return opposed(settings, policy, info, read_runs(settings, None, modules))
