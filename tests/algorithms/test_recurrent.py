"""Sequences that are learnt from whole, against a slow, obvious player; and that a memory is of use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import config_of, run_trainer
from test_same_bits import MEMORY
from torch import Tensor, nn
from toys import RECALL, settings

from distrl.algorithms.recurrent import Recurrent
from distrl.envs.make import describe_env
from distrl.execution.local import LocalExecution
from distrl.fragments import true_successors
from distrl.learning.losses import vtrace
from distrl.learning.slices import Slices
from distrl.registry import algorithm_module
from distrl.seeding import stream
from distrl.settings import EnvSettings, RolloutSettings
from distrl.types import Array, Fragment, Weights
from distrl.workers.runner import Runner

CPU = torch.device("cpu")
SHAPE = RolloutSettings(shards=2, envs_per_shard=3, steps=10)


def make(
    name: str, env: EnvSettings, shape: RolloutSettings = SHAPE, seed: int = 1, **changes: Any
) -> tuple[Any, Runner]:
    plain = {"name": name, "hidden": [9], "shared_body": True, "memory": {"size": 6}, "max_grad_norm": None}
    module = algorithm_module(name)
    options = module.Settings.model_validate(plain | changes)
    policy = module.make_policy(options, describe_env(env))
    policy.load(module.initial_weights(options, policy, seed))
    return module.make(options, policy, seed, CPU), Runner(env, shape, seed, policy)


def roll(algorithm: Any, runner: Runner, k: int, shape: RolloutSettings = SHAPE) -> list[Fragment]:
    weights = Weights(k, algorithm.weights())
    return [runner.rollout(shard, k, weights, "live" if k else None)[1] for shard in range(shape.shards)]


class Slow:
    """What an update sees, an env copy and a step at a time, by torch's own cell; the parameters are the algorithm's."""

    def __init__(self, algorithm: Any) -> None:
        self.actor, self.head = algorithm.actor, algorithm.critic.head
        own, self.size = self.actor.memory, self.actor.spec.memory
        kind = nn.LSTMCell if self.actor.spec.cell == "lstm" else nn.GRUCell
        self.cell: nn.Module = kind(own.input.in_features, self.size)
        for name, layer in (("ih", own.input), ("hh", own.hidden)):
            delattr(self.cell, f"weight_{name}")
            delattr(self.cell, f"bias_{name}")
            setattr(self.cell, f"weight_{name}", layer.weight)
            setattr(self.cell, f"bias_{name}", layer.bias)

    def see(self, obs: Array, memory: Tensor) -> Tensor:
        features = self.actor.body(torch.tensor(obs)[None])
        if isinstance(self.cell, nn.LSTMCell):
            return torch.cat(self.cell(features, (memory[:, : self.size], memory[:, self.size :])), dim=1)
        after: Tensor = self.cell(features, memory)
        return after

    def __call__(self, fragments: list[Fragment]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Logits [T, C, A], values [T, C], of what comes after each step but an end [T, C], and of last observations."""
        logits, values, after, final = [], [], [], []
        for f in fragments:
            last: dict[tuple[int, int], Tensor] = {}
            number = {tuple(place): i for i, place in enumerate(np.argwhere(f.ended).tolist())}
            for n in range(f.ended.shape[1]):
                memory = torch.tensor(f.extras["memory"][0, n])[None]
                own: list[tuple[Tensor, Tensor]] = []
                for t in range(len(f.ended) + 1):
                    memory = self.see(f.obs[t, n], memory)
                    shown = memory[:, : self.size]
                    own.append((self.actor.outputs(shown)[0], self.head(shown)[0, 0]))
                    if t < len(f.ended) and f.ended[t, n]:
                        behind = self.see(f.final_obs[number[t, n]], memory)
                        last[t, n] = self.head(behind[:, : self.size])[0, 0]
                        memory = torch.zeros_like(memory)
                logits.append(torch.stack([x for x, _ in own[:-1]]))
                values.append(torch.stack([v for _, v in own[:-1]]))
                after.append(torch.stack([v for _, v in own[1:]]))
            final += [last[place] for place in sorted(last)]
        return torch.stack(logits, 1), torch.stack(values, 1), torch.stack(after, 1), final


