"""Random actions that an env allows, at next to no cost: what pure simulation is driven by."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from distrl.acting.spaces import action_distribution
from distrl.errors import UserError
from distrl.layouts import MASK, split_mask, widened
from distrl.seeding import derive, stream
from distrl.types import Array, EnvInfo

DRAWN = 64  # batches that are drawn beforehand, and done over and over


class RandomActions:
    """For `copies` env copies: samples of the space, or, where a mask forbids some, of what it allows.

    Of several agents, each of the copies does what all of its agents do.
    """

    def __init__(self, info: EnvInfo, seed: int, copies: int = 1) -> None:
        self.info = info
        for name, (_, space) in info.agents.items():
            space.seed(derive(seed, "random actions", *name.encode()))
        self.each = [  # of agents that have policies of their own
            RandomActions(replace(info.of(name), agents={}), derive(seed, "random actions", place), copies)
            for place, name in enumerate(info.agents if info.groups else ())
        ]
        if self.each:
            return
        try:
            self.masked = info.obs_layout.mask is not None  # what a table of all states names does no harm
        except UserError:  # nothing can learn from such observations; the env can be looked at all the same
            self.masked = False
        self.distribution = action_distribution(info) if self.masked else None
        self.rng = stream(seed, "random actions")
        copies *= max(1, len(info.agents))
        info.action_space.seed(derive(seed, "random actions"))
        samples = [info.action_space.sample() for _ in range(DRAWN * copies)]
        self._single = itertools.cycle(samples)
        groups = (samples[i : i + copies] for i in range(0, len(samples), copies))
        batches = (np.stack([info.action_layout.pack(sample) for sample in group]) for group in groups)
        self._batches = itertools.cycle(batches)

    def single(self, obs: Any, extra: Mapping[str, Any]) -> Any:
        """An action of the env's own space, for an observation of its own and the info beside it; of several agents a list."""
        if self.info.agents:
            return [self._of_agent(name, obs.get(name), extra["infos"].get(name, {})) for name in self.info.agents]
        if not self.masked:
            return next(self._single)
        return self.info.action_layout.unpack(self._allowed(self.info.obs_layout.pack(obs, extra.get(MASK))[None])[0])

    def _of_agent(self, name: str, seen: Any, info: Mapping[str, Any]) -> Any:
        space = self.info.agents[name][1]
        mask = info.get(MASK, split_mask(seen).get(MASK))
        if mask is None or not np.any(mask):
            return space.sample()
        return space.sample(mask=np.asarray(mask, np.int8))

    def batch(self, obs: Array) -> Array:
        """Actions [N, ...] for flat observations [N, ...]."""
        if self.each:
            layout, agents = self.info.obs_layout, len(self.each)
            actions = np.zeros((len(obs), *self.info.action_layout.shape), np.uint8)
            for place, own in enumerate(self.each):
                seen = layout.members[place].narrow(obs[place::agents])
                actions[place::agents] = widened(own.batch(seen), self.info.action_layout.nbytes)
            return actions
        return self._allowed(obs) if self.masked else next(self._batches)

    def _allowed(self, obs: Array) -> Array:
        distribution = self.distribution
        assert distribution is not None
        params = np.zeros((len(obs), distribution.outputs + distribution.free), np.float32)
        noise = distribution.draw(self.rng, 1, len(obs))[0]
        raw, _ = distribution.sample(params, noise, self.info.obs_layout.mask_of(obs))
        return self.info.action_layout.join(distribution.env_actions(raw))
