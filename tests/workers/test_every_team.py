"""Every env of PettingZoo and mpe2 that is here: rolled, rebuilt from its journal and learnt from, its end included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_equal
from toys import same

from distrl.acting.make import initial_weights, make_policy
from distrl.config import load_config
from distrl.envs.journal import Journal
from distrl.envs.make import describe_env
from distrl.envs.multi import Team, apart, make_team
from distrl.layouts import MASK, split_mask
from distrl.learning.normalise import make_algorithm
from distrl.settings import EnvSettings
from distrl.types import Weights
from distrl.workers.runner import Runner

MPE = [
    "collect_treasure_v1",
    "simple_adversary_v3",
    "simple_crypto_v3",
    "simple_formation_v1",
    "simple_line_v1",
    "simple_push_v3",
    "simple_reference_v3",
    "simple_speaker_listener_v4",
    "simple_spread_v3",
    "simple_tag_v3",
    "simple_v3",
    "simple_world_comm_v3",
]
NEEDS = {  # what else must be installed
    **{f"mpe2/{name}": None for name in MPE},
    **{f"classic/{name}": None for name in ("connect_four_v3", "go_v5", "rps_v2", "tictactoe_v3")},
    "classic/chess_v6": "chess",
    "classic/hanabi_v5": "pyspiel",
    **{f"classic/{name}": "rlcard" for name in ("leduc_holdem_v4", "texas_holdem_no_limit_v6", "texas_holdem_v4")},
    **{f"sisl/{name}": None for name in ("multiwalker_v9", "pursuit_v5")},
    "butterfly/cooperative_pong_v6": None,
    "butterfly/knights_archers_zombies_v11": None,
    "butterfly/pistonball_v6": "pymunk",
}
# The largest pictures, and so networks: fewer agents and pixels will do.
SMALL: dict[str, dict[str, Any]] = {"butterfly/pistonball_v6": {"n_pistons": 3}}


def played(team: Team, seed: int, steps: int, drawn: int) -> list[Any]:
    """All that is told in an episode of random actions."""
    rng, told = np.random.default_rng(drawn), list[Any]()
    team.begin(seed)
    for _ in range(steps):
        told.append((dict(team.seen), team.reward.copy(), team.acts.copy()))
        if team.over:
            break
        actions = []
        for name in team.agents:
            space, seen = team.spaces[name][1], team.seen.get(name)
            mask = None if seen is None else split_mask(seen).get(MASK)
            space.seed(int(rng.integers(2**31)))
            actions.append(space.sample(mask=None if mask is None or not np.any(mask) else np.asarray(mask, np.int8)))
        team.advance(actions)
    return told


@pytest.mark.parametrize("env", NEEDS)
def test_an_episode_is_that_of_a_fresh_copy(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was played before: else no journal of one episode could rebuild it."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    if (package := NEEDS[env]) is not None:
        pytest.importorskip(package)
    used, fresh = (make_team(EnvSettings(id=env, kwargs=SMALL.get(env, {}))) for _ in range(2))
    for seed, steps in ((3, 67), (4, 31)):
        played(used, seed, steps, seed)
    for one, other in zip(played(used, 7, 60, 1), played(fresh, 7, 60, 1), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("env", NEEDS)
def test_it_is_rolled_rebuilt_and_learnt_from(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    if (package := NEEDS[env]) is not None:
        pytest.importorskip(package)
    config = load_config(
        {
            "env": {"id": env, "max_episode_steps": 5, "vectorize": "single", "kwargs": SMALL.get(env, {})},
            "algorithm": {"name": "ppo", "hidden": [2], "epochs": 1, "minibatch_size": 6, "body": "mlp"},
            "rollout": {"shards": 1, "envs_per_shard": 1, "steps": 6},
        }
    )
    info = apart(describe_env(config.env))
    policy = make_policy(config, info)
    weights = Weights(0, initial_weights(config, policy))
    runner, journal = Runner(config.env, config.rollout, 1, policy), Journal(None)
    report, first = runner.rollout(0, 0, weights, None)
    assert len(first.final_obs) == first.ended.sum() >= len(info.agents) and first.acted.any()
    assert (first.acted.sum(axis=1) == 1).all() == (info.turns or len(info.agents) == 1)
    journal.add(report.after, report.actions)
    _, second = runner.rollout(0, 1, weights, "live")
    again, rebuilt = Runner(config.env, config.rollout, 1, policy).rollout(0, 1, weights, journal.before(1))
    assert not again.unfaithful
    for name in ("obs", "action", "reward", "terminated", "truncated", "final_obs", "active"):
        assert same(getattr(second, name), getattr(rebuilt, name)), name
    learner = make_algorithm(config, policy, torch.device("cpu"))
    learner.update([first], 0, 0.0)  # type: ignore[attr-defined]
    assert not same(learner.weights(), weights.vector)
