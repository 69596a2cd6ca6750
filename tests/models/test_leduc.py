"""Leduc hold'em walked whole, against RLCard's own game, and numbers that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distrl import train
from distrl.acting.make import initial_weights, make_policy
from distrl.config import load_config
from distrl.envs.make import describe_env
from distrl.envs.multi import make_team
from distrl.errors import UserError
from distrl.models.leduc import AGENTS, FOLD, WINS, Bids, at_random, examine_leduc, mean_worth, nash_conv, plays, seen
from distrl.settings import EnvSettings
from distrl.types import Policy

pytest.importorskip("rlcard")
CONFIG: dict[str, Any] = {
    "env": {"id": "classic/leduc_holdem_v4"},
    "algorithm": {"name": "ppo", "hidden": [16], "minibatch_size": 64, "lr": 0.01},
    "rollout": {"shards": 2, "envs_per_shard": 4, "steps": 16},
    "opponents": {"games": {"self": 1, "league": 1}, "league": {"size": 3, "add_every": 2}},
    "stop": {"env_steps": 128 * 5},
    "evaluation": {"every": 0, "episodes": 2, "final_episodes": 2},
    "track": {"mlflow": False, "video": False},
}


def policy_of(seed: int, gain: float = 0.0) -> Policy:
    """An untrained one, or one that likes some moves much more than others."""
    config = load_config(CONFIG | {"opponents": None, "seed": seed})
    policy = make_policy(config, describe_env(config.env))
    vector = initial_weights(config, policy)
    policy.load(vector + gain * np.random.default_rng(seed).standard_normal(len(vector)).astype(np.float32))
    return policy


def test_the_rules_are_those_of_rlcard() -> None:
    """Hands at random: what may be done, what is seen by whose turn it is, and what is won."""
    game, rng, ends = make_team(load_config(CONFIG).env), np.random.default_rng(0), set()
    for seed in range(300):
        game.begin(seed)
        cards = game.game.unwrapped.env.game
        small = int(np.flatnonzero(game.acts)[0])  # the agent who begins
        ranks = ["JQK".index(cards.players[agent].hand.rank) for agent in (small, 1 - small)]
        bids, folded = Bids(), None
        while not game.over:
            agent = int(np.flatnonzero(game.acts)[0])
            place = int(agent != small)
            told = game.seen[AGENTS[agent]]
            assert place == bids.mover and np.flatnonzero(told["action_mask"]).tolist() == bids.moves
            public = "JQK".index(cards.public_card.rank) if bids.round else 0
            obs, mask = seen(place, bids)
            assert (told["observation"] == obs[ranks[place], public]).all() and (told["action_mask"] == mask).all()
            move = int(rng.choice(bids.moves))
            game.advance([move, move])
            if move == FOLD:
                folded = place
            else:
                bids = bids.after(move)
        if folded is None:
            public = "JQK".index(cards.public_card.rank)
            assert bids.round == 2 and bids.chips[0] == bids.chips[1]
            won = WINS[ranks[0], ranks[1], public] * bids.chips[0] / 2
        else:
            won = bids.chips[folded] / 2 * (-1 if folded == 0 else 1)
        assert game.reward[small] == won == -game.reward[1 - small]
        ends.add((folded, bids.round))
    assert ends >= {(None, 2), (0, 0), (1, 0), (0, 1), (1, 1)}


def test_random_play_is_worth_what_is_known() -> None:
    assert mean_worth(at_random, at_random) == pytest.approx(0)
    assert mean_worth(None, at_random) == pytest.approx(1.4716, abs=1e-4)
    assert nash_conv([policy_of(1)]) == pytest.approx(2.943, abs=0.05)  # an untrained policy plays nearly at random


def test_a_policy_wins_what_it_wins_in_many_hands() -> None:
    """Against random play, of its best actions."""
    policy, game = policy_of(2, 1.0), make_team(load_config(CONFIG).env)
    rng, total, hands = np.random.default_rng(0), 0.0, 3000
    layout = policy.obs_layout
    for seed in range(hands):
        game.begin(seed)
        while not game.over:
            agent = int(np.flatnonzero(game.acts)[0])
            told = game.seen[AGENTS[agent]]
            if agent == 0:
                move = int(policy.greedy(layout.pack(layout.seen_by(AGENTS[0], told))[None])[0])
            else:
                move = int(rng.choice(np.flatnonzero(told["action_mask"])))
            game.advance([move, move])
            total += game.reward[0]
    won = mean_worth(plays([policy], AGENTS[0], True), at_random)
    assert abs(total / hands - won) < 4 * 2.5 / hands**0.5 and abs(won) > 0.05


def test_who_is_drawn_among_several_is_worth_their_mean() -> None:
    several = [policy_of(seed, 0.5) for seed in range(3)]

    def against(policies: list[Policy]) -> float:
        return mean_worth(at_random, plays(policies, AGENTS[1], False))

    assert against(several) == pytest.approx(np.mean([against([policy]) for policy in several]))
    assert nash_conv([several[0]] * 2) == pytest.approx(nash_conv([several[0]]))
    assert nash_conv(several) < np.mean([nash_conv([policy]) for policy in several])
    best, other = plays(several[:1], AGENTS[0], True), plays(several[1:2], AGENTS[1], False)
    assert mean_worth(None, other) >= mean_worth(best, other)


def test_a_run_is_examined_with_its_league(tmp_path: Path) -> None:
    result = train(load_config(CONFIG | {"run_dir": str(tmp_path / "run")}), local=True, quiet=True)
    found = examine_leduc(result.run_dir)
    assert set(found.against_random) == set(AGENTS) and all(
        won < found.at_most for won in found.against_random.values()
    )
    assert found.members == 3 and found.league is not None and 2 < found.league < 3
    assert examine_leduc(result.run_dir / "best").league is None


def test_a_game_of_three_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = EnvSettings(id="classic/leduc_holdem_v4", kwargs={"num_players": 3})
    monkeypatch.setattr("distrl.models.leduc.load_to_play", lambda path, modules: (policy_of(1), env, {}))
    with pytest.raises(UserError, match=r"with two players. Leave out --exact"):
        examine_leduc(tmp_path)
