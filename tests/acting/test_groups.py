"""Several policies as one: each does for its agents what it would do alone, and learns from what these did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from toys import same

from distrl import load_policy, train
from distrl.acting.make import initial_weights, make_policy, of_member
from distrl.acting.policies import from_description
from distrl.acting.team import TeamPolicy
from distrl.config import load_config
from distrl.envs.make import describe_env
from distrl.envs.multi import grouped
from distrl.errors import UserError
from distrl.layouts import narrowed, widened
from distrl.learning.drawn import join
from distrl.learning.normalise import make_algorithm
from distrl.models.evaluate import load_to_play
from distrl.seeding import stream
from distrl.settings import Config
from distrl.tools.export import export
from distrl.types import Fragment, Weights
from distrl.workers.learner import Learner
from distrl.workers.replay import Replay
from distrl.workers.replays import ReplayOfGroups
from distrl.workers.runner import Runner

SPEAKER = {"id": "mpe2/simple_speaker_listener_v4", "kwargs": {"max_cycles": 9}}
BASE: dict[str, Any] = {
    "env": SPEAKER,
    "policies": "per_agent",
    "algorithm": {"name": "ppo", "hidden": [16], "minibatch_size": 32},
    "rollout": {"shards": 1, "envs_per_shard": 4, "steps": 16},
    "stop": {"env_steps": 64},
    "evaluation": {"episodes": 2, "final_episodes": 3},
    "track": {"mlflow": False},
}
BOXES = BASE | {"env": {"id": "mpe2/simple_adversary_v3", "kwargs": {"max_cycles": 9, "continuous_actions": True}}}


def team_of(data: dict[str, Any]) -> tuple[Config, TeamPolicy]:
    config = load_config(data)
    policy = make_policy(config, grouped(describe_env(config.env), config.policies))
    assert isinstance(policy, TeamPolicy)
    policy.load(initial_weights(config, policy))
    return config, policy


def rolled(config: Config, policy: TeamPolicy) -> Fragment:
    _, fragment = Runner(config.env, config.rollout, 1, policy).rollout(
        0, 0, Weights(0, initial_weights(config, policy)), None
    )
    return fragment


def test_bytes_come_back_as_what_they_were() -> None:
    rng = np.random.default_rng(0)
    for array in (
        rng.random((5, 3)),
        rng.integers(9, size=7),
        rng.random((4, 2, 2)).astype(np.float32),
        np.zeros((0, 3)),
    ):
        again = narrowed(widened(array, 96), array.shape[1:], str(array.dtype))
        assert same(again, array)


@pytest.mark.parametrize("data", [BASE, BOXES], ids=["discrete", "boxes"])
def test_each_member_acts_and_learns_as_if_it_were_alone(data: dict[str, Any]) -> None:
    config, policy = team_of(data)
    fragment = rolled(config, policy)
    agents = policy.agents
    noise = policy.draw(stream(1, "action", 0, 0), 16, 4 * len(agents))
    for number, member in enumerate(policy.members):
        own = policy.fragment_of(number, fragment)
        assert own.agents == 1 and own.obs.shape[:2] == (17, 4) and own.env_steps == 64
        for t in range(16):
            action, extra = member.policy.act(own.obs[t], noise[t][number])
            assert same(action, own.action[t]) and same(extra["log_prob"], own.extras["log_prob"][t])
            assert same(extra.get("raw_action", action), own.raw_action[t])
        assert len(own.final_obs) == own.ended.sum() == 4
        place = agents.index(member.agents[0])
        assert same(own.reward, fragment.reward[:, place :: len(agents)])
    cpu = torch.device("cpu")
    together = make_algorithm(config, policy, cpu)
    told, vector = together.update([fragment], 0, 0.0), together.weights()  # type: ignore[attr-defined]
    for number, (member, weights) in enumerate(zip(policy.members, policy.split(vector), strict=True)):
        alone = make_algorithm(of_member(config, number), member.policy, cpu)
        metrics = alone.update([policy.fragment_of(number, fragment)], 0, 0.0)  # type: ignore[attr-defined]
        assert same(alone.weights(), weights)
        assert told[f"{member.name}/policy_loss"] == metrics["policy_loss"]


def test_members_begin_with_weights_of_their_own_and_are_described_whole() -> None:
    config, policy = team_of(BASE | {"env": {"id": "mpe2/simple_spread_v3", "kwargs": {"N": 2}}})
    one, two = policy.split(initial_weights(config, policy))
    assert len(one) == len(two) and not same(one, two)
    again = from_description(policy.describe())
    again.load(initial_weights(config, policy))
    obs = rolled(config, policy).obs[3]
    assert same(again.greedy(obs), policy.greedy(obs)) and again.shapes() == policy.shapes()
    wrong = policy.describe() | {"agents": ["agent_0"]}
    with pytest.raises(ValueError, match="each once"):
        from_description(wrong)


def test_each_member_learns_action_values_as_if_it_were_alone() -> None:
    """Two chasers and who is chased, by two replays: what is drawn, learnt and told of priorities."""
    env = {"id": "mpe2/simple_tag_v3", "kwargs": {"max_cycles": 9, "num_adversaries": 2, "num_obstacles": 1}}
    replay = {"capacity": 3000, "start": 90, "samples_per_insert": 2, "prioritized": True, "shards": 2}
    data = {
        "env": env,
        "policies": {"chasers": ["adversary_*"], "prey": ["agent_0"]},
        "algorithm": {"name": "dqn", "hidden": [16], "batch_size": 16, "n_step": 2},
        "rollout": {"shards": 2, "envs_per_shard": 4, "steps": 16},
        "replay": replay,
    }
    config, policy = team_of(BASE | data)
    replays, weights = (
        [ReplayOfGroups(config, number, None, policy) for number in range(2)],
        initial_weights(config, policy),
    )
    learner, runner = Learner(config, policy, None), Runner(config.env, config.rollout, 1, policy)
    fragments = [runner.rollout(shard, 0, Weights(0, weights), None)[1] for shard in range(2)]
    for held, fragment in zip(replays, fragments, strict=True):
        held.add(fragment)
    drawn = [held.sample(0, 128) for held in replays]
    updates = [(256 - 60) * 2 // 16, (128 - 30) * 2 // 16]
    assert [[batch.key.shape[0] for batch in of_replay] for of_replay in drawn] == [updates] * 2
    _, metrics = learner.learn(0, 0, *drawn)
    vectors = policy.split(learner.algorithm.weights())
    for group, member in enumerate(policy.members):
        of_group = config.with_(
            policies="shared",
            **{"replay.capacity": 3000 * len(member.agents) // 3, "replay.start": 30 * len(member.agents)},
        )
        alone = of_member(of_group, group)
        rings = [Replay(alone, number, None, len(member.agents)) for number in range(2)]
        for ring, fragment in zip(rings, fragments, strict=True):
            ring.add(policy.fragment_of(group, fragment))
        batches = [ring.sample(0, 128) for ring in rings]
        algorithm = make_algorithm(alone, member.policy, torch.device("cpu"))
        told, errors = algorithm.learn(join(batches), 128, 0.0)  # type: ignore[attr-defined]
        assert same(algorithm.weights(), vectors[group]) and metrics[f"{member.name}/loss"] == told["loss"]
        for number in range(2):
            seen, new = drawn[number][group], learner.priorities(number)[group]  # type: ignore[index]
            assert same(batches[number].obs, seen.obs) and same(batches[number].reward, seen.reward)
            assert same(new.td_error, errors[:, 8 * number : 8 * (number + 1)].ravel())
    for number, held in enumerate(replays):
        before = [part.tree.total for part in held.parts]
        assert held.update_priorities(learner.priorities(number)) == 8 * sum(updates)  # type: ignore[arg-type]
        assert all(part.tree.total != total for part, total in zip(held.parts, before, strict=True))
    again = ReplayOfGroups(config, 0, replays[0].state(), policy)
    for one, other in zip(again.sample(1, 256), replays[0].sample(1, 256), strict=True):
        assert same(one.obs, other.obs)


def test_a_run_of_groups_and_what_is_done_with_it(tmp_path: Any) -> None:
    result = train(load_config(BASE | {"run_dir": str(tmp_path / "run")}), local=True, quiet=True)
    assert set(result.data["evaluation"]["agents"]) == {"speaker_0", "listener_0"}
    player = load_policy(result.run_dir)
    policy, _, _ = load_to_play(result.run_dir)
    assert isinstance(policy, TeamPolicy)
    obs, _ = player.make_env().reset(seed=0)
    for agent, seen in obs.items():
        assert 0 <= player.act(seen, agent=agent) < {"speaker_0": 3, "listener_0": 5}[agent]
    with pytest.raises(UserError, match="Take --agent speaker_0 or --agent listener_0"):
        export(result.run_dir, None, tmp_path / "out")
    for name in ("onnx", "safetensors", "mlflow"):
        where, told = export(result.run_dir, name, None, agent="listener_0")
        assert where.stem.endswith("-listener_0") and told == ["action: 0 of 1,000 actions differ"]
    with pytest.raises(UserError, match="holds the policy of listener_0 alone"):
        load_to_play(result.run_dir / "exported-listener_0.safetensors")
    with pytest.raises(UserError, match=r"--agent is 'listener'.*Did you mean 'listener_0'"):
        export(result.run_dir, "onnx", tmp_path / "out", agent="listener")
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(result.run_dir / "policy-listener_0.onnx"))
    inputs = {"observation": obs["listener_0"][None], "agent": np.ones((1, 1), np.float32)}
    assert session.run(None, inputs)[0][0] == player.act(obs["listener_0"], agent="listener_0")


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "nobody": (
        {"policies": {"a": ["speaker_*"], "b": ["listner_0"]}},
        "'listner_0', which is no agent .* Did you mean",
    ),
    "twice": ({"policies": {"a": ["*_0"], "b": ["listener_0"]}}, "policies.a and policies.b both claim 'listener_0'"),
    "empty": ({"policies": {"a": ["*"], "b": []}}, "policies.b has no agents"),
    "left out": ({"policies": {"a": ["speaker_0"]}}, "have no group for 'listener_0'"),
    "unlike": ({"policies": {"a": ["*"]}}, "agents whose observations differ"),
    "shared": ({"policies": "shared"}, "set policies=per_agent, or give groups"),
    "alone": ({"env": {"id": "CartPole-v1"}}, "CartPole-v1 has one alone"),
    "memory": (
        {"algorithm": {**BASE["algorithm"], "memory": {}, "shared_body": True}},
        "a policy of its own, which algorithm.memory=gru has not. Set policies=shared, or algorithm.memory=null",
    ),
    "settings": ({"policies": {"a": {"lr": 1}}}, "a list of agents for each policy, .*; all else is the same for all"),
    "no list": ({"policies": {"a": "*"}}, "a list of agents for each policy"),
    "misspelt": ({"policies": "per_agnt"}, "policies is 'per_agnt': it is shared, per_agent"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_groups_that_cannot_be(name: str) -> None:
    changes, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        team_of(BASE | changes)