@pytest.mark.parametrize(("name", "kind"), [("ppo", "gru"), ("a2c", "gru"), ("a2c", "lstm")])
@pytest.mark.parametrize("env", [settings("CartPole-v1", 9), settings(RECALL, 4, wait=7), settings(RECALL, wait=2)])
def test_what_an_update_begins_with_is_what_the_slow_player_sees(name: str, kind: str, env: EnvSettings) -> None:
    """Values of every step, of what it led to and of last observations, log-probabilities and advantages; ends of both kinds."""
    more: dict[str, Any] = {"minibatch_size": 10} if name == "ppo" else {}
    algorithm, runner = make(name, env, memory={"kind": kind, "size": 6}, **more)
    with torch.no_grad():
        algorithm.actor.head.weight.mul_(50)
    first = roll(algorithm, runner, 0)
    with torch.no_grad():  # weights move on, so that what the runner remembers is of older ones than the learner's
        algorithm.parameters["actor"].vector.add_(0.05 * torch.randn(algorithm.parameters["actor"].vector.shape))
    fragments = roll(algorithm, runner, 1)
    assert any(f.terminated.any() or f.truncated.any() for f in fragments) and first[0].ended.any()
    assert all(f.extras["memory"].any() for f in fragments)
    with torch.no_grad():
        algorithm.parameters["actor"].vector.add_(0.05 * torch.randn(algorithm.parameters["actor"].vector.shape))
    batch = algorithm.batch(fragments)
    with torch.no_grad():
        logits, values, after, final = Slow(algorithm)(fragments)
    action = torch.tensor(np.concatenate([f.action for f in fragments], axis=1))
    log_prob = torch.log_softmax(logits, 2).gather(2, action[..., None])[..., 0]
    np.testing.assert_allclose(batch.value, values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.began.view(10, 6), log_prob, rtol=1e-4, atol=1e-5)
    ended, reward, terminated = (
        np.concatenate([getattr(f, key) for f in fragments], axis=1) for key in ("ended", "reward", "terminated")
    )
    successor = true_successors(after.numpy(), torch.stack(final).numpy() if final else np.zeros(0), fragments)
    successor[terminated] = 0
    age = (batch.began - batch.acted).numpy().reshape(10, 6) * (name == "a2c")
    wanted = vtrace(age, reward, values.numpy(), successor, ended, 0.99, 0.95)
    np.testing.assert_allclose(batch.advantage, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "minibatches", "slices"), [("gru", 1, 1), ("gru", 3, 1), ("lstm", 3, 2), ("gru", 1, 4)]
)
def test_the_gradient_is_that_of_the_slow_player(kind: str, minibatches: int, slices: int) -> None:
    """Of the first minibatch of an update, whole, through all that is remembered."""
    env = settings("CartPole-v1", 7)
    changes = {"memory": {"kind": kind, "size": 6}, "value_coef": 0.7, "entropy_coef": 0.1, "normalize_value": False}
    algorithm, runner = make("a2c", env, minibatches=minibatches, **changes)
    algorithm.slices = Slices(slices)
    with torch.no_grad():
        algorithm.actor.head.weight.mul_(50)
    roll(algorithm, runner, 0)
    fragments = roll(algorithm, runner, 1)
    batch = algorithm.batch(fragments)
    copies = np.arange(6)
    if minibatches > 1:
        copies = batch.order(stream(1, "minibatch", 1), 20)[:2]
    logits, values, _, _ = Slow(algorithm)(fragments)
    logits, values = logits[:, copies], values[:, copies]
    action = torch.tensor(np.concatenate([f.action for f in fragments], axis=1))[:, copies]
    advantage, target = (torch.tensor(x[:, copies]).float() for x in (batch.advantage, batch.target))
    chosen = torch.distributions.Categorical(logits=logits)
    loss = -(chosen.log_prob(action) * advantage).mean() - 0.1 * chosen.entropy().mean()
    loss = loss + 0.7 * 0.5 * ((values - target) ** 2).mean()
    parameters = [*algorithm.actor.parameters(), *algorithm.critic.head.parameters()]
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    seen: list[Tensor] = []
    step = algorithm.optimizer.step

    def spy(rates: dict[str, float], longer: list[Tensor | None]) -> None:
        seen.append(torch.cat([p.grad.clone() for p in algorithm.parameters.values()]))
        step(rates, longer)

    algorithm.optimizer.step = spy
    algorithm.update(fragments, 1, 0.0)
    assert len(seen) == minibatches
    np.testing.assert_allclose(seen[0], wanted, rtol=1e-3, atol=1e-5)
    named = dict(algorithm.actor.named_parameters())
    assert all(named[f"memory.{x}"].grad is not None for x in ("hidden.weight", "input.weight"))
    assert wanted.abs().max() > 0.01


