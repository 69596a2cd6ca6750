"""Envs of several agents: what shards tell of them is what PettingZoo's own loops see, and they are rebuilt bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toys import same

from distrl.envs.journal import Journal, Underway
from distrl.envs.make import describe_env, make_env
from distrl.envs.multi import Team, make_team
from distrl.envs.shard import make_shard
from distrl.envs.team import TeamShard
from distrl.errors import EnvError, UserError
from distrl.settings import EnvSettings
from distrl.tools.random_actions import RandomActions
from distrl.types import Array, Snapshot

SPREAD = EnvSettings(id="mpe2/simple_spread_v3", kwargs={"N": 2, "max_cycles": 7}, vectorize="single")
CROWD, AUCTION = EnvSettings(id="teams:Crowd"), EnvSettings(id="teams:Auction", kwargs={"agents": 3})
TICTACTOE = EnvSettings(id="classic/tictactoe_v3", vectorize="single")
ALL = {"spread": SPREAD, "crowd": CROWD, "auction": AUCTION, "tictactoe": TICTACTOE}


def shard_of(env: EnvSettings, copies: int, seed: int = 3) -> TeamShard:
    made = make_shard(env, seed, 1, copies)
    assert isinstance(made, TeamShard)
    return made


def seen_by(shard: TeamShard, row: int) -> Array:
    """What an agent sees, without which one it is and what is forbidden."""
    part = next(part for part in shard.layout.parts if part.path == ("observation",))
    seen: Array = part.of(shard.obs[row])
    return seen


@pytest.mark.parametrize("env", [SPREAD, CROWD], ids=["spread", "crowd"])
def test_agents_at_once_are_those_of_a_plain_loop(env: EnvSettings) -> None:
    copies, shard = 2, shard_of(env, 2)
    agents, size = shard.layout.agents, len(shard.layout.agents)
    plain = [make_team(env).game for _ in range(copies)]
    told = [plain[i].reset(seed=shard._episode_seed(i))[0] for i in range(copies)]
    rng, ends = np.random.default_rng(0), 0
    for _ in range(60):
        for i in range(copies):
            for a, name in enumerate(agents):
                row = i * size + a
                assert shard.active[row] == (name in plain[i].agents)
                if name in plain[i].agents:
                    assert same(seen_by(shard, row), told[i][name])
                one_hot = next(part for part in shard.layout.parts if part.path == ("agent",)).of(shard.obs[row])
                assert one_hot.tolist() == np.eye(size)[a].tolist()
        action = rng.integers(3, size=copies * size)
        step = shard.step(action)
        final = iter(step.final_obs)
        for i in range(copies):
            acted = list(plain[i].agents)
            moves = {name: int(action[i * size + agents.index(name)]) for name in acted}
            told[i], reward, terminated, truncated, _ = plain[i].step(moves)
            over = not plain[i].agents
            for a, name in enumerate(agents):
                row = i * size + a
                assert step.reward[row] == (reward[name] if name in acted else 0.0)
                if name in acted:
                    assert step.terminated[row] == terminated[name]
                    assert step.truncated[row] == (truncated[name] and not terminated[name])
                else:
                    assert (step.terminated[row], step.truncated[row]) == (over, False)
                if step.terminated[row] or step.truncated[row]:
                    last = next(final)
                    if name in acted:
                        part = next(part for part in shard.layout.parts if part.path == ("observation",))
                        assert same(part.of(last), told[i][name])
            if over:
                ends += 1
                told[i] = plain[i].reset(seed=shard._episode_seed(i))[0]
        with pytest.raises(StopIteration):
            next(final)
    assert ends > 10


@pytest.mark.parametrize("env", [TICTACTOE, AUCTION], ids=["tictactoe", "auction"])
def test_agents_in_turns_are_those_of_pettingzoos_own_loop(env: EnvSettings) -> None:
    """By `agent_iter` and `last`, in which a reward comes with the next turn of whom it is for."""
    shard = shard_of(env, 1)
    agents, rng = shard.layout.agents, np.random.default_rng(1)
    plain = make_team(env).game
    for _ in range(30):
        seed = shard._episode_seed(0)
        moves, ours = [], np.zeros(len(agents))
        while shard._episode_seed(0) == seed:  # an episode
            (row,) = np.flatnonzero(shard.active)
            allowed = np.flatnonzero(shard.layout.mask_of(shard.obs)[row]) if shard.layout.masked else np.arange(2)
            action = rng.integers(0, 9, len(agents))
            action[row] = rng.choice(allowed)
            moves.append((agents[row], int(action[row]), seen_by(shard, row).copy()))
            step = shard.step(action)
            ours += step.reward
            assert len(step.final_obs) in (0, len(agents))
            assert not step.truncated.any() and step.terminated.all() == bool(len(step.final_obs))
        plain.reset(seed=seed)
        theirs, turns = dict.fromkeys(agents, 0.0), iter(moves)
        for agent in plain.agent_iter():
            obs, reward, terminated, truncated, _ = plain.last()
            theirs[agent] += reward
            if terminated or truncated:
                plain.step(None)
                continue
            name, move, seen = next(turns)
            assert name == agent and same(seen, obs["observation"] if isinstance(obs, dict) else obs)
            plain.step(move)
        assert next(turns, None) is None
        assert ours.tolist() == list(theirs.values())


@pytest.mark.parametrize("name", ALL)
def test_a_shard_is_rebuilt_from_its_journal(name: str) -> None:
    env, copies = ALL[name], 3
    info = describe_env(env)
    one, two = shard_of(env, copies), shard_of(env, copies)
    actions, journal = RandomActions(info, 1, copies), Journal(None)
    underway = Underway(copies, len(info.agents))
    for k in range(1, 8):
        taken = []
        for _ in range(5):
            taken.append(actions.batch(one.obs))
            underway.count(one.step(taken[-1]))
            two.step(actions.batch(two.obs))
        after = Snapshot(k, underway.returns.copy(), underway.lengths.copy(), one.arrays())
        journal.add(after, np.stack(taken).reshape(5, copies, len(info.agents)))
        snapshot = journal.before(k)
        assert snapshot is not None and two.restore(snapshot).all()
        assert same(one.obs, two.obs) and same(one.active, two.active)
    for _ in range(20):
        action = actions.batch(one.obs)
        a, b = one.step(action), two.step(action)
        assert all(same(getattr(a, key), getattr(b, key)) for key in ("obs", "reward", "terminated", "truncated"))
        assert same(one.active, two.active)


def test_episodes_are_counted_by_env_copies_and_agents() -> None:
    """The sums of a plain loop over one copy at a time."""
    copies, shard = 2, shard_of(CROWD, 2)
    underway, rng = Underway(copies, 3), np.random.default_rng(0)
    ours, sums = [], np.zeros((copies, 3))
    for _ in range(50):
        before = shard.episode.copy()
        step = shard.step(rng.integers(3, size=6))
        returns, lengths = underway.count(step)
        sums += step.reward.reshape(copies, 3)
        over = shard.episode != before
        assert len(returns) == len(lengths) == over.sum()
        assert returns.tolist() == sums[over].tolist()
        sums[over] = 0
        ours += lengths.tolist()
    assert len(ours) > 10 and max(ours) <= 8


def test_a_time_limit_cuts_off_whoever_is_left() -> None:
    env = CROWD.model_copy(update={"max_episode_steps": 4})
    team = make_env(env)
    assert isinstance(team, Team)
    cut = 0
    for seed in range(40):
        team.begin(seed)
        there = team.there
        while not team.over:
            there = team.there
            team.advance([0, 0, 0])
        assert team.steps <= 4
        if team.steps == 4:
            natural = {name: team.game.times[name] <= 4 for name in team.agents}
            cut += not all(natural.values())
            assert (team.truncated | team.terminated)[there].all()
            assert not team.terminated[there].any()
    assert cut > 10


def test_what_is_told_of_them() -> None:
    info = describe_env(SPREAD)
    assert list(info.agents) == ["agent_0", "agent_1"] and not info.turns and info.state_space is not None
    assert info.max_episode_steps == 7 and info.obs_layout.agents == ("agent_0", "agent_1")
    assert describe_env(TICTACTOE).turns and describe_env(TICTACTOE).obs_layout.mask is not None
    masked = describe_env(EnvSettings(id="teams:Crowd", kwargs={"masks": True})).obs_layout
    assert masked.in_info and masked.mask is not None and masked.mask.n == (3,)


def test_masks_of_infos_reach_the_policy() -> None:
    shard = shard_of(EnvSettings(id="teams:Crowd", kwargs={"masks": True}), 1)
    for _ in range(20):
        mask = shard.layout.mask_of(shard.obs)
        assert mask is not None
        odd = shard.envs[0].game.t % 2
        assert (mask[shard.active] == [True, True, bool(odd)]).all()
        shard.step(np.array([0, 1, 0]))


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a name": ({"id": "mpe2/simple_spred_v3"}, "mpe2 has no 'simple_spred_v3'. Did you mean 'simple_spread_v3'?"),
    "a version": ({"id": "sisl/pursuit_v4"}, "pettingzoo.sisl has no 'pursuit_v4'. Did you mean 'pursuit_v5'?"),
    "kwargs": ({"id": "mpe2/simple_spread_v3", "kwargs": {"n": 3}}, "env.kwargs {'n': 3} do not fit"),
    "wrappers": ({"id": "mpe2/simple_spread_v3", "wrappers": ["clip_reward"]}, "env.wrappers are around envs of one"),
    "report": ({"id": "mpe2/simple_spread_v3", "report": ["score"]}, "env.report is of envs of one agent"),
    "a function": ({"id": "teams:broken"}, "out of order"),
    "no env": ({"id": "teams:no_env"}, "makes a int, which is no env of PettingZoo"),
    "native": ({"id": "mpe2/simple_spread_v3", "vectorize": "table"}, "env.vectorize is 'table'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_message(name: str) -> None:
    env, message = MISTAKES[name]
    with pytest.raises(UserError) as error:
        describe_env(EnvSettings.model_validate(env))
    assert message in str(error.value)


def test_agents_that_see_different_things_share_no_policy() -> None:
    info = describe_env(EnvSettings(id="teams:Crowd", kwargs={"other": True}))
    with pytest.raises(UserError, match=r"agents whose observations differ: those of a are .* those of c "):
        _ = info.obs_layout


def test_a_mask_that_forbids_all_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    import teams

    shard = shard_of(EnvSettings(id="teams:Crowd", kwargs={"masks": True}), 1)
    monkeypatch.setattr(teams.Crowd, "_infos", lambda self: {a: {"action_mask": np.zeros(3, np.int8)} for a in "abc"})
    with pytest.raises(UserError, match=r"the action mask .* allows nothing"):
        shard.step(np.zeros(3, np.int64))


def test_what_an_env_raises_names_copy_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = shard_of(CROWD, 2)
    monkeypatch.setattr(shard.envs[1].game, "step", lambda actions: 1 / 0)
    with pytest.raises(EnvError, match="env copy 3") as error:
        shard.step(np.zeros(6, np.int64))
    assert "ZeroDivisionError" in str(error.value) and str(shard._episode_seed(1)) in str(error.value)
