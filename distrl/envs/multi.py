"""Environments of PettingZoo: several agents in one env copy, who act all at once or one after the other.

`Team` is one env copy as a gymnasium env of all its agents together. An env whose agents act at once is driven by its
parallel form; a game of turns by its own (AEC), in which a step is one agent's turn: so rewards come when they are earned,
for whomever, and who is not to move does not act. Agents keep their places, whoever of them is there.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from distrl.envs import plugins
from distrl.errors import UserError, did_you_mean, reason, shown, users_code
from distrl.layouts import MASK, row_space
from distrl.settings import EnvSettings
from distrl.types import Array, EnvInfo

# What an id begins with, the package that its module is in, and how that is installed.
FAMILIES = {
    "mpe2/": ("mpe2", "mpe2"),
    "butterfly/": ("pettingzoo.butterfly", "pettingzoo"),
    "classic/": ("pettingzoo.classic", "pettingzoo"),
    "sisl/": ("pettingzoo.sisl", "pettingzoo"),
}


class Team(gym.Env[dict[str, Any], Any]):
    """One env copy of several agents.

    After `begin` or `advance`, `seen` and `infos` are what was told to agents just then, of whom those that have just
    ended are; the arrays [A] are in the order of `agents`.
    """

    def __init__(self, game: Any, env_id: str, limit: int | None) -> None:
        """`game`: a ParallelEnv or an AECEnv; `limit`: steps after which an episode is cut off"""
        self.game, self.turns, self.limit = game, hasattr(game, "agent_iter"), limit
        self.agents: tuple[str, ...] = tuple(map(str, game.possible_agents))
        self.place = {name: i for i, name in enumerate(self.agents)}
        self.metadata = {**game.metadata, "frame_stack": 0}
        self.render_mode = getattr(game, "render_mode", None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.spaces = {name: (game.observation_space(name), game.action_space(name)) for name in self.agents}
        self.observation_space = gym.spaces.Dict({name: of[0] for name, of in self.spaces.items()})
        self.action_space = gym.spaces.Dict({name: of[1] for name, of in self.spaces.items()})
        self.seen: Mapping[str, Any] = {}
        self.infos: Mapping[str, Any] = {}
        self.steps, size = 0, len(self.agents)
        self.reward = np.zeros(size)
        self.acts = np.zeros(size, bool)  # whose turn it is
        self.there = np.zeros(size, bool)  # whose episode goes on
        self.terminated, self.truncated = np.zeros(size, bool), np.zeros(size, bool)  # in this step

    @property
    def over(self) -> bool:
        return not self.there.any()

    def begin(self, seed: int) -> None:
        """Start an episode."""
        self.steps = 0
        self.reward, self.terminated, self.truncated = (
            np.zeros_like(self.reward),
            self.there & False,
            self.there & False,
        )
        _forget(getattr(self.game, "unwrapped", self.game))
        told = self.game.reset(seed=seed)
        if self.turns:
            self._look(())
            self.there = self._members(self.game.agents)
        else:
            self.seen, self.infos = told
            self.there = self.acts = self._members(self.game.agents)

    def advance(self, actions: Sequence[Any]) -> None:
        """One step, by the actions of those whose turn it is; `actions` has a place for each agent.

        An episode that is over for all is over for those, too, who had ended before.
        """
        self.steps += 1
        before = self.there
        (self._turn if self.turns else self._together)(actions)
        if self.limit is not None and self.steps >= self.limit:
            self.truncated |= self.there & ~self.terminated
            self.there = np.zeros_like(before)
        if self.over:
            self.acts = self.there
            self.terminated = self.terminated | ~before
        self.truncated &= ~self.terminated

    def _together(self, actions: Sequence[Any]) -> None:
        place, acted = self.place, self.game.agents
        told = self.game.step({name: actions[place[name]] for name in acted})
        self.seen, rewards, terminations, truncations, self.infos = told
        before, self.there = self.there, self._members(self.game.agents)
        self.reward, self.truncated = np.zeros_like(self.reward), np.zeros_like(before)
        for name, reward in rewards.items():
            self.reward[place[name]] = reward
        for name, cut in truncations.items():
            self.truncated[place[name]] = cut and not terminations[name]
        self.there &= ~self.truncated  # some envs keep one more step those who have ended
        for name, ended in terminations.items():
            self.there[place[name]] &= not ended
        self.truncated &= before
        self.terminated = before & ~self.there & ~self.truncated
        self.acts = self.there

    def _turn(self, actions: Sequence[Any]) -> None:
        game, before = self.game, self.there
        game.step(actions[self.place[game.agent_selection]])
        rewards = game.rewards  # each look at an attribute goes through all wrappers of PettingZoo
        self.reward = np.array([float(rewards.get(name, 0.0)) for name in self.agents])
        terminated = self._members(name for name, ended in game.terminations.items() if ended)
        truncated = self._members(name for name, ended in game.truncations.items() if ended)
        self.terminated, self.truncated = terminated & before, truncated & ~terminated & before
        self.there = before & ~terminated & ~truncated
        ended = [name for name in game.agents if before[self.place[name]] and not self.there[self.place[name]]]
        self._look(ended)

    def _look(self, ended: Sequence[str]) -> None:
        """See what those see who have just ended, then who acts next, and let those leave."""
        game = self.game
        seen = {name: game.observe(name) for name in ended}
        told = game.infos
        infos = {name: told.get(name, {}) for name in ended}
        while game.agents:
            name = game.agent_selection
            if not (game.terminations[name] or game.truncations[name]):
                break
            game.step(None)
        self.acts = np.zeros_like(self.there)
        if game.agents:
            self.acts[self.place[name]] = True
            seen[name], infos[name] = game.observe(name), game.infos.get(name, {})
        self.seen, self.infos = seen, infos

    def _members(self, names: Any) -> Array:
        there = np.zeros(len(self.agents), bool)
        for name in names:
            there[self.place[name]] = True
        return there

    # --- as an env of gymnasium, for who plays and looks --------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What agents see, by name. `info` holds `acts`, the names of those whose turn it is, and `infos`."""
        self.begin(0 if seed is None else seed)
        return dict(self.seen), self._info()

    def step(self, action: Sequence[Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """`action`: a place for each agent. The reward is the sum of theirs, which `info` holds as `rewards`."""
        self.advance(action)
        terminated = self.over and bool(self.terminated.all())
        return dict(self.seen), float(self.reward.sum()), terminated, self.over and not terminated, self._info()

    def _info(self) -> dict[str, Any]:
        acts = [name for name, acts in zip(self.agents, self.acts, strict=True) if acts]
        return {"acts": acts, "infos": self.infos, "rewards": dict(zip(self.agents, self.reward.tolist(), strict=True))}

    def render(self) -> Any:
        return self.game.render()

    def state(self) -> Array:
        """What the env tells of all."""
        return np.asarray(self.game.state())

    def close(self) -> None:
        self.game.close()


def _forget(game: Any) -> None:
    """Have an episode begin as that of a fresh env does: knights, archers and zombies count the steps to the next zombie over episodes,
    and keep who is to die where an episode is cut off.
    """
    if hasattr(game, "zombie_spawn_interval"):
        game.zombie_spawn_interval.reset()
        game.kill_list = []


def is_team(env_id: str) -> bool:
    """Whether an id names an env of several agents: of PettingZoo or mpe2, or `module:function` that makes one."""
    if env_id.startswith(tuple(FAMILIES)):
        return True
    module, _, name = env_id.rpartition(":")
    if not module or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return False
    try:
        return name not in gym.registry and callable(getattr(importlib.import_module(module), name, None))
    except Exception:  # what looks for an id of gymnasium tells of it
        return False


def make_team(settings: EnvSettings, render_mode: str | None = None) -> Team:
    """One env copy. Raises `UserError` where the settings are wrong or a package is missing."""
    if settings.wrappers:
        raise UserError(
            f"env.wrappers are around envs of one agent, and {settings.id!r} has several. Leave them out; a function of your "
            "own, env.id=module:function, may wrap it in wrappers of PettingZoo or SuperSuit."
        )
    if settings.report:
        raise UserError(f"env.report is of envs of one agent, and {settings.id!r} has several. Leave it out.")
    if settings.vectorize not in ("auto", "single"):
        raise UserError(
            f"env.vectorize is {settings.vectorize!r}, which is of envs of one agent, and {settings.id!r} has several. Set it to 'auto'."
        )
    make = _maker(settings.id)
    kwargs = settings.kwargs if render_mode is None else {**settings.kwargs, "render_mode": render_mode}
    with _quiet(), plugins.making(settings):
        game = make(**kwargs)
    missing = [name for name in ("possible_agents", "observation_space", "action_space", "reset", "step", "metadata")
               if not hasattr(game, name)]  # fmt: skip
    if missing:
        raise UserError(
            f"env.id {settings.id!r} makes a {type(game).__name__}, which is no env of PettingZoo: it has no {', '.join(missing)}."
        )
    return Team(game, settings.id, settings.max_episode_steps)


def _maker(env_id: str) -> Any:
    """What makes the env that an id names: its parallel form where there is one."""
    family = next((prefix for prefix in FAMILIES if env_id.startswith(prefix)), None)
    if family is None:
        module, _, name = env_id.rpartition(":")
        remedy = plugins.if_missing(module)
        with users_code(f"env.id {env_id!r} names the module {module!r}, which cannot be imported", remedy):
            return getattr(importlib.import_module(module), name)
    package, install = FAMILIES[family]
    name = env_id.removeprefix(family).replace("-v", "_v")
    try:
        with _quiet():
            known = _known(package)
            if name not in known:
                near = did_you_mean(name, known) or f" Known are {', '.join(known)}."
                raise UserError(f"env.id {shown(env_id)} is not there: {package} has no {shown(name)}.{near}")
            found = importlib.import_module(f"{package}.{name}")
            return getattr(found, "parallel_env", None) or found.env
    except ImportError as error:
        raise plugins.lacking(env_id, error, install) from None
    except (RuntimeError, AttributeError) as error:  # a version that is no more
        raise UserError(f"env.id {env_id!r} cannot be made: {reason(error)}.") from None


def _known(package: str) -> list[str]:
    return sorted(path.stem for path in Path(importlib.import_module(package).__path__[0]).glob("*_v*.py"))


def by_family(name: str) -> str | None:
    """The id of the env whose name, without its family, is this one."""
    for family, (package, _) in FAMILIES.items():
        with suppress(ImportError):
            if name.replace("-v", "_v") in _known(package):
                return f"{family}{name.replace('-v', '_v')}"
    return None


@contextmanager
def _quiet() -> Any:
    """PettingZoo's hints on newer versions are told for every copy, and by its logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def describe_team(settings: EnvSettings) -> EnvInfo:
    """Make the env once and read its agents, their spaces, and what there is to see."""
    team = make_team(settings)
    try:
        if not team.agents:
            raise UserError(f"env.id {settings.id!r} has no agents: its possible_agents are empty.")
        with users_code(f"{settings.id!r} cannot begin an episode"):
            team.begin(0)
        first = next(iter(team.spaces.values()))
        return EnvInfo(
            id=settings.id,
            observation_space=row_space(first[0], len(team.agents)),
            action_space=first[1],
            max_episode_steps=settings.max_episode_steps or _own_limit(team),
            reward_threshold=None,
            render_modes=tuple(team.metadata.get("render_modes", ())),
            render_fps=int(team.metadata.get("render_fps", 10)),
            mask_in_info=any(MASK in info for info in team.infos.values()),
            agents=team.spaces,
            turns=team.turns,
            state_space=_state_space(team),
        )
    finally:
        team.close()


def grouped(info: EnvInfo, policies: str | Mapping[str, Sequence[str]]) -> EnvInfo:
    """With the groups of agents that share a policy, as the setting `policies` names them; none where all share one.

    Raises:
        UserError: an agent is in no group or in two, or a group has none
    """
    if policies == "shared":
        return info
    if not info.agents:
        raise UserError(f"policies are of several agents, and {info.id} has one alone. Leave it out.")
    if isinstance(policies, str):
        return replace(info, groups={name: (name,) for name in info.agents})
    groups: dict[str, tuple[str, ...]] = {}
    of: dict[str, str] = {}
    for group, patterns in policies.items():
        found = [name for name in info.agents if any(fnmatchcase(name, pattern) for pattern in patterns)]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in info.agents):
                near = did_you_mean(pattern, info.agents)
                raise UserError(
                    f"policies.{group} has {pattern!r}, which is no agent of {info.id}; they are {', '.join(info.agents)}.{near}"
                )
        if twice := next((name for name in found if name in of), None):
            raise UserError(
                f"policies.{of[twice]} and policies.{group} both claim {twice!r}. An agent has one policy: name it once."
            )
        if not found:
            raise UserError(
                f"policies.{group} has no agents. Give it some of {', '.join(info.agents)}, or leave it out."
            )
        of |= dict.fromkeys(found, group)
        groups[group] = tuple(found)
    if missing := [name for name in info.agents if name not in of]:
        raise UserError(f"policies have no group for {', '.join(map(repr, missing))} of {info.id}. Add one.")
    return replace(info, groups=groups)


def apart(info: EnvInfo) -> EnvInfo:
    """With a policy for each agent, where they see or do different things and cannot share one."""
    spaces = list(info.agents.values())
    return info if all(of_agent == spaces[0] for of_agent in spaces) else grouped(info, "per_agent")


def _own_limit(team: Team) -> int | None:
    """The longest that an episode takes, where the env says it as most do; of a game that ends by its rules none."""
    game = getattr(team.game, "unwrapped", team.game)
    limits = (getattr(part, "max_cycles", None) for part in (game, getattr(game, "env", None)))
    found = next((limit for limit in limits if isinstance(limit, int)), None)
    if found is None:
        return None
    return found * (len(team.agents) if team.turns else 1)


def _state_space(team: Team) -> gym.Space[Any] | None:
    try:
        shape = team.state().shape
    except Exception:  # most envs that have none raise NotImplementedError
        return None
    return gym.spaces.Box(-np.inf, np.inf, shape, np.float32) if shape else None