def test_minibatches_are_of_whole_sequences_each_once() -> None:
    algorithm, runner = make("ppo", settings("CartPole-v1"), minibatch_size=20)
    batch = algorithm.batch(roll(algorithm, runner, 0))
    rows = batch.order(np.random.default_rng(0), 20)
    assert sorted(rows) == list(range(60))
    copies = set()
    for part in np.split(rows, 3):
        steps, columns = part.reshape(10, 2) // 6, part.reshape(10, 2) % 6
        assert (steps == np.arange(10)[:, None]).all() and (columns == columns[0]).all()
        copies |= set(columns[0].tolist())
    assert copies == set(range(6))
    assert not (rows == batch.order(np.random.default_rng(1), 20)).all()


@pytest.mark.parametrize(
    "base", [MEMORY, {**MEMORY, "normalize": {"obs": True, "reward": True}}], ids=["as it is", "normalised"]
)
def test_without_lag_learner_and_runner_remember_the_same(base: dict[str, Any], tmp_path: Any) -> None:
    """Over fragments, updates and ends of episodes: what began an update is what acted, but for rounding."""

    def stale(lag: int) -> list[float]:
        config = config_of(base, f"schedule.lag={lag}", "algorithm.lr=0.01")
        rows = run_trainer(config, LocalExecution(), tmp_path / str(lag)).observer.rows
        return [abs(row["train/staleness_kl"]) for row in rows if "train/staleness_kl" in row]

    rounding = stale(0)
    assert len(rounding) == 12
    assert max(rounding) < 1e-7
    assert max(stale(1)) > 1e-4


@pytest.mark.parametrize(("name", "kind"), [("ppo", "gru"), ("a2c", "gru"), ("ppo", "lstm")])
def test_who_remembers_recalls_and_who_does_not_cannot(name: str, kind: str) -> None:
    env, shape = settings(RECALL), RolloutSettings(shards=2, envs_per_shard=16, steps=15)

    def paid(**changes: Any) -> float:
        more = {"minibatch_size": 240} if name == "ppo" else {"optimizer": "adam", "minibatches": 2}
        algorithm, runner = make(name, env, shape, lr=5e-3, hidden=[16], **more, **changes)
        assert isinstance(algorithm, Recurrent) == (changes["memory"] is not None)
        shares = []
        for k in range(60):
            fragments = roll(algorithm, runner, k, shape)
            algorithm.update(fragments, k, 0.0)
            shares.append(sum(f.reward.sum() for f in fragments) / sum(f.ended.sum() for f in fragments))
        return float(np.mean(shares[-5:]))

    assert paid(memory={"kind": kind, "size": 6}) > 0.9
    assert paid(memory=None) < 0.65
