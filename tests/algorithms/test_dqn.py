"""DQN: that it finds the values of a small known world with every switch, and that each switch does what it says."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import CARTPOLE, config_of
from conftest import DQN as DQN_BASE
from toys import obs_layout, spec_of

from distrl.acting.network import NetworkSpec, single_threaded
from distrl.acting.policies import EpsilonGreedyPolicy
from distrl.algorithms import dqn as dqn_module
from distrl.algorithms.dqn import DQN, Settings, initial_weights, make, make_policy
from distrl.envs.make import describe_env
from distrl.errors import UserError
from distrl.learning.losses import greedy_value, munchausen_bonus, soft_value, td_target
from distrl.learning.networks import make_network
from distrl.learning.optimizer import FlatParameters
from distrl.learning.schedules import Schedule
from distrl.learning.slices import Slices
from distrl.types import Array, Batch, EnvInfo

CPU = torch.device("cpu")
GAMMA = 0.8
# A corridor of three states. Action 1 goes right, at its end out (1, terminated); action 0 stays (0.1).


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    single_threaded()


def make_dqn(seed: int = 1, spec: NetworkSpec | None = None, first_action: int = 0, **changes: Any) -> DQN:
    settings = Settings.model_validate(
        {"name": "dqn", "gamma": GAMMA, "batch_size": 6, "lr": 0.03, "target_every": 10} | changes
    )
    spec = spec or spec_of((3,), 2, (16,), (), "relu", 1.0, settings.layer_norm, settings.dueling)
    policy = EpsilonGreedyPolicy(spec, obs_layout(spec), first_action)
    policy.load(initial_weights(settings, policy, seed))
    return make(settings, policy, seed, CPU)


def batch(
    obs: Array,
    action: Array,
    reward: Array,
    discount: Array,
    next_obs: Array,
    weight: Array | None = None,
    updates: int = 1,
) -> Batch:
    """The same minibatch for every one of so many updates."""
    rows = [
        np.arange(len(action)),
        obs,
        action,
        reward,
        discount,
        next_obs,
        np.ones(len(action)) if weight is None else weight,
    ]
    kinds = [np.int64, np.float32, np.int64, np.float32, np.float32, np.float32, np.float32]
    return Batch(*(np.stack([r] * updates).astype(kind) for r, kind in zip(rows, kinds, strict=True)))


def corridor(updates: int, first_action: int = 0) -> Batch:
    """Every step of it."""
    state, action = np.repeat(np.arange(3), 2), np.tile([0, 1], 3)
    reward = np.where(action == 0, 0.1, np.where(state == 2, 1.0, 0.0))
    after = np.where(action == 0, state, np.minimum(state + 1, 2))
    discount = np.where((state == 2) & (action == 1), 0.0, GAMMA)
    return batch(np.eye(3)[state], action + first_action, reward, discount, np.eye(3)[after], updates=updates)


def random_batch(updates: int, size: int = 6, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    obs, next_obs = rng.normal(size=(2, updates, size, 3)).astype(np.float32)
    reward, weight = rng.normal(size=(updates, size)), rng.random((updates, size)) + 0.5
    discount = np.where(rng.random((updates, size)) < 0.3, 0.0, GAMMA)
    return Batch(
        np.arange(updates * size).reshape(updates, size), obs, rng.integers(0, 2, (updates, size)),
        reward.astype(np.float32), discount.astype(np.float32), next_obs, weight.astype(np.float32),
    )  # fmt: skip


def q_values(dqn: DQN, obs: Array) -> Array:
    with torch.no_grad():
        return np.asarray(dqn.online(torch.tensor(obs, dtype=torch.float32)).numpy())


# --- values -----------------------------------------------------------------------------------------------------


def slow_greedy(target_q: Array, chooser_q: Array) -> list[float]:
    return [float(t[max(range(len(c)), key=lambda a: c[a])]) for t, c in zip(target_q, chooser_q, strict=True)]


def slow_policy(q: Array, temperature: float) -> list[float]:
    exp = [math.exp(float(x) / temperature) for x in q]
    return [e / sum(exp) for e in exp]


def test_the_values_of_the_next_state() -> None:
    rng = np.random.default_rng(0)
    target_q, chooser_q = rng.normal(size=(2, 50, 4))
    t, c = torch.tensor(target_q), torch.tensor(chooser_q)
    assert greedy_value(t, c).tolist() == slow_greedy(target_q, chooser_q)
    assert greedy_value(t, t).tolist() == target_q.max(1).tolist()
    soft = [
        sum(p * (x - 0.5 * math.log(p)) for p, x in zip(slow_policy(q, 0.5), q.tolist(), strict=True)) for q in target_q
    ]
    assert soft_value(t, 0.5).tolist() == pytest.approx(soft)
    assert soft_value(t, 1e-3).tolist() == pytest.approx(target_q.max(1), abs=0.01)


@pytest.mark.parametrize(
    "changes", [{"double": False}, {}, {"munchausen": {"temperature": 0.2, "floor": -9.0}}], ids=str
)
def test_what_is_forbidden_next_counts_for_nothing(changes: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    space, settings = gym.spaces.Box(-9, 9, (3,), np.float32), Settings.model_validate({"name": "dqn"} | changes)
    info = EnvInfo("Some-v0", space, gym.spaces.Discrete(4), None, None, (), 30, mask_in_info=True)
    policy = make_policy(settings, info)
    policy.load(initial_weights(settings, policy, 1))
    dqn = make(settings, policy, 1, CPU)
    with torch.no_grad():
        dqn.vector.add_(torch.tensor(rng.normal(0, 0.1, dqn.vector.shape)))
    plain = rng.normal(size=(2, 50, 3)).astype(np.float32)
    allowed = rng.random((2, 50, 4)) < 0.5
    allowed[..., 1] |= ~allowed.any(axis=-1)
    action = np.array([rng.choice(np.flatnonzero(mask)) for mask in allowed[0]])
    obs, next_obs = (torch.tensor(info.obs_layout.pack(o, m)) for o, m in zip(plain, allowed, strict=True))
    bonus, next_q = dqn.ask_target(obs[None], torch.tensor(action)[None], next_obs[None])
    found = dqn.targets(next_obs, next_q[0], bonus[0], torch.full((50,), 0.9)).numpy()

    (q, after), (_, online) = ([n(x).detach().numpy() for x in (obs, next_obs)] for n in (dqn.target, dqn.online))
    for n in range(50):
        now, then = np.flatnonzero(allowed[0, n]), np.flatnonzero(allowed[1, n])
        if "munchausen" in changes:
            assert dqn.settings.munchausen is not None
            tau, alpha = 0.2, dqn.settings.munchausen.alpha
            pi, next_pi = slow_policy(q[n, now], tau), slow_policy(after[n, then], tau)
            wanted = alpha * tau * math.log(pi[list(now).index(action[n])])
            wanted += 0.9 * sum(p * (after[n, a] - tau * math.log(p)) for a, p in zip(then, next_pi, strict=True))
        else:
            chooser = online if dqn.settings.double else after
            wanted = 0.9 * after[n, max(then, key=lambda a: chooser[n, a])]
        assert found[n] == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_munchausens_bonus() -> None:
    q, action = np.random.default_rng(0).normal(size=(50, 4)), np.arange(50) % 4
    expected = [
        0.9 * max(0.2 * math.log(slow_policy(x, 0.2)[a]), -1.0) for x, a in zip(q, action.tolist(), strict=True)
    ]
    found = munchausen_bonus(torch.tensor(q), torch.tensor(action), 0.9, 0.2, -1.0).tolist()
    assert found == pytest.approx(expected)
    assert min(found) == pytest.approx(-0.9)


def test_targets_are_returns_and_what_is_left() -> None:
    reward, discount, value = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, 0.25], [10.0, 99.0, 4.0]])
    assert td_target(reward, discount, value).tolist() == [6.0, 2.0, 4.0]
    with pytest.raises(ValueError, match="shapes differ"):
        td_target(reward, discount, value[:, None])


SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {"double": False},
    "double": {},
    "dueling": {"dueling": True},
    "layer norm": {"layer_norm": True},
    "all": {"dueling": True, "layer_norm": True},
    "soft target": {"tau": 0.1, "target_every": 1},
    "squared error": {"huber": None},
    "narrow huber": {"huber": 0.05, "max_grad_norm": None},
}


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_the_corridor_gets_its_true_values(switches: dict[str, Any]) -> None:
    dqn = make_dqn(**switches)
    for lr in (0.02, 0.005, 0.001):
        dqn.settings = dqn.settings.model_copy(update={"lr": Schedule(start=lr)})
        dqn.learn(corridor(250), 0, 0.0)
    value = np.zeros(3)
    for _ in range(200):  # value iteration, in plain words
        stay = 0.1 + GAMMA * value
        go = np.array([GAMMA * value[1], GAMMA * value[2], 1.0])
        value = np.maximum(stay, go)
    true = np.stack([stay, go], axis=1)
    assert q_values(dqn, np.eye(3)) == pytest.approx(true, abs=0.02)


def test_munchausen_widens_the_gap_between_actions() -> None:
    """Its fixed point prefers the same actions by more (Vieillard et al. 2020, theorem 2)."""
    plain, wide = make_dqn(), make_dqn(munchausen={"alpha": 0.9, "temperature": 0.1, "floor": -10})
    for dqn in (plain, wide):
        for lr in (0.02, 0.005, 0.001):
            dqn.settings = dqn.settings.model_copy(update={"lr": Schedule(start=lr)})
            dqn.learn(corridor(400), 0, 0.0)
    gaps = [q[:, 1] - q[:, 0] for q in (q_values(plain, np.eye(3)), q_values(wide, np.eye(3)))]
    assert (np.sign(gaps[0]) == np.sign(gaps[1])).all()
    assert (np.abs(gaps[1]) > 1.5 * np.abs(gaps[0])).all()


@pytest.mark.parametrize("slices", [1, 4])
def test_errors_are_what_was_wrong_before_each_update(slices: int) -> None:
    dqn = make_dqn(double=True, lr=1e-9)  # so that nothing moves
    dqn.slices = Slices(slices)
    with torch.no_grad():
        dqn.target_vector.add_(torch.randn(dqn.target_vector.shape, generator=torch.Generator().manual_seed(0)))
    b = random_batch(3)
    metrics, errors = dqn.learn(b, 0, 0.0)
    for u in range(3):
        q, next_q = q_values(dqn, b.obs[u]), q_values(dqn, b.next_obs[u])
        with torch.no_grad():
            target_q = dqn.target(torch.tensor(b.next_obs[u])).numpy()
        best = slow_greedy(target_q, next_q)
        for i in range(6):
            y = b.reward[u, i] + b.discount[u, i] * best[i]
            assert errors[u, i] == pytest.approx(y - q[i, b.action[u, i]], rel=1e-4, abs=1e-4)
    assert metrics["td_error"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    size, weight = np.abs(errors), b.weight / b.weight.max(axis=1, keepdims=True)
    assert metrics["loss"] == pytest.approx((weight * np.where(size <= 1, size**2 / 2, size - 0.5)).mean(), rel=1e-5)
    plain = make_dqn(double=False, lr=1e-9)
    plain.load_state(dqn.state())
    assert np.abs(plain.learn(b, 0, 0.0)[1] - errors).max() > 0.01


@pytest.mark.parametrize(
    "switches", [{}, {"double": False}, {"munchausen": {"temperature": 0.2, "floor": -0.5}}], ids=str
)
def test_a_team_learns_the_sum_of_its_values(switches: dict[str, Any]) -> None:
    """One update against torch's own gradient of the loss, summed up step by step and agent by agent."""
    dqn, rng, size, agents = (
        make_dqn(lr=0.5, adam_eps=100.0, max_grad_norm=None, **switches),
        np.random.default_rng(0),
        4,
        3,
    )
    with torch.no_grad():
        dqn.target_vector.add_(torch.randn(dqn.target_vector.shape, generator=torch.Generator().manual_seed(0)))
    obs, next_obs = rng.normal(size=(2, 1, size, agents, 3)).astype(np.float32)
    action, (reward, weight) = rng.integers(0, 2, (1, size, agents)), rng.normal(size=(2, 1, size)).astype(np.float32)
    discount, weight = np.array([[GAMMA, 0, GAMMA, GAMMA]], np.float32), np.abs(weight)
    own = make_network(spec_of((3,), 2, (16,), (), "relu", 1.0, False, False), dqn.weights()[:-1])
    flat, loss, errors = FlatParameters([own], CPU), torch.zeros(()), []
    for i in range(size):
        chosen, target = torch.zeros(()), float(reward[0, i])
        for k in range(agents):
            chosen = chosen + own(torch.tensor(obs[0, i, k])[None])[0, action[0, i, k]]
            with torch.no_grad():
                now, then = (dqn.target(torch.tensor(x[0, i, k])[None])[0].tolist() for x in (obs, next_obs))
                online = own(torch.tensor(next_obs[0, i, k])[None])[0].tolist()
            if dqn.settings.munchausen is not None:
                pi, next_pi = slow_policy(now, 0.2), slow_policy(then, 0.2)
                target += 0.9 * max(0.2 * math.log(pi[action[0, i, k]]), -0.5)
                target += discount[0, i] * sum(p * (q - 0.2 * math.log(p)) for p, q in zip(next_pi, then, strict=True))
            else:
                target += discount[0, i] * then[np.argmax(online if dqn.settings.double else then)]
        error = target - chosen
        errors.append(error.item())
        huber = error**2 / 2 if abs(errors[-1]) <= 1 else error.abs() - 0.5
        loss = loss + float(weight[0, i] / weight.max()) * huber / size
    loss.backward()
    before = dqn.vector.detach().clone()
    key = np.arange(size)[None]
    metrics, found = dqn.learn(Batch(key, obs, action, reward, discount, next_obs, weight), 0, 0.0)
    assert found[0].tolist() == pytest.approx(errors, abs=1e-5) and metrics["loss"] == pytest.approx(
        loss.item(), rel=1e-5
    )
    moved = dqn.vector.detach() - before  # Adam's first step, with so large an epsilon
    assert (
        torch.allclose(moved, -0.5 * flat.grad / (flat.grad.abs() + 100.0), rtol=1e-4, atol=1e-7)
        and moved.abs().max() > 1e-3
    )


