"""Policies that remember: GRU and LSTM against torch's own, and who acts by one against a slow, obvious player."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import config_of
from toys import same

from distrl.acting.episodes import Acting
from distrl.acting.make import initial_weights, make_policy
from distrl.acting.network import single_threaded, unflatten
from distrl.acting.normalise import NormalisedPolicy, without
from distrl.acting.recurrent import RecurrentPolicy
from distrl.envs.make import describe_env, make_env
from distrl.envs.shard import make_shard
from distrl.models.play import by_policy, play_episodes
from distrl.models.player import Player, load_policy
from distrl.models.store import write_model
from distrl.seeding import derive
from distrl.settings import Config
from distrl.types import Array, Policy, Weights
from distrl.workers import evaluator
from distrl.workers.evaluator import Evaluator
from distrl.workers.runner import Runner

BASE: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "wrappers": [{"name": "select", "kwargs": {"indices": [0, 2]}}]},
    "algorithm": {
        "name": "ppo", "hidden": [7], "shared_body": True, "memory": {"kind": "gru", "size": 5}, "minibatch_size": 40,
    },
    "rollout": {"shards": 2, "envs_per_shard": 4, "steps": 40},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _single_threaded() -> None:
    single_threaded()


def acting_by(normalise: bool = False, seed: int = 0, kind: str = "gru") -> tuple[Config, Policy, Array]:
    """A policy with large random weights, so that what it remembers makes a difference."""
    config = config_of(BASE, f"normalize.obs={str(normalise).lower()}", f"algorithm.memory.kind={kind}")
    policy = make_policy(config, describe_env(config.env))
    vector = initial_weights(config, policy)
    vector += np.random.default_rng(seed).normal(0, 1.0, vector.shape).astype(np.float32)
    for name, array in unflatten(vector, policy.shapes()).items():
        if name.endswith("bias"):
            array[:] = 0  # which would decide every action
    if isinstance(policy, NormalisedPolicy):
        vector[-4:] = [0.5, -0.1, 3.0, 4.0]  # mean and scale
    policy.load(vector)
    return config, policy, vector


class Slow:
    """One episode, by torch's own cell: the probability of each action after every observation."""

    def __init__(self, policy: Policy) -> None:
        self.policy, inner = policy, without(policy)
        self.weights = {name: torch.tensor(array) for name, array in inner.arrays().items()}
        gates, self.size = self.weights["memory.hidden.weight"].shape
        kind = torch.nn.LSTMCell if gates == 4 * self.size else torch.nn.GRUCell
        self.cell: torch.nn.Module = kind(self.weights["memory.input.weight"].shape[1], self.size)
        names = {
            "weight_ih": "input.weight",
            "weight_hh": "hidden.weight",
            "bias_ih": "input.bias",
            "bias_hh": "hidden.bias",
        }
        for name, own in names.items():
            getattr(self.cell, name).data = self.weights[f"memory.{own}"]
        self.memory = torch.zeros(1, self.size * (2 if kind is torch.nn.LSTMCell else 1))

    def __call__(self, obs: Array) -> Array:
        w = self.weights
        seen = self.policy.normalised(obs[None]) if isinstance(self.policy, NormalisedPolicy) else obs[None]
        with torch.no_grad():
            x = torch.tanh(torch.tensor(seen) @ w["hidden.0.weight"].T + w["hidden.0.bias"])
            if isinstance(self.cell, torch.nn.LSTMCell):
                self.memory = torch.cat(self.cell(x, tuple(self.memory.split(self.size, 1))), dim=1)
            else:
                self.memory = self.cell(x, self.memory)
            shown = self.memory[:, : self.size]
            return torch.softmax(shown @ w["head.weight"].T + w["head.bias"], 1)[0].numpy()


