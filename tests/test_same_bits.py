"""The promise: the same run gives the same weights, whatever runs it and whatever is lost on the way."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import CARTPOLE, DQN, HASHED, LUNARLANDER, TAXI, Outcome, Recorder, config_of, run_trainer
from faulty import FaultyExecution
from toys import WALK

import distrl.workers.versions
from distrl.envs.multi import Team
from distrl.execution.cluster import RayExecution
from distrl.execution.local import LocalExecution
from distrl.models.store import list_checkpoints
from distrl.types import Snapshot, Weights
from distrl.workers.runner import Runner
from distrl.workers.versions import Changes, Message

OWN = {**CARTPOLE, "algorithm": {**CARTPOLE["algorithm"], "network": "own_nets:Small"}}
A2C = {**CARTPOLE, "algorithm": {"name": "a2c", "hidden": [32, 32]}}
WRAPPED = {
    **DQN,
    "env": {"id": "CartPole-v1", "max_episode_steps": 60, "wrappers": ["clip_reward", "frame_stack"]},
    "replay": {**DQN["replay"], "on_device": True},
}
PENDULUM = {  # normalised: running statistics, and returns that go on from fragment to fragment
    **CARTPOLE,
    "env": {"id": "Pendulum-v1", "max_episode_steps": 40},
    "normalize": {"obs": True, "reward": True},
}
MEMORY = {  # what is remembered goes from fragment to fragment, and to whoever rebuilds a shard by its actions
    **CARTPOLE,
    "env": {"id": "CartPole-v1", "wrappers": [{"name": "select", "kwargs": {"indices": [0, 2]}}]},
    "algorithm": {**CARTPOLE["algorithm"], "hidden": [32], "shared_body": True, "memory": {"kind": "lstm", "size": 16}},
}
SPREAD = {  # several agents, who share a policy, and a critic that sees all of them
    **CARTPOLE,
    "algorithm": {**CARTPOLE["algorithm"], "critic": "central"},
    "env": {"id": "mpe2/simple_spread_v3", "kwargs": {"N": 2, "max_cycles": 10}},
    "rollout": {"shards": 4, "envs_per_shard": 2, "steps": 16},
    "normalize": {"obs": True, "reward": True},
    "stop": {"env_steps": 128 * 12},
}
CROWD = {**DQN, "env": {"id": "teams:Crowd", "kwargs": {"masks": True}}}  # who come and leave
VDN = {**DQN, "env": SPREAD["env"], "algorithm": {**DQN["algorithm"], "mixer": "vdn"}}  # who learn as one
APART = {  # each of whom has a policy of its own, and one sees more than the others
    **CARTPOLE,
    "env": {"id": "teams:Crowd", "kwargs": {"masks": True, "other": True}},
    "policies": {"ab": ["[ab]"], "c": ["c"]},
    "normalize": {"obs": True, "reward": True},
}
LEAGUE = {  # in turns, against oneself now and earlier, at random, and a function, from seats that are drawn
    **CARTPOLE,
    "env": {"id": "classic/tictactoe_v3", "vectorize": "single"},
    "opponents": {
        "games": {"self": 2, "league": 2, "random": 1, "teams:first_allowed": 1},
        "league": {"size": 3, "add_every": 2},
        "evaluation": ["random", "earlier"],
    },
}
CROWD["replay"] = {**DQN["replay"], "capacity": 4800}
QS_APART = {
    **CROWD,
    **{key: APART[key] for key in ("env", "policies")},
}  # action values of their own, each from its own steps
DYING = {  # archers and knights, whom zombies reach after some hundred steps, one after the other
    **CARTPOLE,
    "env": {
        "id": "butterfly/knights_archers_zombies_v11",
        "kwargs": {"spawn_delay": 3, "max_zombies": 40, "max_cycles": 150},
    },
    "rollout": {"shards": 3, "envs_per_shard": 1, "steps": 32},
    "algorithm": {**CARTPOLE["algorithm"], "hidden": [8], "minibatch_size": 96},
    "stop": {"env_steps": 96 * 10},
    "checkpoint": {"every": 2},
    "evaluation": {"every": 0, "final_episodes": 1},
}
BASES = {
    "cartpole": CARTPOLE, "a2c": A2C, "lunarlander": LUNARLANDER, "pendulum": PENDULUM, "taxi": TAXI, "hashed": HASHED, "dqn": DQN,
    "wrapped": WRAPPED, "own network": OWN, "memory": MEMORY,
    "spread": SPREAD, "vdn": VDN, "crowd": CROWD, "league": LEAGUE, "apart": APART, "qs apart": QS_APART,
}  # fmt: skip
SPACES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ppo, a dict, box actions": (CARTPOLE, {"obs": "dict", "action": "box"}),
    "ppo, nested actions, a mask in the info": (CARTPOLE, {"action": "dict", "mask": "info"}),
    "ppo, a masked dict": (CARTPOLE, {"obs": "dict", "mask": "dict"}),
    "dqn, a masked dict": (DQN, {"obs": "dict", "mask": "dict"}),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Outcome]:
    """An undisturbed local run of each task and lag."""
    return {
        (task, lag): run_trainer(
            config_of(base, f"schedule.lag={lag}"), LocalExecution(), tmp_path_factory.mktemp("run")
        )
        for task, base in BASES.items()
        for lag in (0, 1)
    }


def test_the_seed_and_the_lag_matter(reference: dict[tuple[str, int], Outcome], tmp_path: Path) -> None:
    """Else the equalities below would say little."""
    other = run_trainer(config_of(CARTPOLE, "seed=2"), LocalExecution(), tmp_path)
    assert len({other.sha256, reference["cartpole", 0].sha256, reference["cartpole", 1].sha256}) == 3


def test_worlds_in_arrays_are_as_good_as_their_own_envs(
    reference: dict[tuple[str, int], Outcome], tmp_path: Path
) -> None:
    own = run_trainer(config_of(SPREAD, "schedule.lag=1", "env.vectorize=single"), LocalExecution(), tmp_path)
    assert own.sha256 == reference["spread", 1].sha256
    in_arrays = config_of(LEAGUE, "schedule.lag=1", "env.vectorize=auto")
    assert run_trainer(in_arrays, LocalExecution(), tmp_path / "league").facts == reference["league", 1].facts
    others = {"games": {"self": 1, "league": 1, "distrl.envs.connect_four:look_ahead": 1}, "evaluation": ["random"]}
    boards = {**LEAGUE, "env": {"id": "classic/connect_four_v3"}, "opponents": others, "stop": {"env_steps": 256 * 6}}
    runs = [
        run_trainer(config_of(boards, f"env.vectorize={how}"), LocalExecution(), tmp_path / how)
        for how in ("auto", "single")
    ]
    assert runs[0].facts == runs[1].facts


@pytest.mark.parametrize("task", ["wrapped", "vdn", "dqn"])
def test_where_the_learner_looks_observations_up_does_not_matter(
    task: str, reference: dict[tuple[str, int], Outcome], tmp_path: Path
) -> None:
    other = config_of(BASES[task], "schedule.lag=1", f"replay.on_device={str(task != 'wrapped').lower()}")
    assert run_trainer(other, LocalExecution(), tmp_path).facts == reference[task, 1].facts


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("task", BASES)
@pytest.mark.parametrize("seed", range(3))
def test_out_of_order_and_lossy_execution(
    task: str, lag: int, seed: int, reference: dict[tuple[str, int], Outcome], tmp_path: Path
) -> None:
    execution = FaultyExecution(seed, losses=12)
    config = config_of(BASES[task], f"schedule.lag={lag}")
    outcome = run_trainer(config, execution, tmp_path, runners=1 + seed)
    assert len(execution.lost) == 12 - execution.losses > 0
    assert outcome.trainer.recovery.restarts >= 1
    assert outcome.facts == reference[task, lag].facts


@pytest.mark.parametrize(
    ("task", "kinds"),
    [("cartpole", {"runner", "learner", "evaluator"}), ("dqn", {"runner", "learner", "replay"})],
)
def test_every_kind_of_worker_is_lost_somewhere_above(task: str, kinds: set[str], tmp_path: Path) -> None:
    """The lossy execution is no test if it spares one."""
    lost: set[str] = set()
    for seed in range(6):
        execution = FaultyExecution(seed, losses=12)
        run_trainer(config_of(BASES[task]), execution, tmp_path / str(seed), runners=2)
        lost |= set(execution.lost)
    assert lost >= kinds


@pytest.mark.parametrize(
    ("task", "lag"),
    [
        ("cartpole", 0),
        ("cartpole", 1),
        ("pendulum", 1),
        ("memory", 0),
        ("memory", 1),
        ("crowd", 1),
        ("league", 1),
        ("apart", 1),
        ("qs apart", 1),
        ("taxi", 1),
        ("hashed", 0),
        ("dqn", 0),
        ("dqn", 1),
    ],
)
def test_interrupted_and_resumed_at_every_place(
    task: str, lag: int, reference: dict[tuple[str, int], Outcome], tmp_path: Path
) -> None:
    """Stop at the n-th question whether to stop, for growing n; each time go on from the checkpoint that was left."""
    config = config_of(BASES[task], f"schedule.lag={lag}")
    for patience in (1, 2, 3, 5, 7, 11):
        run_dir, rows, start = tmp_path / str(patience), [], None
        for _ in range(100):
            asked = iter(range(patience))
            outcome = run_trainer(
                config,
                LocalExecution(),
                run_dir,
                start=start,
                interrupted=lambda asked=asked: None if next(asked, None) is not None else "interrupted",
            )
            rows += outcome.observer.rows
            start = list_checkpoints(run_dir)[-1]
            if outcome.trainer.progress.stopped == "env_steps":
                break
        else:
            pytest.fail("the run never ended")
        outcome.observer.rows = rows
        assert outcome.facts == reference[task, lag].facts


@pytest.mark.parametrize("task", BASES)
@pytest.mark.parametrize("runners", [1, 2, 3])
def test_on_ray(
    task: str, runners: int, reference: dict[tuple[str, int], Outcome], ray_execution: RayExecution, tmp_path: Path
) -> None:
    outcome = run_trainer(config_of(BASES[task]), ray_execution, tmp_path, runners)
    assert outcome.trainer.recovery.restarts == 0
    assert outcome.facts == reference[task, 1].facts


@pytest.mark.parametrize("name", SPACES)
def test_whatever_is_seen_and_done(name: str, ray_execution: RayExecution, tmp_path: Path) -> None:
    """On one runner and two of Ray, and where calls are lost, so that shards are rebuilt from their journals."""
    base, kwargs = SPACES[name]
    env = {"id": f"toys:{WALK}", "max_episode_steps": 20, "kwargs": kwargs}
    config = config_of(base | {"env": env, "stop": {"env_steps": 256 * 6}})
    local = run_trainer(config, LocalExecution(), tmp_path / "local")
    lossy = FaultyExecution(1, losses=12)
    assert run_trainer(config, lossy, tmp_path / "lossy", runners=2).facts == local.facts
    assert lossy.lost
    for runners in (1, 2):
        outcome = run_trainer(config, ray_execution, tmp_path / str(runners), runners)
        assert outcome.facts == local.facts


def kill(name: str) -> None:
    """SIGKILL to a Ray actor of the given class, as soon as there is one."""
    for _ in range(100):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(f"ray::{name}"):
                    process.send_signal(signal.SIGKILL)
                    return
        time.sleep(0.1)  # its process may still be starting
    raise AssertionError(f"no {name} runs")


@pytest.mark.parametrize(
    ("task", "victims"),
    [
        ("cartpole", {2: "Runner", 7: "Runner"}),
        ("lunarlander", {2: "Runner", 7: "Runner"}),
        ("cartpole", {1: "Learner", 8: "Learner"}),
        ("pendulum", {2: "Runner", 8: "Learner"}),
        ("spread", {2: "Runner", 8: "Learner"}),
        ("league", {2: "Runner", 8: "Learner"}),
        ("apart", {2: "Runner", 8: "Learner"}),
        ("memory", {2: "Runner", 8: "Learner"}),
        ("taxi", {2: "Runner", 8: "Learner"}),
        ("cartpole", {5: "Evaluator"}),
        ("dqn", {4: "Replay", 9: "Replay"}),
        ("dqn", {5: "Learner", 8: "Runner"}),
        ("qs apart", {4: "Replay", 9: "Learner"}),
    ],
)
def test_on_ray_with_processes_killed(
    task: str,
    victims: dict[int, str],
    reference: dict[tuple[str, int], Outcome],
    ray_execution: RayExecution,
    tmp_path: Path,
) -> None:
    waiting = dict(victims)

    def on_row(row: dict[str, float]) -> None:
        if int(row["iteration"]) in waiting:
            kill(waiting.pop(int(row["iteration"])))

    outcome = run_trainer(config_of(BASES[task]), ray_execution, tmp_path, 2, Recorder(on_row))
    assert not waiting
    assert outcome.trainer.recovery.restarts >= len(victims)
    assert outcome.facts == reference[task, 1].facts


def test_agents_who_die_at_different_times(ray_execution: RayExecution, tmp_path: Path) -> None:
    """In one process, where calls are lost, resumed, and on Ray with a runner and the learner killed."""
    config, lengths = config_of(DYING), []

    def look(env: Any, actions: Any) -> None:
        before = env.there.copy()
        advance(env, actions)
        lengths.append((int(before.sum()), int(env.there.sum())))

    advance = Team.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Team, "advance", look)
        local = run_trainer(config, LocalExecution(), tmp_path / "local")
    assert any(before == 4 and 0 < after < 4 for before, after in lengths)  # else this says nothing
    lossy = FaultyExecution(1, losses=6)
    assert run_trainer(config, lossy, tmp_path / "lossy", runners=2).facts == local.facts
    assert lossy.lost
    asked = iter(range(7))
    run_trainer(
        config,
        LocalExecution(),
        tmp_path / "resumed",
        interrupted=lambda: None if next(asked, None) is not None else "interrupted",
    )
    start = list_checkpoints(tmp_path / "resumed")[-1]
    resumed = run_trainer(config, LocalExecution(), tmp_path / "resumed", start=start)
    assert resumed.sha256 == local.sha256 and resumed.trainer.progress.episodes == local.trainer.progress.episodes
    victims = {2: "Runner", 6: "Learner", 8: "Runner"}  # in first episodes, and in second ones

    def on_row(row: dict[str, float]) -> None:
        if (iteration := int(row["iteration"])) in victims:
            kill(victims.pop(iteration))

    assert run_trainer(config, ray_execution, tmp_path / "ray", 3, Recorder(on_row)).facts == local.facts
    assert not victims


def test_threads_are_part_of_the_arithmetic_not_of_the_process(ray_execution: RayExecution, tmp_path: Path) -> None:
    """Two learner threads give the same bits in this process and in an actor that Ray started with one."""
    config = config_of(CARTPOLE, "learner.threads=2", "algorithm.hidden=[256,256]", "algorithm.minibatch_size=256")
    local = run_trainer(config, LocalExecution(), tmp_path / "local")
    on_ray = run_trainer(config, ray_execution, tmp_path / "ray")
    assert local.facts == on_ray.facts


def test_a_snapshot_is_sent_only_to_a_runner_that_has_not_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[Runner, int, Any]] = []
    rollout = Runner.rollout

    def spy(self: Runner, shard: int, iteration: int, weights: Weights, before: Any, base: Any = None) -> Any:
        sent.append((self, shard, before))
        return rollout(self, shard, iteration, weights, before, base)

    monkeypatch.setattr(Runner, "rollout", spy)
    execution = FaultyExecution(1, losses=12)
    run_trainer(config_of(LUNARLANDER), execution, tmp_path, runners=2)
    assert "runner" in execution.lost
    snapshots = [(runner, shard) for runner, shard, before in sent if isinstance(before, Snapshot)]
    assert 0 < len(snapshots) <= 4 * len(execution.lost)
    assert sum(before == "live" for _, _, before in sent) > len(sent) / 2


def test_of_a_large_table_only_changes_are_sent(
    reference: dict[tuple[str, int], Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run is the one where everything is sent."""
    sent: list[Message] = []
    load = Runner._load

    def spy(self: Runner, message: Message, keyframe: Weights | None) -> None:
        sent.append(message)
        load(self, message, keyframe)

    monkeypatch.setattr(Runner, "_load", spy)
    assert run_trainer(config_of(HASHED), LocalExecution(), tmp_path / "changes").facts == reference["hashed", 1].facts
    changes = [message for message in sent if isinstance(message, Changes)]
    assert len(changes) > len(sent) / 3
    assert isinstance(sent[0], Weights)
    assert max(len(message.value) for message in changes) < len(sent[0].vector) / 4
    sent.clear()
    monkeypatch.setattr(distrl.workers.versions, "LARGE", 10**9)
    assert run_trainer(config_of(HASHED), LocalExecution(), tmp_path / "all").facts == reference["hashed", 1].facts
    assert all(isinstance(message, Weights) for message in sent)