@pytest.mark.parametrize("slices", [1, 4])
def test_weights_count_by_their_share_of_the_largest(slices: int) -> None:
    def moved(weight: Array) -> Array:
        dqn = make_dqn(lr=1.0, adam_eps=100.0)  # so large that steps are in proportion to gradients
        dqn.slices = Slices(slices)
        before = dqn.weights()
        b = random_batch(1)
        b.weight[:] = weight
        dqn.learn(b, 0, 0.0)
        return np.asarray(dqn.weights() - before)

    assert moved(np.full(6, 3.0)) == pytest.approx(moved(np.ones(6)), abs=1e-7)
    single = [moved(np.eye(6)[i]) for i in range(6)]
    assert moved(np.ones(6)) == pytest.approx(sum(single), rel=0.02, abs=2e-5)


@pytest.mark.parametrize(("tau", "every"), [(1.0, 7), (1.0, 1), (0.25, 3)])
def test_the_target_follows(tau: float, every: int) -> None:
    dqn = make_dqn(tau=tau, target_every=every)
    target = dqn.target_vector.detach().clone()
    for n in range(1, 20):
        dqn.learn(random_batch(1, seed=n), 0, 0.0)
        if n % every == 0:
            target = target + tau * (dqn.vector.detach() - target)
        assert torch.allclose(dqn.target_vector, target, atol=1e-6)