# --- the network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_step_is_that_of_torchs_own(kind: str) -> None:
    _, policy, _ = acting_by(kind=kind)
    network = without(policy).network  # type: ignore[attr-defined]
    arrays = {name.removeprefix("memory."): torch.tensor(x) for name, x in policy.arrays().items()}
    layer: torch.nn.Module = (torch.nn.LSTM if kind == "lstm" else torch.nn.GRU)(7, 5)
    for name, own in (("ih", "input"), ("hh", "hidden")):
        getattr(layer, f"weight_{name}_l0").data = arrays[f"{own}.weight"]
        getattr(layer, f"bias_{name}_l0").data = arrays[f"{own}.bias"]
    rng = np.random.default_rng(1)
    obs = rng.normal(0, 3, (9, 6, 2)).astype(np.float32)
    memory = rng.normal(size=(6, network.spec.remembered)).astype(np.float32)
    began = torch.tensor(memory)[None].split(5, dim=2)
    hidden = torch.tanh(torch.tensor(obs) @ arrays["hidden.0.weight"].T + arrays["hidden.0.bias"])
    wanted = layer(hidden, began if kind == "lstm" else began[0])[0].detach()
    for t in range(9):
        outputs, memory = network.step(obs[t], memory)
        assert memory.dtype == outputs.dtype == np.float32
        np.testing.assert_allclose(memory[:, :5], wanted[t], rtol=1e-5, atol=1e-6)
        head = wanted[t] @ arrays["head.weight"].T + arrays["head.bias"]
        np.testing.assert_allclose(outputs, head, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_first_weights_are_orthogonal_in_the_memory_and_nearly_silent_in_the_head(kind: str) -> None:
    config = config_of(BASE, f"algorithm.memory.kind={kind}")
    policy = make_policy(config, describe_env(config.env))
    policy.load(initial_weights(config, policy))
    arrays = policy.arrays()
    kept = arrays["memory.hidden.weight"]
    np.testing.assert_allclose(kept.T @ kept, np.eye(5), atol=1e-6)
    assert not arrays["memory.hidden.bias"].any()
    # An LSTM begins by keeping most of what it remembers: the second of its gates lets by 0.73.
    assert arrays["memory.input.bias"].tolist() == ([0] * 5 + [1] * 5 + [0] * 10 if kind == "lstm" else [0] * 15)
    assert np.abs(arrays["head.weight"]).max() <= 0.011


# --- who acts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "remembered"), [("gru", 5), ("lstm", 10)])
def test_what_is_remembered_of_a_shard_is_forgotten_where_an_episode_ends(kind: str, remembered: int) -> None:
    """A fragment and the snapshot behind it against one slow episode after the other, over three fragments."""
    config, policy, vector = acting_by(kind=kind)
    runner = Runner(config.env, config.rollout, 1, policy)
    slow = [Slow(policy) for _ in range(4)]
    ends = 0
    for k in range(3):
        report, fragment = runner.rollout(0, k, Weights(0, vector), "live" if k else None)
        began = np.concatenate([s.memory.numpy() for s in slow])
        assert fragment.extras["memory"].shape == (1, 4, remembered)
        np.testing.assert_allclose(fragment.extras["memory"][0], began, rtol=1e-4, atol=1e-5)
        for t in range(40):
            for n in range(4):
                chosen = slow[n](fragment.obs[t, n])[fragment.action[t, n]]
                assert fragment.extras["log_prob"][t, n] == pytest.approx(np.log(chosen), abs=1e-4)
                if fragment.ended[t, n]:
                    slow[n] = Slow(policy)
        ends += fragment.ended.sum()
        assert report.after.memory is not None
        np.testing.assert_allclose(
            report.after.memory, np.concatenate([s.memory.numpy() for s in slow]), rtol=1e-4, atol=1e-5
        )
    assert ends > 5
    assert np.abs(report.after.memory).max() > 0.1


def test_a_snapshot_brings_it_to_another_runner() -> None:
    """What older weights remembered cannot be had by playing the episode again."""
    config, policy, vector = acting_by()
    other = vector + np.random.default_rng(5).normal(0, 0.3, vector.shape).astype(np.float32)
    one, two = (Runner(config.env, config.rollout, 1, policy) for _ in range(2))
    first, _ = one.rollout(0, 0, Weights(0, vector), None)
    assert first.actions is not None
    actions = first.actions.swapaxes(0, 1)[np.arange(40) >= 40 - first.after.lengths[:, None]]
    first.after.env["action"] = actions
    report, wanted = one.rollout(0, 1, Weights(1, other), "live")
    again, found = two.rollout(0, 1, Weights(1, other), first.after)
    assert same(found.obs, wanted.obs) and same(found.extras["log_prob"], wanted.extras["log_prob"])
    assert same(found.extras["memory"], wanted.extras["memory"]) and wanted.extras["memory"].any()
    assert again.after.memory is not None and report.after.memory is not None
    assert same(again.after.memory, report.after.memory)


@pytest.mark.parametrize("normalise", [False, True])
def test_evaluator_player_and_video_do_what_the_slow_player_does(
    normalise: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy actions of several episodes, one after the other in the same env copy."""
    config, policy, vector = acting_by(normalise, seed=6)
    monkeypatch.setattr(evaluator, "COPIES", 1)
    found = Evaluator(config.env, 1, policy).evaluate(Weights(0, vector), 0, 5, True, 0)

    shard = make_shard(config.env, derive(1, "evaluation", 0), 0, 1, policy.obs_layout)
    write_model(tmp_path, policy, vector, {"env": config.env.model_dump(mode="json")})
    player, slow, lengths, steps = load_policy(tmp_path), Slow(policy), [], 0
    assert isinstance(without(player.policy), RecurrentPolicy)
    forgetful, differ = Player(policy, {}), 0
    while len(lengths) < 5:
        obs = shard.obs[0].astype(np.float32)
        best = int(slow(obs).argmax())
        assert player.act(obs) == best
        forgetful.reset()
        differ += forgetful.act(obs) != best
        step = shard.step(np.array([best]))
        steps += 1
        if (step.terminated | step.truncated)[0]:
            lengths.append(steps)
            slow, steps = Slow(policy), 0
            player.reset()
    assert (found.lengths.mean, found.lengths.min, found.lengths.max) == (np.mean(lengths), min(lengths), max(lengths))
    assert differ > 0  # else nothing above needed a memory

    game = make_env(config.env)
    moments = list(play_episodes(by_policy(policy, 0), game, 0, 3))
    game.close()
    game = make_env(config.env)
    for episode in range(3):
        obs, _ = game.reset(seed=derive(0, "play episode", episode))
        slow = Slow(policy)
        for moment in [m for m in moments if m.episode == episode and m.step > 0]:
            assert moment.action == slow(obs).argmax()
            obs, *_ = game.step(moment.action)
    game.close()


def test_a_batch_of_a_player_is_of_the_same_episodes_until_it_is_reset() -> None:
    _, policy, _ = acting_by()
    player = Player(policy, {})
    player.act(np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"2 observations, after 3 of the step before.*Call reset\(\)"):
        player.act(np.zeros((2, 2), np.float32))
    player.reset()
    assert player.act(np.zeros((2, 2), np.float32)).shape == (2,)


def test_by_itself_the_policy_acts_as_on_a_first_observation() -> None:
    _, policy, _ = acting_by(normalise=True)
    obs = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    acting = Acting(policy, 50)
    noise = policy.draw(np.random.default_rng(1), 1, 50)[0]
    action, extras = acting.act(obs, noise)
    again, others = policy.act(obs, noise)
    assert same(action, again) and same(extras["log_prob"], others["log_prob"])
    assert not same(acting.act(obs, noise)[1]["log_prob"], extras["log_prob"])  # now it remembers
    acting.forget(np.ones(50, bool))
    assert same(acting.greedy(obs), policy.greedy(obs))
