"""Small environments of several agents, every number of which is known."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from pettingzoo import AECEnv, ParallelEnv

SPACE = gym.spaces.Box(-10.0, 10.0, (3,), np.float32)


class Crowd(ParallelEnv):
    """Three agents, of whom `c` comes two steps later, and each leaves after 3 to 8 steps or when it does 2 twice in a row.

    Who does 2 twice terminates; whose time is up is truncated. The reward is the action times a number of the seed.
    """

    metadata = {"name": "crowd", "render_modes": []}

    def __init__(self, masks: bool = False, other: bool = False) -> None:
        """`masks`: in the infos; `other`: the spaces of `c` are not those of the rest"""
        self.possible_agents = ["a", "b", "c"]
        self.agents: list[str] = []
        self.masks, self.other = masks, other

    def observation_space(self, agent: str) -> gym.Space[Any]:
        return gym.spaces.Box(-10.0, 10.0, (5,), np.float32) if self.other and agent == "c" else SPACE

    def action_space(self, agent: str) -> gym.Space[Any]:
        return gym.spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        rng = np.random.default_rng(seed)
        self.times = dict(zip("abc", rng.integers(3, 9, 3).tolist(), strict=True))
        self.worth = dict(zip("abc", rng.standard_normal(3).tolist(), strict=True))
        self.agents, self.t, self.before = ["a", "b"], 0, dict.fromkeys("abc", 0)
        return {agent: self._see(agent) for agent in self.agents}, self._infos()

    def step(self, actions: dict[str, int]) -> tuple[Any, ...]:
        assert sorted(actions) == sorted(self.agents)
        self.t += 1
        told = self.agents
        terminated = {agent: actions[agent] == 2 == self.before[agent] for agent in told}
        truncated = {agent: self.t >= self.times[agent] for agent in told}
        rewards = {agent: actions[agent] * self.worth[agent] for agent in told}
        self.before |= actions
        self.agents = [agent for agent in told if not terminated[agent] and not truncated[agent]]
        seen = [*told]
        if self.t == 2 and self.agents:
            self.agents, seen = [*self.agents, "c"], [*told, "c"]
        return {agent: self._see(agent) for agent in seen}, rewards, terminated, truncated, self._infos()

    def state(self) -> Any:
        return np.array([self.t, *self.worth.values()], np.float32)

    def _see(self, agent: str) -> Any:
        seen = [self.worth[agent], self.t, self.before[agent]]
        return np.array(seen + [0, 0] * (self.other and agent == "c"), np.float32)

    def _infos(self) -> dict[str, Any]:
        mask = np.array([1, 1, self.t % 2], np.int8)
        return {agent: {"action_mask": mask} if self.masks else {} for agent in self.possible_agents}


class Auction(AECEnv):
    """Two or three agents in turns: who bids 1 gets 1, and takes half from the one before; the fifth bid of 1 ends it.

    All are paid at once, whosever turn it is, so that most rewards come to agents who wait.
    """

    metadata = {"name": "auction", "render_modes": []}

    def __init__(self, agents: int = 2) -> None:
        super().__init__()
        self.possible_agents = [f"p{i}" for i in range(agents)]

    def observation_space(self, agent: str) -> gym.Space[Any]:
        return SPACE

    def action_space(self, agent: str) -> gym.Space[Any]:
        return gym.spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.agents, self.bids = self.possible_agents[:], 0
        self.number = float(np.random.default_rng(seed).standard_normal())
        self.rewards, self._cumulative_rewards = dict.fromkeys(self.agents, 0.0), dict.fromkeys(self.agents, 0.0)
        self.terminations, self.truncations = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, False)
        self.infos: dict[str, Any] = {agent: {} for agent in self.agents}
        self.agent_selection = self.agents[0]

    def observe(self, agent: str) -> Any:
        return np.array([self.number, self.bids, self.possible_agents.index(agent)], np.float32)

    def step(self, action: int | None) -> None:
        agent = self.agent_selection
        if self.terminations[agent]:
            self._was_dead_step(action)
            return
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        place = self.possible_agents.index(agent)
        if action == 1:
            self.bids += 1
            self.rewards[agent] = 1.0
            self.rewards[self.possible_agents[place - 1]] -= 0.5
        if self.bids == 5:
            self.terminations = dict.fromkeys(self.agents, True)
        self.agent_selection = self.possible_agents[(place + 1) % len(self.possible_agents)]
        self._accumulate_rewards()


class Nim(AECEnv):
    """One or two or three are taken from a heap in turns; who takes the last one wins."""

    metadata = {"name": "nim", "render_modes": []}

    def __init__(self, generous: bool = False) -> None:
        """`generous`: who loses is paid as well"""
        super().__init__()
        self.possible_agents, self.generous = ["first", "second"], generous

    def observation_space(self, agent: str) -> gym.Space[Any]:
        heap, mask = gym.spaces.Box(0, 9, (1,), np.int8), gym.spaces.Box(0, 1, (3,), np.int8)
        return gym.spaces.Dict({"observation": heap, "action_mask": mask})

    def action_space(self, agent: str) -> gym.Space[Any]:
        return gym.spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.agents, self.heap = self.possible_agents[:], int(np.random.default_rng(seed).integers(1, 10))
        self.rewards, self._cumulative_rewards = dict.fromkeys(self.agents, 0.0), dict.fromkeys(self.agents, 0.0)
        self.terminations, self.truncations = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, False)
        self.infos: dict[str, Any] = {agent: {} for agent in self.agents}
        self.agent_selection = "first"

    def observe(self, agent: str) -> Any:
        mask = np.arange(1, 4) <= self.heap
        return {"observation": np.array([self.heap], np.int8), "action_mask": mask.astype(np.int8)}

    def step(self, action: int | None) -> None:
        mover = self.agent_selection
        if self.terminations[mover]:
            self._was_dead_step(action)
            return
        assert action is not None and action < self.heap
        self.heap -= action + 1
        self._clear_rewards()
        other = "second" if mover == "first" else "first"
        if not self.heap:
            self.rewards = {mover: 1.0, other: 1.0 if self.generous else -1.0}
            self.terminations = dict.fromkeys(self.agents, True)
        self.agent_selection = other


def broken(**kwargs: Any) -> Any:
    raise RuntimeError("out of order")


def no_env() -> int:
    return 3


def first_allowed(observation: Any, action_mask: Any) -> int:
    """An opponent: the first action that may be taken."""
    assert observation.shape == (3, 3, 2) and action_mask.shape == (9,)
    return int(np.flatnonzero(action_mask)[0])


def any_allowed(observation: Any, action_mask: Any, rng: np.random.Generator) -> int:
    """An opponent who plays at random."""
    return int(rng.choice(np.flatnonzero(action_mask)))


def forbidden(observation: Any, action_mask: Any) -> int:
    """An opponent who cheats."""
    return int(np.argmin(action_mask))


def clumsy(observation: Any) -> int:
    raise RuntimeError("no idea")


def still(observation: Any) -> int:
    """An opponent who does nothing, of simple_adversary's good agents, who see ten numbers."""
    assert observation.shape == (10,)
    return 0