def some_of(batch: Batch, updates: slice) -> Batch:
    return Batch(*(array[updates] for array in vars(batch).values() if array is not None))


@pytest.mark.parametrize("target", [{"double": True}, {"double": False}, {"munchausen": {}}], ids=str)
def test_minibatches_come_one_after_the_other_however_they_are_grouped(
    target: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target network is asked for many at once; that must not let it be asked too early or too late."""
    b = random_batch(25)
    whole, single, grouped = (make_dqn(target_every=4, **target) for _ in range(3))
    whole_errors = whole.learn(b, 0, 0.0)[1]
    parts = [some_of(b, slice(u, u + 1)) for u in range(25)]
    single_errors = np.concatenate([single.learn(part, 0, 0.0)[1] for part in parts])
    monkeypatch.setattr(dqn_module, "AT_ONCE", 12)
    grouped_errors = grouped.learn(b, 0, 0.0)[1]
    assert single_errors == pytest.approx(whole_errors, abs=1e-4)
    assert grouped_errors == pytest.approx(whole_errors, abs=1e-4)
    assert single.updates == whole.updates == grouped.updates == 25


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_told() -> None:
    free, clipped = make_dqn(max_grad_norm=None, adam_eps=100.0), make_dqn(max_grad_norm=0.01, adam_eps=100.0)
    start = free.weights()
    norms = [d.learn(random_batch(1), 0, 0.0)[0]["grad_norm"] for d in (free, clipped)]
    assert norms[0] == pytest.approx(norms[1])
    assert norms[0] > 0.1
    moves = [float(np.linalg.norm(d.weights() - start)) for d in (free, clipped)]
    assert moves[1] == pytest.approx(moves[0] * 0.01 / norms[0], rel=0.1)


def test_actions_are_counted_from_the_first() -> None:
    plain, shifted = make_dqn(), make_dqn(first_action=5)
    plain.learn(corridor(5), 0, 0.0)
    shifted.learn(corridor(5, first_action=5), 0, 0.0)
    assert plain.weights().tobytes() == shifted.weights().tobytes()


def test_without_a_batch_only_epsilon_changes() -> None:
    dqn = make_dqn(epsilon={"start": 1, "end": 0, "over": 100})
    before = dqn.weights()
    empty = some_of(random_batch(1), slice(0))
    metrics, errors = dqn.learn(empty, 30, 0.0)
    assert errors.shape == (0, 6)
    assert metrics == {"epsilon": pytest.approx(0.7), "learning_rate": 0.03, "minibatches": 0.0}
    assert (dqn.weights()[:-1] == before[:-1]).all()
    assert (before[-1], dqn.weights()[-1]) == (1.0, pytest.approx(0.7))


def test_a_linear_learning_rate_runs_out_with_the_run() -> None:
    dqn = make_dqn(lr={"start": 0.03, "end": 0})
    assert dqn.learn(random_batch(1), 0, 0.25)[0]["learning_rate"] == pytest.approx(0.0225)
    before = dqn.weights()
    dqn.learn(random_batch(1), 0, 1.0)
    assert (dqn.weights() == before).all()


@pytest.mark.parametrize("switches", [*SWITCHES.values(), {"munchausen": {}}])
def test_a_state_goes_on_bit_for_bit(switches: dict[str, Any]) -> None:
    one, other = make_dqn(**switches), make_dqn(seed=9, **switches)
    one.learn(random_batch(13), 500, 0.1)
    other.load_state(one.state())
    assert one.weights().tobytes() == other.weights().tobytes()
    for n in range(3):
        left, right = (d.learn(random_batch(5, seed=n), 600 + n, 0.2)[1] for d in (one, other))
        assert left.tobytes() == right.tobytes()
        assert one.weights().tobytes() == other.weights().tobytes()


# --- exploring --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_probs": [0.5, 0.6]}, "action_probs.* must sum to 1, not 1.1"),
        ({"epsilon": 1.5}, "epsilon.* at most 1"),
        ({"epsilon": {"start": 0.5, "end": 2}}, "epsilon.* at most 1"),
        ({"ladder": -1}, "algorithm.ladder is -1"),
    ],
)
def test_impossible_exploration_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_of({**CARTPOLE, "algorithm": {"name": "dqn"} | changes})


SPECS = {
    "dueling": spec_of((8,), 4, (32, 24), (), "relu", 1.0, False, True),
    "layer norm": spec_of((8,), 4, (32, 24), (), "tanh", 1.0, True, False),
    "both, one layer": spec_of((8,), 4, (32,), (), "relu", 1.0, True, True),
    "pixels": spec_of((4, 84, 84), 2, (64,), ((16, 8, 4), (32, 4, 2)), "relu", 1 / 255, True, True),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_what_acts_is_what_learns(spec: NetworkSpec) -> None:
    generator = torch.Generator().manual_seed(0)
    network = make_network(spec, spec.initial(np.random.default_rng(0), 1.0))
    parameters = FlatParameters([network], CPU)
    assert {name.removeprefix("body."): tuple(p.shape) for name, p in network.named_parameters()} == spec.shapes()
    with torch.no_grad():
        parameters.vector.add_(0.1 * torch.randn(parameters.vector.shape, generator=generator))
    policy = EpsilonGreedyPolicy(spec, obs_layout(spec))
    policy.load(np.append(parameters.vector.detach().numpy(), np.float32(0.0)))
    rng = np.random.default_rng(0)
    obs = rng.integers(0, 256, (16, *spec.encoders[0].part.shape)).astype(spec.encoders[0].part.dtype)
    with torch.no_grad():
        expected = network(torch.tensor(obs)).numpy()
    action, extras = policy.act(obs, np.full((16, 2), 0.5))
    assert extras["value"] == pytest.approx(expected.max(1), rel=1e-4, abs=1e-4)
    assert (action == expected.argmax(1)).all()
    assert (policy.greedy(obs) == action).all()


def test_only_differences_between_actions_go_through_the_advantage() -> None:
    network = make_network(SPECS["dueling"], SPECS["dueling"].initial(np.random.default_rng(0), 1.0))
    obs = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = network(obs)
        network.head.bias.add_(3.0)
        assert torch.allclose(network(obs), before, atol=1e-5)
        network.value_head.bias.add_(3.0)
        assert torch.allclose(network(obs), before + 3.0, atol=1e-5)


# --- bad input --------------------------------------------------------------------------------------------------


def info_of(obs: gym.Space[Any], action: gym.Space[Any]) -> EnvInfo:
    return EnvInfo("Some-v0", obs, action, None, None, (), 30)


BOX, IMAGE = gym.spaces.Box(0, 1, (2,), np.float32), gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)


@pytest.mark.parametrize(
    ("obs", "action", "changes", "parts"),
    [
        (BOX, BOX, {}, ["Some-v0", "Discrete actions", "Set algorithm.name=ppo"]),
        (BOX, gym.spaces.MultiDiscrete([2, 2]), {}, ["MultiDiscrete", "Set algorithm.name=ppo"]),
        (gym.spaces.Text(4), gym.spaces.Discrete(2), {}, ["Some-v0", "Text", "TransformObservation"]),
        (
            BOX,
            gym.spaces.Discrete(2),
            {"body": "cnn"},
            ["algorithm.body is 'cnn'", "[2]", "distrl/FlappyBirdPixels-v0"],
        ),
        (BOX, gym.spaces.Discrete(3), {"action_probs": [0.5, 0.5]}, ["2 numbers", "3 actions"]),
    ],
)
def test_what_dqn_cannot_take_is_refused(obs: Any, action: Any, changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        make_policy(Settings.model_validate({"name": "dqn"} | changes), info_of(obs, action))
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("replay.start=20", ["batch_size is 32", "20 steps", "replay.start"]),
        ("algorithm.n_step=30", ["replay.start is 400", "algorithm.n_step=30", "more than 480"]),
        ("replay.capacity=500", ["replay.capacity is 500", "at least"]),
        ("replay.shards=3", ["replay.shards is 3", "rollout.shards=4"]),
        ("algorithm.batch_size=33", ["replay.shards is 2", "algorithm.batch_size=33"]),
        ("replay.samples_per_insert=0", ["replay.samples_per_insert is 0"]),
        ("algorithm.hidden=[]", ["algorithm.dueling", "algorithm.hidden is empty"]),
        ("algorithm.mnchausen=1", ["unknown key", "munchausen"]),
    ],
)
def test_contradictions_are_refused(override: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        config_of(DQN_BASE, override)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_ppo_takes_no_replay() -> None:
    with pytest.raises(UserError, match="ppo learns from no replay"):
        config_of(CARTPOLE, "replay.capacity=1000")


def test_images_get_convolutions() -> None:
    settings = Settings.model_validate({"name": "dqn"})
    assert len(make_policy(settings, info_of(IMAGE, gym.spaces.Discrete(2))).network.spec.encoders[0].conv) == 3
    small = settings.model_copy(update={"body": "small_cnn"})
    assert len(make_policy(small, info_of(IMAGE, gym.spaces.Discrete(2))).network.spec.encoders[0].conv) == 2
    assert make_policy(settings, describe_env(config_of(DQN_BASE).env)).network.spec.encoders[0].conv == ()
