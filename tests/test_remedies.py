"""No remedy is a dead end: who does what a message says goes on.

Every message of the source that tells what to do is met by a row of the table below, or is named beside it with the reason
why it cannot be met here.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from typer.testing import CliRunner

import distrl
from distrl.cli import app
from distrl.config import load_config
from distrl.errors import UserError
from distrl.runs.plan import plan_run
from distrl.runs.sweep import load_sweep
from distrl.runs.sweep_check import check_sweep

TELLS = re.compile(
    r"(?:^|[.:;] |, or |, and |: )(?:set|use|wrap|pass|take|give|leave|raise|lower|choose|write|add|begin|change|put|make|mend"
    r"|install|fill|derive|call|start|wait|free|remove|train|go on)\b",
    re.IGNORECASE,
)
PPO, A2C, DQN, Q = ("env.id=CartPole-v1", "algorithm={name: ppo}"), *(
    ("env.id=CartPole-v1", f"algorithm={{name: {name}}}", *more)
    for name, more in {"a2c": (), "dqn": ("replay={}",), "q": ()}.items()
)  # fmt: skip
BINS = "algorithm={name: q, coding: {kind: bins, n: [10, 10, 10, 10]}}"
BOUNDED = "algorithm={name: q, coding: {kind: bins, n: [9, 9, 9, 9], low: [-2, -2, -1, -2], high: [2, 2, 1, 2]}}"
IMAGE = ("env.id=distrl/FlappyBirdPixels-v0", "algorithm={name: dqn}", "replay={}")
TWIN = ("env.id=toys:toys/Twin-v0", "algorithm={name: ppo}")
SPREAD, TURNS = "env.id=mpe2/simple_spread_v3", "env.id=classic/tictactoe_v3"
MEMORY = "algorithm.memory={kind: gru, size: 64}"
PONG, DOORS, RACE = "env.id=ALE/Pong-v5", "env.id=MiniGrid-DoorKey-5x5-v0", "env.id=CarRacing-v3"
NO_DICT = "A table takes discrete or Box observations"
# What is wrong; a part of the message, with the remedy; what is done, in the words of the message.
ROWS: list[tuple[tuple[str, ...], str, tuple[str, ...]]] = [
    ((*PPO, "env.id=FrozenLake-v1", "normalize.obs=true"), "Set normalize.obs=false.", ("normalize.obs=false",)),
    ((*PPO, "algorithm.body=cnn"), "Set algorithm.body=auto", ("algorithm.body=auto",)),
    ((*PPO, "algorithm.body=cnn"), "such as distrl/FlappyBirdPixels-v0", ("env.id=distrl/FlappyBirdPixels-v0",)),
    ((*TWIN, "env.kwargs={action: unbounded}", "algorithm.squash=true"), "Set algorithm.squash=false", ("algorithm.squash=false",)),
    ((*Q, "env.id=MountainCar-v0"), "Set algorithm.coding", ("algorithm.coding={kind: tiles, n: [8, 8], tilings: 8}",)),
    (Q, "Set algorithm.coding", ("algorithm.coding={kind: bins, n: [10, 10, 20, 10]}", "algorithm.coding.low=[-2,-2,-1,-2]", "algorithm.coding.high=[2,2,1,2]")),
    ((*Q, BINS), "Give clip ranges for all inputs", ("algorithm.coding.low=[-2,-2,-1,-2]", "algorithm.coding.high=[2,2,1,2]")),
    ((*Q, BOUNDED, "algorithm.coding.n=[10, 10]"), "Give one for each.", ("algorithm.coding.n=[10, 10, 10, 10]",)),
    ((*Q, BOUNDED, "algorithm.coding.low=[-1]"), "Give one for each.", ("algorithm.coding.low=[-1, -1, -1, -1]",)),
    ((*PPO, "env.id=Pendulum-v1", "algorithm.action_probs=[0.5, 0.5]"), "Leave it out.", ("algorithm.action_probs=null",)),
    ((*Q, BINS, "env.id=FrozenLake-v1"), "Leave algorithm.coding out.", ("algorithm={name: q}",)),
    ((*A2C, "algorithm.minibatches=7"), "Take a divisor", ("algorithm.minibatches=8",)),
    ((*A2C, "algorithm.shared_body=true", MEMORY, "algorithm.minibatches=128"), "such as 1.", ("algorithm.minibatches=1",)),
    ((*PPO, "algorithm.shared_body=true", "algorithm.critic_lr=0.1"), "set algorithm.shared_body=false", ("algorithm.shared_body=false",)),
    ((*PPO, "algorithm.shared_body=true", "algorithm.critic_lr=0.1"), "or leave it out", ("algorithm.critic_lr=null",)),
    ((*PPO, MEMORY), "set algorithm.shared_body=true", ("algorithm.shared_body=true",)),
    ((*PPO, MEMORY, "algorithm.shared_body=true", "algorithm.network=own_nets:Small"), "Set one of them to null", ("algorithm.network=null",)),
    ((*PPO, MEMORY, "algorithm.shared_body=true", "track.register_as=x"), "Set track.register_as=null", ("track.register_as=null",)),
    ((*DQN, "algorithm.dueling=true", "algorithm.hidden=[]"), "Give one", ("algorithm.hidden=[64]",)),
    ((*DQN, "algorithm.dueling=true", "algorithm.hidden=[]"), "Or set it to false", ("algorithm.dueling=false",)),
    ((*PPO, "algorithm.minibatch_size=100"), "such as 4.", ("algorithm.minibatch_size=4",)),
    ((*PPO, MEMORY, "algorithm.shared_body=true", "algorithm.minibatch_size=16"), "Take such a multiple, or 2048", ("algorithm.minibatch_size=2048",)),
    ((*PPO, "algorithm.adaptive_kl=0.01"), "such as algorithm.lr=0.0003", ("algorithm.lr=0.0003",)),
    ((*Q, BOUNDED, "env.id=Pendulum-v1"), "Set algorithm.name=ppo or a2c", ("algorithm={name: ppo}",)),
    ((*DQN, "env.id=Pendulum-v1"), "Set algorithm.name=ppo or a2c", ("algorithm={name: ppo}", "replay=null")),
    ((*DQN, SPREAD, "policies=per_agent", "replay.on_device=true"), "Set replay.on_device=auto.", ("replay.on_device=auto",)),
    (("dqn_cartpole", "algorithm.name=ppo", "track.mlflow=false"), "'algorithm={name: ppo}' replay=null", ("algorithm={name: ppo}", "replay=null", "algorithm.minibatch_size=256")),
    ((*Q, "env.id=FrozenLake-v1", "algorithm.method=q_lambda", "algorithm.rehearsal={}"), "Set algorithm.method to q", ("algorithm.method=q",)),
    ((*Q, "env.id=FrozenLake-v1", "algorithm.method=q_lambda", "algorithm.rehearsal={}"), "or algorithm.rehearsal=null", ("algorithm.rehearsal=null",)),
    (("env.id=CartPole-v1",), "algorithm.name is missing; it must be one of ppo", ("algorithm={name: ppo}",)),
    ((*PPO, "env.vectorize=table"), "Set env.vectorize to 'auto' or 'single'", ("env.vectorize=single",)),
    ((*PPO, "env.id=LunarLander-v3", "env.vectorize=native"), "Set it to 'auto'", ("env.vectorize=auto",)),
    ((*PPO, "env.wrappers=[{name: select, kwargs: {indices: [9]}}]"), "from 0 to 3 are due. Change env.wrappers", ("env.wrappers=[{name: select, kwargs: {indices: [3]}}]",)),
    ((*PPO, "env.wrappers=[gymnasium.wrappers.NormalizeObservation]"), "set normalize.obs=true", ("env.wrappers=[]", "normalize.obs=true")),
    ((*PPO, "cluster.runners=3", "cluster.cpus_per_runner=100"), "Lower one of them", ("cluster.cpus_per_runner=0.1",)),
    ((*PPO, "learner.device=cpu", "learner.precision=fast"), "Set learner.precision=full", ("learner.precision=full",)),
    ((*PPO, "learner.count=2"), "Set learner.count=1", ("learner.count=1",)),
    ((*PPO, "learner.count=2"), "or learner.slices=2", ("learner.slices=2",)),
    ((*PPO, "learner.slices=1000"), "Set at most 512", ("learner.slices=512",)),
    ((*Q, "env.id=FrozenLake-v1", "learner.slices=2"), "Set learner.slices=1 learner.count=1", ("learner.slices=1", "learner.count=1")),
    ((*PPO, "cluster.runners=100000"), "or 'auto'", ("cluster.runners=auto",)),
    ((*DQN, "algorithm.epsilon={start: 1, end: 0.1, over: 9, unit: episodes}"), "Set it to 'steps'", ("algorithm.epsilon.unit=steps",)),
    ((*PPO, "stop.env_steps=null", "stop.seconds=9"), "Set it, or a number that stays: algorithm.lr=0.0003", ("algorithm.lr=0.0003",)),
    ((*PPO, "stop.env_steps=null", "stop.seconds=9"), "Set it", ("stop.env_steps=10000",)),
    ((*PPO, "stop.return_mean=auto", "env.id=Pendulum-v1"), "Give a number instead", ("stop.return_mean=-200",)),
    ((*PPO, "schedule.kind=async"), "Set schedule.kind=lockstep", ("schedule.kind=lockstep",)),
    ((*PPO, "schedule.kind=async"), "or that", ("algorithm.vtrace=true",)),
    ((*PPO, "schedule.ahead=2"), "Leave it out", ("schedule={}",)),
    ((*DQN, "normalize.obs=true"), "Set normalize.obs=false", ("normalize.obs=false",)),
    ((*PPO, "replay={}"), "Leave it out", ("replay=null",)),
    ((*DQN, "replay.start=10"), "Set replay.start to at least 65", ("replay.start=65",)),
    ((*DQN, "replay.start=70", "algorithm.n_step=3"), "Set replay.start to more than 192", ("replay.start=193",)),
    ((*DQN, "replay.capacity=100"), "5184 steps here", ("replay.capacity=5184",)),
    ((*DQN, "replay.shards=3"), "Take a divisor", ("replay.shards=2",)),
    ((*DQN, "replay.capacity=100000000000"), "Set replay.capacity to at most", ("replay.capacity=100000",)),
    ((*PPO, "rollout.shards=1000000000"), "Set rollout.shards=", ("rollout.shards=4",)),
    ((*PPO, "algorithm.hidden=[100000000, 1000]"), "Set algorithm.hidden to smaller layers", ("algorithm.hidden=[64, 64]",)),
    ((*PPO, "env.id=LunarLander-v2"), "Did you mean 'LunarLander-v3'?", ("env.id=LunarLander-v3",)),
    ((*PPO, "env.id=my-module:CartPole-v1"), "give a module that can be imported", ("env.id=gymnasium:CartPole-v1",)),
    ((*PPO, "track.mlflow=true", "track.uri=http://me:secret@127.0.0.1:1"), "MLFLOW_TRACKING_USERNAME", ("track.uri=null",)),
    ((*PPO, "track.mlflow=true", "track.uri=ftp://x"), "sqlite:///", ("track.uri=sqlite:///mlflow.db",)),
    ((*Q, *TWIN[:1], "env.kwargs={obs: square of bits}"), "Set env.wrappers=[flatten], and cut up what that gives by algorithm.coding", ("env.wrappers=[flatten]", "algorithm.coding={kind: bins, n: [2, 2, 2, 2]}")),
    ((*Q, *TWIN[:1], "env.kwargs={obs: square}", BINS), "Set env.wrappers=[flatten]", ("env.wrappers=[flatten]",)),
    ((*Q, BOUNDED, "algorithm.coding.n=[1000, 1000, 1000, 1000]"), "or a hash: algorithm.capacity=100000", ("algorithm.capacity=100000",)),
    ((*Q, BOUNDED, "algorithm.coding.n=[100000, 100000, 100000, 100000]", "algorithm.capacity=100000"), "Take fewer inputs or bins", ("algorithm.coding.n=[9, 9, 9, 9]",)),
    ((*Q, "env.id=FrozenLake-v1", "algorithm.rehearsal={capacity: 10}"), "Raise it", ("algorithm.rehearsal={capacity: 10000}",)),
    ((*TWIN, "env.kwargs={obs: text}"), "or a wrapper of your own", ("env.wrappers=['toys:read']",)),
    ((*TWIN, "env.kwargs={action: text}"), "or a wrapper of your own", ("env.wrappers=['toys:written']",)),
    ((*PPO, PONG, "algorithm.body=cnn", "env.wrappers=[flatten]"), "Set algorithm.body=auto", ("algorithm.body=auto",)),
    ((*PPO, PONG, "normalize.obs=true"), "Set normalize.obs=false.", ("normalize.obs=false",)),
    ((*PPO, PONG, "env.wrappers=[gymnasium.wrappers.AtariPreprocessing]"), "Disable frame-skipping in the original env", ("env.kwargs={frameskip: 1}",)),
    ((*PPO, PONG, "env.wrappers=[gymnasium.wrappers.AtariPreprocessing]"), "Change env.wrappers.", ("env.wrappers=[atari]",)),
    ((*Q, PONG), "Set algorithm.name=ppo or a2c", ("algorithm={name: ppo}",)),
    ((*Q, DOORS), NO_DICT, ("algorithm={name: a2c}",)),
    ((*Q, DOORS, "env.wrappers=[flatten]"), "Set algorithm.name=ppo or a2c", ("algorithm={name: a2c}",)),
    ((*PPO, DOORS, "env.wrappers=[gymnasium.wrappers.FlattenObservation]"), "'mission': Text) (", ("env.wrappers=[flatten]",)),
    ((*PPO, DOORS, "algorithm.body=cnn", "env.wrappers=[minigrid.wrappers.ImgObsWrapper]"), "Set algorithm.body=auto", ("algorithm.body=auto",)),
    ((*PPO, "env.id=MiniGrid-Doorkey-5x5-v0"), "Did you mean 'MiniGrid-DoorKey-5x5-v0'?", (DOORS,)),
    ((*DQN, RACE), "Set algorithm.name=ppo or a2c", ("algorithm={name: ppo}", "replay=null")),
    ((*Q, RACE), "Set algorithm.name=ppo or a2c", ("algorithm={name: ppo}",)),
    ((*Q, RACE, "env.kwargs={continuous: false}"), "Set algorithm.name=ppo or a2c", ("algorithm={name: ppo}",)),
    ((*PPO, RACE, "env.vectorize=native"), "Set it to 'auto'", ("env.vectorize=auto",)),
    ((*Q, *TWIN[:1], "env.kwargs={obs: pair}"), "Set env.wrappers=[flatten], and cut up", ("env.wrappers=[flatten]", "algorithm.coding={kind: bins, n: [2, 2, 2]}")),
    ((*PPO, TURNS, "algorithm.shared_body=true", MEMORY), "Set it to null", ("algorithm.memory=null",)),
    ((*DQN, TURNS), "Set algorithm.name=ppo or a2c", ("algorithm={name: ppo}", "replay=null")),
    ((*DQN, "algorithm.mixer=vdn"), "Set algorithm.mixer=null", ("algorithm.mixer=null",)),
    ((*Q, SPREAD), "Set algorithm.name=ppo", ("algorithm={name: ppo}",)),
    ((*PPO, SPREAD, "env.wrappers=[flatten]"), "Leave them out", ("env.wrappers=[]",)),
    ((*PPO, SPREAD, "env.report=[score]"), "Leave it out", ("env.report=[]",)),
    ((*PPO, SPREAD, "env.vectorize=native"), "Set it to 'auto'", ("env.vectorize=auto",)),
    ((*PPO, SPREAD, "algorithm.critic=central", "algorithm.shared_body=true"), "set algorithm.shared_body=false", ("algorithm.shared_body=false",)),
    ((*PPO, "policies=per_agent"), "Leave it out", ("policies=shared",)),
    ((*PPO, SPREAD, "policies={first: [agent_0, agent_1]}"), "Add one", ("policies={first: [agent_0, agent_1], others: [agent_2]}",)),
    ((*PPO, SPREAD, "policies={all: ['*'], more: []}"), "or leave it out", ("policies={all: ['*']}",)),
    ((*PPO, SPREAD, "policies={all: ['*'], more: []}"), "Give it some of agent_0", ("policies={all: [agent_1, agent_2], more: [agent_0]}",)),
    ((*PPO, SPREAD, "policies=all"), "such as {adversaries: [adversary_*]", ("env.id=mpe2/simple_tag_v3", "policies={adversaries: [adversary_*], others: [agent_*]}")),
    ((*DQN, SPREAD, "algorithm.mixer=vdn", "policies=per_agent"), "Set policies=shared", ("policies=shared",)),
    ((*DQN, SPREAD, "algorithm.mixer=vdn", "policies=per_agent"), "or algorithm.mixer=null", ("algorithm.mixer=null",)),
    ((*PPO, "env.id=simple_spread_v3"), "write env.id=mpe2/simple_spread_v3", (SPREAD,)),
    ((*PPO, SPREAD, "policies=per_agent", "algorithm.shared_body=true", MEMORY), "Set policies=shared", ("policies=shared",)),
    ((*PPO, SPREAD, "policies=per_agent", "algorithm.shared_body=true", MEMORY), "or algorithm.memory=null", ("algorithm.memory=null",)),
    ((*PPO, SPREAD, "algorithm.critic=central", "algorithm.shared_body=true", MEMORY), "Set algorithm.critic=own", ("algorithm.critic=own",)),
    ((*PPO, SPREAD, "algorithm.critic=central", MEMORY), "or algorithm.memory=null and algorithm.shared_body=false", ("algorithm.memory=null", "algorithm.shared_body=false")),
    ((*PPO, "env.id=mpe2/simple_tag_v3"), "set policies=per_agent", ("policies=per_agent",)),
    ((*PPO, "opponents={}"), "Leave them out", ("opponents=null",)),
    ((*DQN, TURNS, "opponents={games: {random: 1}}"), "Take ppo or a2c without algorithm.memory", ("algorithm={name: ppo}", "replay=null")),
    (("env.id=classic/tictactoe_v3", "algorithm={name: q}", "opponents={games: {random: 1}}"), "With opponents.games={self: 1}", ("opponents.games={self: 1}",)),
    ((*PPO, SPREAD, MEMORY, "algorithm.shared_body=true", "opponents={}"), "or set opponents=null", ("opponents=null",)),
    ((*PPO, TURNS, "opponents={}", "algorithm.shared_body=true", MEMORY), "or set opponents=null", ("opponents=null", "algorithm.memory=null")),
    ((*PPO, TURNS, "opponents={seats: [player1]}"), "Did you mean 'player_1'?", ("opponents={seats: [player_1]}",)),
    ((*PPO, TURNS, "opponents={games: {self: 0}}"), "give one of them a share above 0", ("opponents={games: {self: 0.8, random: 0.2}}",)),
    ((*PPO, TURNS, "opponents={seats: []}"), "name some, or leave them out", ("opponents={seats: [player_1]}",)),
    ((*PPO, TURNS, "opponents={evaluation: [self]}"), "such as [random, earlier]", ("opponents={evaluation: [random, earlier]}",)),
    ((*PPO, TURNS, "opponents={games: {a/x: 1, b/x: 1}}"), "rename one", ("opponents={}",)),
    ((*PPO, TURNS, "opponents={games: {randm: 1}}"), "Did you mean 'random'?", ("opponents={games: {random: 1}}",)),
    ((*PPO, TURNS, "opponents={games: {'teams:SPACE': 1}}"), "Give a function", ("opponents={games: {'teams:first_allowed': 1}}",)),
    ((*PPO, TURNS, "opponents={games: {'teams:nobody': 1}}"), "opponents name 'teams:nobody', which cannot be imported", ("opponents={games: {'teams:first_allowed': 1}}",)),
]  # fmt: skip


def attempt(overrides: tuple[str, ...]) -> str | None:
    """Plan a run as the command line does; returns what is told instead."""
    preset = overrides[0] if "=" not in overrides[0] else None
    try:
        plan_run(
            load_config(
                preset or {"track": {"mlflow": False, "video": False}, "env": {}}, overrides[preset is not None :]
            )
        )
    except UserError as error:
        return str(error)
    return None


@cache
def told(wrong: tuple[str, ...]) -> str | None:
    return attempt(wrong)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("wrong", "remedy", "done"), ROWS, ids=[f"{row[1]} {i}" for i, row in enumerate(ROWS)])
def test_who_does_what_a_message_says_goes_on(wrong: tuple[str, ...], remedy: str, done: tuple[str, ...]) -> None:
    message = told(wrong)
    assert message is not None and remedy in message, message
    assert attempt((*wrong, *done)) is None


def messages() -> Iterator[tuple[str, str, re.Pattern[str]]]:
    """Of every `UserError` in the source: where it is, what it says ('~' where that depends), and a pattern of that."""
    root = Path(distrl.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError" and node.args:
                parts = list(pieces(node.args[0]))
                text = "".join("~" if part is None else part for part in parts)
                pattern = "".join(".*" if part is None else re.escape(part) for part in parts)
                yield f"{path.relative_to(root)}:{node.lineno}", text, re.compile(pattern, re.DOTALL)


def pieces(node: ast.expr) -> Iterator[str | None]:
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.JoinedStr):
        for value in node.values:
            yield from pieces(value)
    elif isinstance(node, ast.BinOp):
        yield from pieces(node.left)
        yield from pieces(node.right)
    else:
        yield None


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
@pytest.mark.parametrize(
    "env", [(PONG,), (DOORS,), (RACE,), (RACE, "env.kwargs={continuous: false}")], ids=lambda env: " ".join(env)
)
def test_an_env_as_it_comes_trains_or_tells_what_to_set(env: tuple[str, ...], algorithm: str) -> None:
    """Whatever is told is set, letter by letter, until nothing is told any more."""
    config = [*env, f"algorithm={{name: {algorithm}}}", *(["replay={}"] if algorithm == "dqn" else [])]
    for _ in range(4):
        if (message := attempt(tuple(config))) is None:
            return
        told = re.search(r"Set ((?:[\w.]+=\S+ ?)+?)(?: or |, |\. |\.$)", message)
        assert told is not None, message
        config += told[1].split()
        if "algorithm.name=" in told[1]:
            config.append("replay=null")
    raise AssertionError(config)


@pytest.mark.parametrize("wrong", ["rollout.shards=1000000000", "rollout.steps=1000000000000"])
def test_sizes_that_are_told_fit(wrong: str) -> None:
    config = (*PPO, wrong, "algorithm.minibatch_size=2")
    message = attempt(config)
    told = re.search(r"Set ((?:rollout\.\w+=\d+ ?)+)\.$", message or "")
    assert told is not None, message
    again = attempt((*config, *told[1].split()))
    assert again is None or "does not divide" in again, again


def test_pong_as_it_comes_is_too_large_for_a_replay_here_and_may_be_made_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20 * 2**30))
    config = (*DQN, PONG)
    message = attempt(config)
    assert message is not None
    told = re.search(r"free\. Set (rollout.*)\. Or: Set (env.wrappers=\[atari\]), for smaller images\.", message)
    assert told is not None, message
    assert attempt((*config, *told[1].split())) is None
    assert attempt((*config, told[2])) is None


TINY = "stop.env_steps=4096 evaluation.final_episodes=2 track.mlflow=false track.video=false --local -q"
TABLE = f"train q_frozenlake {TINY} stop.return_mean=null"
# What is typed, where `table` and `net` are runs that have ended; a part of the message; what is typed then.
COMMANDS = [
    ("env CartPole-v1 --out x.gif", "or leave them out", "env CartPole-v1"),
    ("env CartPole-v1 --out x.gif", "Add it", "env CartPole-v1 --out x.gif --watch"),
    ("evaluate table --exact --sampled", "leave out --sampled", "evaluate table --exact"),
    ("evaluate net --exact", "leave out --exact", "evaluate net --episodes 2"),
    ("config ppo algorithm.lr --schema", "Leave 'algorithm.lr' out", "config ppo --schema"),
    ("train ppo_cartpole --save-config table/config.yaml", "Choose another name", "train ppo_cartpole --save-config x.yaml"),
    ("train ppo_cartpole --env CartPole-v1 --dry-run", "Leave out --env and --algo", "train ppo_cartpole --dry-run"),
    ("train ppo_cartpole --env CartPole-v1 --dry-run", "or the config", "train --env CartPole-v1 --dry-run"),
    (f"{TABLE} run_dir=table", "Choose another one", f"{TABLE} run_dir=other"),
    (f"{TABLE} run_dir=table", "--resume", "train --resume table --local -q"),
    ("train --resume table algorithm.gamma=0.5 --local", "start a new run for the rest", f"{TABLE} run_dir=new algorithm.gamma=0.5"),
    ("record net --out x.ogg", "must end in one of .webm, .mp4", "record net --out x.mp4"),
    ("export table --format onnx --out x.onnx", "Take one of csv", "export table --format csv --out x.csv"),
    ("export net --format safetensors --out net/best/policy", "Leave --out out", "export net --format safetensors"),
    ("export net --agent a", "Leave it out", "export net --out net"),
    ("play net --seat a", "Leave it out to watch", None),
    ("verify ppo_cartpole", "Set stop.return_mean=null", None),
    (f"train ppo_cartpole run_dir=cuda learner.device=cuda stop.return_mean=null {TINY}", "Set learner.device=cpu", f"train ppo_cartpole run_dir=cuda learner.device=cpu stop.return_mean=null {TINY}"),
    ("evaluate empty", "distrl train --resume", "train --resume empty --local -q"),
    ("plot damaged", "Remove that line", None),
]  # fmt: skip


def typed(command: str) -> str | None:
    """What a command says where it does not go on."""
    done = CliRunner().invoke(app, command.split())
    if done.exception is None or (isinstance(done.exception, SystemExit) and done.exit_code == 0):
        return None
    assert isinstance(done.exception, UserError), done.exception
    return str(done.exception)


@cache
def refused(command: str) -> str | None:
    return typed(command)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as context:
        context.chdir(directory)
        assert typed(f"{TABLE} run_dir=table") is None
        assert typed(f"train ppo_cartpole run_dir=net stop.return_mean=null {TINY}") is None
        for name in ("empty", "damaged"):
            shutil.copytree("table", name)
        shutil.rmtree("empty/best")
        shutil.rmtree("empty/checkpoints")
        rows = Path("damaged/metrics.jsonl")
        rows.write_text("{what\n" + rows.read_text())
    return directory


@pytest.fixture
def there(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)


@pytest.mark.parametrize(("wrong", "remedy", "then"), COMMANDS, ids=[f"{row[1]} {i}" for i, row in enumerate(COMMANDS)])
def test_who_types_what_a_message_says_goes_on(wrong: str, remedy: str, then: str | None, there: None) -> None:
    message = refused(wrong)
    assert message is not None and remedy in message, message
    if wrong.startswith("plot"):
        rows = Path("damaged/metrics.jsonl")
        rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
        then = f"{wrong} --out x.png"
    assert then is None or typed(then) is None


SEARCH = "search={algorithm.lr: {loguniform: [1.0e-4, 1.0e-2]}}"
SWEEP = {
    "base": {"env": {"id": "CartPole-v1"}, "algorithm": {"name": "ppo"}, "track": {"mlflow": False}},
    "search": {"algorithm.lr": {"loguniform": [1e-4, 1e-2]}},
    "budget": {"trials": 4, "env_steps": 10240 * 4},
}
# As above, of a sweep.
SWEEPS: list[tuple[tuple[str, ...], str, tuple[str, ...]]] = [
    (("search={}",), "such as algorithm.lr: {loguniform: [1e-4, 1e-2]}", (SEARCH,)),
    (("trial.runners=1000",), "Set trial.runners to at most", ("trial.runners=1",)),
    (("budget.env_steps=null", "stop.env_steps=null", "stop.seconds=9", "algorithm.lr=0.001"), "set budget.env_steps", ("budget.env_steps=40960",)),
    (("scheduler=pbt", "searcher=optuna"), "Set searcher=random", ("searcher=random",)),
    (("scheduler=pbt", "budget.trials=2"), "Set it to 4 or more", ("budget.trials=4",)),
    (("scheduler=pbt", "population.generations=100000"), "Set it to at most that", ("population.generations=5",)),
    (("search.seed={choice: [1, 2]}",), "Leave it out", (SEARCH,)),
    (("search.cluster.runners={choice: [1, 2]}",), "Set it in the base config", (SEARCH, "cluster.runners=1")),
    (("search.algorithm={choice: [{name: a2c}, {name: ppo}]}",), "Leave one of them out", (SEARCH,)),
    (("searcher=grid", "search={algorithm.epochs: {choice: [1, 2, 3, 4, 5]}}"), "Set budget.trials to 5", ("budget.trials=5",)),
    (("searcher=grid", "search={algorithm.epochs: {choice: [1, 2, 3, 4, 5]}}"), "or set searcher=random", ("searcher=random",)),
    (("budget.trials=null",), "Set budget.trials=32", ("budget.trials=32",)),
    (("budget.env_steps=100",), "Set budget.env_steps to many times that", ("budget.env_steps=40960",)),
    (("scheduler=pb2", "search={algorithm.gamma: {choice: [0.9, 0.99]}}"), "Set scheduler=pbt", ("scheduler=pbt",)),
    (("evaluation.every=0",), "Set evaluation.every=auto", ("evaluation.every=auto",)),
    (("searcher=grid",), "or set searcher=random", ("searcher=random",)),
    (("metric=final/return_mean", "evaluation.final_episodes=0"), "Set evaluation.final_episodes=100", ("evaluation.final_episodes=100",)),
    (("storage=s3://bucket/dir",), "Leave it out of the base config", ("storage=null",)),
]  # fmt: skip


def sweep_attempt(overrides: tuple[str, ...]) -> str | None:
    Path("sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    try:
        check_sweep(load_sweep("sweep.yaml", overrides), str(Path("sweep").absolute()))
    except UserError as error:
        return str(error)
    return None


@cache
def sweep_refused(overrides: tuple[str, ...]) -> str | None:
    return sweep_attempt(overrides)


@pytest.mark.parametrize(("wrong", "remedy", "done"), SWEEPS, ids=[f"{row[1]} {i}" for i, row in enumerate(SWEEPS)])
def test_a_sweep_that_does_what_a_message_says_goes_on(
    wrong: tuple[str, ...], remedy: str, done: tuple[str, ...]
) -> None:
    message = sweep_refused(wrong)
    assert message is not None and remedy in message, message
    assert sweep_attempt((*wrong, *done)) is None


# Why a message is not met here, by a part of it.
ELSEWHERE = {
    "Choose another name for --out": "as --save-config",
    "The table is full": "tests/algorithms/test_tabular_q.py: it takes some iterations",
    "is registered by importing": "tests/envs/test_make.py: it takes a package",
    "Call ray.shutdown() first": "tests/test_troubles.py: it takes a Ray",
    "Ray could not be started": "nothing here keeps a Ray from starting",
    "No CPU is free on the cluster": "it takes somebody else's jobs",
    "takes longer than cluster.rebuild_timeout_s": "tests/workers/test_runner.py goes on with the number that it says",
    "cannot be written": "tests/test_files.py, tests/tracking: it takes a full disk",
    "is in use by another process": "tests/test_cli.py: it takes another process",
    "metadata['frame_stack']": "tests/envs/test_wrappers.py: it takes an env that is wrong",
    "cannot be made a torch module": "tests/models/test_export.py: it takes a policy of one's own",
    "ONNX has one name for one thing": "tests/models/test_export.py: it takes an env of one's own, and is exported so there",
    "is a mistake of distrl or of a library": "there is no such mistake that is known",
    "OpenCV here cannot write": "this OpenCV can",
    "of which a fifth is for the updates": "tests/learning/test_ring.py: it takes a memory that is full",
    "Derive them from it": "tests/test_registry.py: it takes an algorithm of one's own",
    "Set replay.first_priority=max": "it takes an algorithm of one's own, whose policy tells no values",
    "Training was too short to measure": "tests/tools/test_benchmark.py: it takes a measurement",
    "install a CUDA build of torch": "it takes a GPU",
    "With schedule.kind=async a run cannot be repeated": "tests/tools/test_verify.py: it takes seven runs",
    "No GPU is free on the cluster": "it takes somebody else's jobs",
    "each learner has a GPU of its own": "tests/execution/test_resources.py: it takes GPUs",
    "fits on no node of the cluster": "tests/execution/test_resources.py: it takes a cluster",
    "(one for the trial, one for each runner); there are": "as on this machine, of a cluster",
    "--status NAME shows a sweep": "tests/runs/test_tune.py: it takes a sweep",
    "goes on with a sweep that has a name": "tests/runs/test_tune.py: it takes a sweep",
    "Begin the sweep anew": "tests/runs/test_tune.py: it takes a sweep",
    "The sweep ~ exists": "tests/runs/test_sweep_check.py: it takes a sweep",
    "is another sweep": "tests/runs/test_sweep_check.py: it takes a sweep",
    "that is not installed. Install it with": "tests/runs/test_sweep_check.py: it takes a package that is missing",
    "Set metric=": "tests/runs: an env without a threshold has other metrics",
    "which needs a state of all agents": "it takes an env of several agents whose state() does not work",
    "exists. Choose another place for the results": "it takes a cluster",
    "The cluster at ~ has Ray": "it takes a cluster",
    "Which cluster?": "it takes a cluster",
    "--storage is for a cluster that is up": "it takes a cluster",
    "is a directory on the cluster's head": "it takes a cluster",
    "and a job works elsewhere than here": "it takes a cluster",
    "is where the run itself is": "it takes a store",
    "exists. Choose another run_dir": "it takes a store",
    "storage holds credentials": "it takes a store",
    "names no bucket": "it takes a store",
    "No run was tracked in": "tests/tracking: it takes a page",
    "cannot be used: ~. Another program": "tests/tracking: it takes a page",
    "and others play": "tests/acting/test_groups.py: it takes a run of several policies",
    "rewards of a step do not sum to 0": "tests/algorithms/test_tabular_q.py: it takes some iterations",
    "none can here. Take another run": "tests/acting/test_opponents.py: it takes a run that remembers",
    "Take a run of this game whose": "tests/acting/test_opponents.py: it takes a run of another game",
    "Leave out --exact": "tests/models/test_game_tree.py: it takes a trained model",
    "has tried nothing on its test seeds yet": "it takes a sweep",
    "it has that of its winner at its end": "it takes a sweep",
    "GPU for each trial": "tests/runs/test_places.py: it takes a Ray",
    "MLflow asks for actions of observations alone": "it takes MLflow",
    "callbacks has the class": "tests/runs/test_callbacks.py: it is of Python",
    "here some wait or leave before others": "tests/test_fragments.py: it takes some steps",
}


def test_every_message_that_says_what_to_do_was_tried(there: None) -> None:
    seen = [message for wrong, _, _ in ROWS if (message := told(wrong))]
    seen += [message for wrong, _, _ in COMMANDS if (message := refused(wrong))]
    seen += [message for wrong, _, _ in SWEEPS if (message := sweep_refused(wrong))]
    tells = [(where, text, pattern) for where, text, pattern in messages() if TELLS.search(text)]
    assert len(tells) > 60
    missing = [
        f"{where}: {text}"
        for where, text, pattern in tells
        if not any(pattern.search(message) for message in seen) and not any(part in text for part in ELSEWHERE)
    ]
    assert not missing, "\n".join(missing)
    assert [part for part in ELSEWHERE if not any(part in text for _, text, _ in tells)] == []
