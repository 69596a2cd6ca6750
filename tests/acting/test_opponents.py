"""Games against others: who sits where is drawn, each acts as if alone, and only what the trained policy did is learnt from."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teams import first_allowed
from toys import same

from distrl import load_policy, train
from distrl.acting.make import initial_weights, make_policy
from distrl.acting.make import opposed as make_opposed
from distrl.acting.opponents import OPPONENT, OpposedPolicy
from distrl.config import load_config
from distrl.envs.make import describe_env
from distrl.envs.multi import grouped
from distrl.errors import UserError
from distrl.learning.league import League, rated
from distrl.learning.normalise import make_algorithm
from distrl.models.evaluate import play_episodes
from distrl.models.game_tree import examine_game
from distrl.models.store import list_checkpoints, weights_sha256
from distrl.reports.curves import losses
from distrl.reports.games import EVALUATION, TRAINING, scores
from distrl.reports.runs import Run, read_run
from distrl.seeding import stream
from distrl.settings import Config, OpponentSettings
from distrl.types import Array, Evaluation, Fragment, Weights
from distrl.workers.runner import Runner

GAMES = {"self": 1, "random": 1, "teams:first_allowed": 2, "league": 4}
BASE: dict[str, Any] = {
    "env": {"id": "classic/tictactoe_v3"},
    "opponents": {
        "games": GAMES,
        "league": {"size": 3, "add_every": 2},
        "evaluation": ["random", "teams:first_allowed", "earlier"],
    },
    "algorithm": {"name": "ppo", "hidden": [16], "minibatch_size": 64},
    "rollout": {"shards": 2, "envs_per_shard": 8, "steps": 32},
    "schedule": {"lag": 0},
    "stop": {"env_steps": 512 * 4},
    "evaluation": {"every": 2, "episodes": 12, "final_episodes": 24},
    "checkpoint": {"every": 2},
    "track": {"mlflow": False, "video": False},
}


def opposed(data: dict[str, Any] = BASE) -> tuple[Config, OpposedPolicy, Array]:
    config = load_config(data)
    policy = make_policy(config, grouped(describe_env(config.env), config.policies))
    assert isinstance(policy, OpposedPolicy)
    return config, policy, initial_weights(config, policy)


def rolled(config: Config, policy: OpposedPolicy, vector: Array, iterations: int = 1) -> list[Fragment]:
    """The last fragment of each shard."""
    runner, found = Runner(config.env, config.rollout, 1, policy), []
    for shard in range(2):
        for k in range(iterations):
            _, fragment = runner.rollout(shard, k, Weights(0, vector), None if k == 0 else "live")
        found.append(fragment)
    return found


@dataclass
class Copies:
    """Where env copies are in their episodes."""

    seed: int
    shard: int
    copies: int
    episode: Array
    active: Array | None = None


def test_who_sits_where_is_drawn_by_the_env_copy_and_the_episode_as_often_as_asked_for() -> None:
    _, policy, vector = opposed()
    policy.load(vector)
    assert policy.names == ["self", "random", "teams:first_allowed"] and policy.versions.tolist() == [0, -1, -1]
    met: Counter[tuple[int, ...]] = Counter()
    for number in range(4000):
        games = Copies(7, 0, 1, np.array([number]))
        met[tuple(policy.drawn(games, 0).tolist())] += 1
    shares = {(0, 0): 1 / 8, **{s: half for x, half in ((1, 1 / 16), (2, 1 / 8), (3, 1 / 4)) for s in ((0, x), (x, 0))}}
    assert met.keys() == shares.keys()
    for seats, share in shares.items():
        assert abs(met[seats] / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000), seats
    for episode in range(20):  # however env copies are cut into shards
        one, other = Copies(7, 1, 3, np.full(3, episode)), Copies(7, 0, 6, np.full(6, episode))
        assert same(policy.drawn(one, 2), policy.drawn(other, 5))


def test_everybody_acts_as_if_alone_and_keeps_the_seat_until_the_episode_ends() -> None:
    config, policy, vector = opposed()
    fragment = rolled(config, policy, vector)[0]
    who, active = fragment.extras[OPPONENT], fragment.active
    assert active is not None and set(np.unique(who).tolist()) == {0, 1, 2, 3}
    noise = policy.draw(stream(1, "action", 0, 0), 32, 16)
    policy.load(vector)
    table = dict(enumerate([policy.own, *policy.fixed.values(), *policy.past]))
    checked: Counter[int] = Counter()
    for t, n in np.argwhere(active[:-1]).tolist():
        actor, row = int(who[t, n]), fragment.obs[t]
        if actor == 2:
            board, mask = policy.obs_layout.unpack(row[n])["observation"], policy.obs_layout.mask_of(row[n])
            wanted = first_allowed(board, mask)
        else:
            drawn = noise[t][actor if actor == 1 else 0]
            wanted = table[actor].act(row, drawn)[0][n]
        assert fragment.action[t, n] == wanted
        checked[actor] += 1
    assert min(checked.values()) > 10
    changed = np.argwhere(who[1:] != who[:-1]).tolist()
    assert changed and all(fragment.ended[t, n] for t, n in changed)
    assert ((who.reshape(32, 8, 2) == 0).sum(axis=2) >= 1).all()


def test_only_what_the_trained_policy_did_is_learnt_from() -> None:
    """What others saw and did may be anything."""
    learnt = []
    for strange in (False, True):
        config, policy, vector = opposed()
        fragments = rolled(config, policy, vector)
        if strange:
            for f in fragments:
                others = f.extras[OPPONENT] > 0
                f.obs[:-1][others], f.action[others], f.extras["log_prob"][others] = (
                    policy.obs_layout.example(),
                    3,
                    -5.0,
                )
        algorithm = make_algorithm(config, policy, __import__("torch").device("cpu"))
        algorithm.update(fragments, 0, 0.0)  # type: ignore[attr-defined]
        learnt.append(algorithm.weights())
    assert same(*learnt) and not same(learnt[0], vector)
    assert learnt[0].size == vector.size


class Still:
    """An algorithm whose weights say how often it was updated."""

    def __init__(self) -> None:
        self.updates = 0

    def update(self, fragments: list[Fragment], iteration: int, progress: float) -> dict[str, float]:
        self.updates += 1
        return {}

    def weights(self) -> Array:
        return np.full(3, self.updates, np.float32)

    def state(self) -> dict[str, Array]:
        return {"updates": np.array(self.updates)}

    def load_state(self, state: dict[str, Array]) -> None:
        self.updates = int(state["updates"])


def league_of(size: int, every: int, fragments: int = 0) -> tuple[League, Fragment]:
    """A league over `Still`, and a fragment of two env copies in which nothing is earned yet."""
    data = BASE | {"rollout": {"shards": 1, "envs_per_shard": 2, "steps": 4}}
    data["algorithm"] = {"name": "ppo", "minibatch_size": 8}
    data["opponents"] = {"games": {"random": 1, "league": 1}, "league": {"size": size, "add_every": every}}
    config, policy, _ = opposed(data)
    policy.size = 3
    nothing = np.zeros((4, 4), bool)
    fragment = Fragment(
        0, 0, 0, np.zeros((5, 4, 1)), np.zeros((4, 4)), np.zeros((4, 4)), nothing.copy(), nothing.copy(), np.zeros((0, 1)),
        {OPPONENT: np.zeros((4, 4), np.int16)}, agents=2,
    )  # fmt: skip
    return League(config, policy, Still()), fragment  # type: ignore[arg-type]


def test_games_are_counted_over_fragments_for_who_was_met() -> None:
    league, empty = league_of(size=2, every=100)
    who = np.zeros((4, 4), np.int16)
    who[:, 1], who[:, 2] = 1, 2  # in the first copy random play sits second, in the second copy the league's first
    first = replace(empty, reward=np.zeros((4, 4)), extras={OPPONENT: who})
    first.reward[1, 0], first.reward[1, 1] = 1.0, -1.0  # earned before the fragment ends
    first.reward[2, 2], first.reward[2, 3] = 1.0, -1.0
    second = replace(empty, terminated=empty.terminated.copy(), reward=np.zeros((4, 4)), extras={OPPONENT: who})
    second.terminated[0] = True
    second.reward[0, 2], second.reward[0, 3] = -1.0, 1.0  # which makes it a draw
    second.terminated[3, 2:] = True
    second.reward[3, 3] = -0.5
    assert league.update([first], 0, 0.0)["league"] == 1 and not league.games.any()
    league = pickled(league)
    metrics = league.update([second], 1, 0.0)
    assert league.games.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert (
        metrics["against/random/win"] == 1 and metrics["against/league/draw"] == metrics["against/league/loss"] == 0.5
    )
    league.update([replace(second, terminated=empty.terminated)], 2, 0.0)
    assert league.games[1].tolist() == [0.95, 0, 0]


def pickled(league: League) -> League:
    """Another one, from the checkpoint of a first."""
    other, _ = league_of(len(league.members), league.settings.add_every)
    other.load_state({name: array.copy() for name, array in league.state().items()})
    assert same(other.weights(), league.weights())
    return other


def test_versions_join_and_of_a_full_league_the_most_beaten_leaves() -> None:
    league, empty = league_of(size=3, every=2)
    for k in range(4):
        league.update([empty], k, 0.0)
    assert league.versions.tolist() == [0, 2, 4] and league.members[:, 0].tolist() == [0, 2, 4]
    league.games[2:] = [[5, 0, 5], [9, 0, 1], [0, 9, 1]]  # the second is beaten most, the third never
    shares = {}
    for priority in (0.0, 1.0):
        league.settings = league.settings.model_copy(update={"priority": priority})
        found = league.weights()[3 + 1 + 2 :][:3]  # behind the policy's own, the rating, and the shares of who is fixed
        assert found.sum() == 1
        shares[priority] = found
    assert shares[0.0] == pytest.approx([1 / 3] * 3)
    lost = 1 - (np.array([5, 9, 0]) + 1 / 3) / 11
    assert shares[1.0] == pytest.approx(lost / lost.sum())
    for k in (4, 5):
        league.update([empty], k, 0.0)
    assert league.versions.tolist() == [0, 6, 4] and not league.games[3].any()
    league.games[:] = 0
    league.update([empty], 7, 0.0)
    assert league.versions.tolist() == [8, 6, 4]  # of equals the oldest
    assert pickled(league).versions.tolist() == [8, 6, 4]


@pytest.mark.parametrize(("games", "score", "other"), [(99, 49.5, 0.0), (199, 150.0, 100.0), (30, 3.0, -50.0)])
def test_a_rating_is_that_of_elo(games: float, score: float, other: float) -> None:
    share = (score + 0.5) / (games + 1)
    assert rated(np.array([score]), np.array([games]), np.array([other])) == pytest.approx(
        other + 400 * math.log10(share / (1 - share)), abs=0.01
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("runs") / "game"
    train(load_config(BASE | {"run_dir": str(where)}), local=True, quiet=True)
    return where


def test_a_run_tells_of_every_opponent_by_seat(run_dir: Path) -> None:
    evaluation = json.loads((run_dir / "result.json").read_text())["evaluation"]
    assert list(evaluation["against"]) == ["random", "teams:first_allowed", "earlier"]
    seats, total = ("player_1", "player_2"), 0.0
    for found in evaluation["against"].values():
        assert list(found) == ["mean", "win", "draw", "loss"] and all(
            tuple(by_seat) == seats for by_seat in found.values()
        )
        assert all(found["win"][s] + found["draw"][s] + found["loss"][s] == pytest.approx(1) for s in seats)
        assert all(found["win"][s] - found["loss"][s] == pytest.approx(found["mean"][s]) for s in seats)
        total += sum(found["mean"].values())
    assert evaluation["mean"] == pytest.approx(total / 6) == np.mean([evaluation["agents"][s]["mean"] for s in seats])
    assert isinstance(evaluation["elo"], float)
    told = dict(Evaluation.from_json(evaluation).told)
    won = evaluation["against"]["random"]["win"]["player_2"]
    mean = evaluation["against"]["random"]["mean"]["player_2"]
    assert told["as player_2 against random"].startswith(f"mean {mean:.2f}, {won:.1%} win, ")
    assert told["Elo over the league"] == f"{evaluation['elo']:.0f}"
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert any("evaluation/against/earlier/win" in row for row in rows)
    assert [row["train/league"] for row in rows if "train/league" in row] == [1, 1, 2, 2]  # before each update's end
    assert load_policy(run_dir).policy.obs_layout.agents == seats  # the model is of the trained policy alone


def test_scores_are_drawn(run_dir: Path) -> None:
    assert (run_dir / "plots" / "games.png").exists()
    run = read_run(run_dir)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for kind, name, x in (
        (TRAINING, "random", "env_steps"),
        (TRAINING, "league", "env_steps"),
        (EVALUATION, "earlier", "evaluation/env_steps"),
    ):
        told = {row[x]: row for row in rows if f"{kind}{name}/win" in row}
        steps, score = scores(run, kind)[name]
        assert steps.tolist() == sorted(told)
        for step, value in zip(steps.tolist(), score.tolist(), strict=True):
            win, draw = (told[step][f"{kind}{name}/{outcome}"] for outcome in ("win", "draw"))
            assert value == pytest.approx(win + draw / 2)
    assert not any(key.startswith("against") for key in losses_of(run))


def losses_of(run: Run) -> list[str]:
    figure = losses(run)
    assert figure is not None
    return [axes.get_title() for axes in figure.axes]


def test_games_against_random_play_go_as_the_whole_tree_says(run_dir: Path) -> None:
    seats = {seat.agent: seat for seat in examine_game(run_dir, [])}
    names = ["random", "teams:any_allowed"]
    found, _ = play_episodes(run_dir, 800, greedy=True, seed=3, opponents=names)
    for name in names:
        for agent, exact in seats.items():
            for outcome in ("win", "draw", "loss"):
                share, met = getattr(exact, outcome), found.against[name][outcome][agent]
                assert abs(met - share) <= 4 * math.sqrt(share * (1 - share) / 200) + 1e-9, (name, agent, outcome)


def test_runs_are_opponents_and_needed_only_at_the_beginning(run_dir: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run_dir, tmp_path / "teacher")
    opponents = {"games": {str(other): 1}, "evaluation": [str(other), "random"]}
    config = load_config(BASE | {"opponents": opponents, "run_dir": str(tmp_path / "run"), "init_from": str(run_dir)})
    whole = train(config.with_(run_dir=tmp_path / "whole"), local=True, quiet=True)
    assert list(whole.data["evaluation"]["against"]) == ["teacher", "random"]
    part = train(config, local=True, quiet=True, callbacks=[StopAt(2)])
    shutil.rmtree(other)
    resumed = train(load_config(part.run_dir), local=True, quiet=True, resume=part.run_dir)
    assert resumed.data["weights_sha256"] == whole.data["weights_sha256"]
    assert resumed.data["evaluation"] == whole.data["evaluation"]
    assert weights_sha256(load_policy(list_checkpoints(resumed.run_dir)[-1]).policy) == resumed.data["weights_sha256"]


def test_one_group_of_several_is_trained_against_others_in_its_own_seats(tmp_path: Path) -> None:
    """Who sees and does other things."""
    data = BASE | {
        "env": {"id": "mpe2/simple_adversary_v3", "kwargs": {"max_cycles": 9}},
        "policies": {"good": ["agent_*"], "bad": ["adversary_0"]},
        "opponents": {
            "seats": ["bad"],
            "games": {"random": 1, "teams:still": 1},
            "evaluation": ["random", "teams:still"],
        },
    }
    config, policy, vector = opposed(data)
    fragment = rolled(config, policy, vector)[0]
    who = fragment.extras[OPPONENT].reshape(32, 8, 3)
    assert policy.obs_layout.agents == ("adversary_0", "agent_0", "agent_1")
    assert not who[:, :, 0].any() and set(np.unique(who[:, :, 1:]).tolist()) == {1, 2}
    actions = policy.action_layout.of("agent_0").narrow(fragment.action).reshape(32, 8, 3)
    assert not actions[who == 2].any()
    counts = np.bincount(actions[who == 1].ravel(), minlength=5)
    assert abs(counts / counts.sum() - 0.2).max() < 4 * math.sqrt(0.16 / counts.sum())
    result = train(config.with_(run_dir=tmp_path / "run"), local=True, quiet=True)
    begun, ended = policy.own.split(vector[: policy.size]), load_policy(result.run_dir).policy.arrays()
    trained = {name: flatten({k: a for k, a in ended.items() if k.startswith(f"{name}/")}) for name in ("good", "bad")}
    assert same(trained["good"], begun[0]) and not same(trained["bad"], begun[1])
    evaluation = result.data["evaluation"]
    assert list(evaluation["against"]) == ["random", "teams:still"] and list(evaluation["agents"]) == ["bad"]
    assert evaluation["mean"] == evaluation["agents"]["bad"]["mean"]
    for found in evaluation["against"].values():
        assert list(found) == ["mean"] and list(found["mean"]) == ["bad"]  # nobody wins what others lose
    told = Evaluation.from_json(evaluation).told
    assert ("as bad against random", f"mean {evaluation['against']['random']['mean']['bad']:.2f}") in told
    found, _ = play_episodes(result.run_dir, 8, greedy=True, seed=1, opponents=["random"])
    assert list(found.agents) == ["good", "bad"]


def flatten(arrays: dict[str, Array]) -> Array:
    return np.concatenate([array.ravel() for array in arrays.values()])


def test_who_cannot_play_this_game_is_one_message(run_dir: Path) -> None:
    _, policy, _ = opposed()
    info = describe_env(load_config(BASE).env)
    cartpole = {"env": {"id": "CartPole-v1"}, "algorithm": {"name": "ppo"}}
    memory = cartpole | {"algorithm": {"name": "ppo", "shared_body": True, "memory": {}}}
    settings = OpponentSettings(games={"runs/x": 1})
    for data, message in ((cartpole, "'x' plays another game than classic/tictactoe_v3"), (memory, "'x' remembers")):
        config = load_config(data)
        other = make_policy(config, describe_env(config.env))
        with pytest.raises(UserError, match=message):
            make_opposed(settings, policy.own, info, {"x": other})
    assert list(make_opposed(settings, policy.own, info, {"x": load_policy(run_dir).policy}).fixed) == ["random", "x"]
    with pytest.raises(UserError, match="--against league is of a run that trains"):
        play_episodes(run_dir, 4, greedy=True, seed=1, opponents=["league"])


class StopAt:
    def __init__(self, checkpoint: int) -> None:
        self.checkpoint = checkpoint

    def on_checkpoint(self, path: Path) -> bool:
        return int(path.name) != self.checkpoint


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "cheat": ({"games": {"teams:forbidden": 1}}, "did 0, which the mask .* forbids"),
    "clumsy": (
        {"games": {"teams:clumsy": 1}},
        "teams:clumsy raised: RuntimeError: no idea .*Give a function that takes",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_function_does_wrong_is_one_message(name: str, tmp_path: Path) -> None:
    opponents, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        train(load_config(BASE | {"opponents": opponents, "run_dir": str(tmp_path / "run")}), local=True, quiet=True)


def test_a_table_meets_others_in_evaluations_alone(run_dir: Path, tmp_path: Path) -> None:
    """It learns what it would learn without them, and needs a run among them only at the beginning."""
    data = BASE | {
        "env": {"id": "classic/tictactoe_v3"},
        "algorithm": {"name": "q", "capacity": 20_000, "epsilon": {"start": 1, "end": 0.2}},
        "evaluation": {"every": 2, "episodes": 8, "final_episodes": 80},
        "opponents": None,
    }
    teacher = shutil.copytree(run_dir, tmp_path / "teacher")
    plain = train(load_config(data | {"run_dir": str(tmp_path / "plain")}), local=True, quiet=True)
    with pytest.raises(UserError, match=r"here is algorithm\.name=q\. .*With opponents\.games=\{self: 1\}"):
        load_config(data | {"opponents": {"games": {"random": 1}}})
    with pytest.raises(UserError, match="without earlier"):
        load_config(data | {"opponents": {"evaluation": ["earlier"]}})
    met = load_config(data | {"opponents": {"evaluation": ["random", str(teacher)]}, "run_dir": str(tmp_path / "met")})
    part = train(met, local=True, quiet=True, callbacks=[StopAt(2)])
    shutil.rmtree(teacher)
    found = train(load_config(part.run_dir), local=True, quiet=True, resume=part.run_dir)
    assert found.data["weights_sha256"] == plain.data["weights_sha256"]
    against = found.data["evaluation"]["against"]
    assert list(against) == ["random", "teacher"] and plain.data["evaluation"]["against"] == {}
    seats = {seat.agent: seat for seat in examine_game(found.run_dir, [])}
    for agent, exact in seats.items():
        assert abs(against["random"]["win"][agent] - exact.win) <= 4 * math.sqrt(0.25 / 20)
    rows = [json.loads(line) for line in (found.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert any("evaluation/against/random/win" in row for row in rows)
