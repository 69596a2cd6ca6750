"""What acts (NumPy) against what learns (torch), and the policy on top of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Categorical
from toys import categorical, same, spec_of

from distrl.acting.network import Network as NumpyNetwork
from distrl.acting.network import NetworkSpec, flatten, single_threaded, unflatten
from distrl.acting.policies import StochasticPolicy, from_description
from distrl.learning.networks import Network
from distrl.learning.optimizer import FlatParameters
from distrl.types import Array

SPECS = {
    "tanh": spec_of((8,), 4),
    "relu": spec_of((3, 5), 2, hidden=(33, 17), activation="relu"),
    "linear": spec_of((6,), 3, hidden=()),
    "narrow": spec_of((1,), 1, hidden=(1, 1)),
    "nature": spec_of((4, 84, 84), 6, (512,), ((32, 8, 4), (64, 4, 2), (64, 3, 1)), "relu", 1 / 255),
    "oblong": spec_of((3, 40, 57), 5, (64,), ((8, 8, 4), (16, 4, 2)), "tanh", 1 / 255),
}


@pytest.fixture(autouse=True)
def _single_threaded() -> None:
    single_threaded()


def make(spec: NetworkSpec, seed: int = 0) -> tuple[Network, FlatParameters]:
    """A torch network with biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    network = Network(spec, spec.initial(np.random.default_rng(seed), 1.0))
    parameters = FlatParameters([network], torch.device("cpu"))
    with torch.no_grad():
        parameters.vector.add_(0.05 * torch.randn(parameters.vector.shape, generator=generator))
    return network, parameters


def observations(spec: NetworkSpec, count: int, seed: int = 1) -> Array:
    rng = np.random.default_rng(seed)
    part = spec.encoders[0].part
    if part.dtype == "uint8":
        return rng.integers(0, 256, (count, *part.shape), np.uint8)
    return rng.normal(size=(count, *part.shape)).astype(np.float32)


def acting(spec: NetworkSpec, vector: Array) -> NumpyNetwork:
    network = NumpyNetwork(spec)
    network.load(vector)
    return network


def biased(*logits: float, first_action: int = 0) -> StochasticPolicy:
    """A policy with these logits in every state."""
    spec = spec_of((1,), len(logits), hidden=())
    policy = categorical(spec, first_action)
    policy.load(np.array([0.0] * len(logits) + list(logits), np.float32))
    return policy


# --- NumPy against torch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_numpy_and_torch_compute_the_same(name: str) -> None:
    spec = SPECS[name]
    network, parameters = make(spec)
    obs = observations(spec, 9)
    wanted = network(torch.tensor(obs)).detach().numpy()
    found = acting(spec, parameters.vector.detach().numpy())(obs)
    assert found.dtype == np.float32
    assert np.ptp(wanted) > 0.01
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_parameters_have_the_same_names_shapes_and_order_on_both_sides(name: str) -> None:
    network, parameters = make(SPECS[name])
    assert {k: tuple(p.shape) for k, p in network.named_parameters()} == SPECS[name].shapes()
    assert [k for k, _ in network.named_parameters()] == list(SPECS[name].shapes())
    arrays = unflatten(parameters.vector.detach().numpy(), SPECS[name].shapes())
    for key, parameter in network.named_parameters():
        assert same(np.ascontiguousarray(arrays[key]), parameter.detach().numpy())


@pytest.mark.parametrize("name", ["tanh", "relu", "oblong"])
def test_bytes_are_scaled_and_other_numbers_taken_as_they_are(name: str) -> None:
    spec = SPECS[name]
    network = acting(spec, make(spec)[1].vector.detach().numpy())
    obs = observations(spec, 4)
    assert same(network(obs), network(obs.astype(np.float64)))
    if spec.encoders[0].scale != 1:
        unscaled = replace(spec, encoders=(replace(spec.encoders[0], scale=1.0),))
        np.testing.assert_allclose(network(obs), acting(unscaled, network.vector)(obs / 255), atol=1e-5)


@pytest.mark.parametrize("name", ["tanh", "relu", "linear", "oblong"])
def test_the_same_numbers_give_the_same_bits_wherever_they_lie_in_memory(name: str) -> None:
    """Ray hands out arrays at any address; runners must not differ by it."""
    spec = SPECS[name]
    vector, obs = make(spec)[1].vector.detach().numpy().copy(), observations(spec, 16)
    wanted = acting(spec, vector)(obs)

    def at(array: Array, offset: int) -> Array:
        memory = np.zeros(array.nbytes + 128, np.uint8)
        start = -memory.ctypes.data % 64 + offset
        moved: Array = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        moved[:] = array
        moved.flags.writeable = False
        return moved

    for offset in range(0, 64, 4):
        network = acting(spec, at(vector, offset))
        for _ in range(2):
            assert same(network(at(obs, (5 * offset) % 64)), wanted), offset


def test_acting_changes_neither_observations_nor_weights() -> None:
    policy = categorical(SPECS["oblong"])
    vector = make(SPECS["oblong"])[1].vector.detach().numpy().copy()
    policy.load(vector)
    obs, before = observations(SPECS["oblong"], 4), vector.copy()
    seen = obs.copy()
    policy.act(obs, np.full(4, 0.5))
    policy.greedy(obs)
    assert same(obs, seen)
    assert same(vector, before)


# --- torch ------------------------------------------------------------------------------------------------------


def test_flat_parameters_are_the_modules_parameters() -> None:
    network, parameters = make(SPECS["tanh"])
    obs = torch.tensor(observations(SPECS["tanh"], 5))
    before = network(obs).detach()
    with torch.no_grad():
        parameters.vector.mul_(0.5)
    assert not torch.equal(network(obs), before)
    with torch.no_grad():
        parameters.vector.zero_()
    assert network(obs).abs().max() == 0


def test_gradients_land_in_the_flat_vector_and_add_up_there() -> None:
    network, parameters = make(SPECS["relu"])
    other, _ = make(SPECS["relu"])
    obs = torch.tensor(observations(SPECS["relu"], 5))
    network(obs).square().sum().backward()
    plain = Network(SPECS["relu"], np.zeros(SPECS["relu"].parameters, np.float32))
    plain.load_state_dict(other.state_dict())
    plain(obs).square().sum().backward()
    wanted = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(parameters.grad, wanted)
    network(obs).square().sum().backward()
    torch.testing.assert_close(parameters.grad, 2 * wanted)


def test_flat_parameters_keep_the_numbers_and_the_order_of_several_modules() -> None:
    first, second = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)
    wanted = torch.cat([p.detach().flatten() for m in (first, second) for p in m.parameters()])
    assert torch.equal(FlatParameters([first, second], torch.device("cpu")).vector, wanted)


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 12), (12, 5)])
def test_orthogonal_layers_are_orthogonal(inputs: int, outputs: int) -> None:
    spec = spec_of((inputs,), outputs, hidden=())
    arrays = unflatten(spec.initial(np.random.default_rng(0), head_gain=3.0), spec.shapes())
    w = arrays["head.weight"]
    product = w @ w.T if outputs < inputs else w.T @ w
    np.testing.assert_allclose(product, 9 * np.eye(min(inputs, outputs)), atol=1e-4)
    assert not arrays["head.bias"].any()


def test_initial_weights_come_from_the_given_generator_alone() -> None:
    def first_weights(seed: int) -> Array:
        return SPECS["oblong"].initial(np.random.default_rng(seed), 0.01)

    assert same(first_weights(1), first_weights(1))
    assert not same(first_weights(1), first_weights(2))
    assert np.unique(first_weights(1)).size > 100


# --- the flat vector and its description ------------------------------------------------------------------------


def test_flatten_is_the_inverse_of_unflatten_whatever_the_order() -> None:
    spec = SPECS["oblong"]
    vector = make(spec)[1].vector.detach().numpy()
    arrays = unflatten(vector, spec.shapes())
    assert same(flatten(dict(sorted(arrays.items(), reverse=True)), spec.shapes()), vector)


def test_arrays_that_do_not_fit_the_network_are_refused() -> None:
    spec = SPECS["tanh"]
    arrays = unflatten(np.zeros(spec.parameters, np.float32), spec.shapes())
    missing = {k: v for k, v in arrays.items() if k != "head.bias"}
    for wrong in (missing, {**arrays, "more": np.zeros(1)}, {**arrays, "head.bias": np.zeros(5)}):
        with pytest.raises(ValueError, match="are needed"):
            flatten(wrong, spec.shapes())
    with pytest.raises(ValueError, match=str(spec.parameters)):
        categorical(spec).load(np.zeros(spec.parameters + 1, np.float32))


@pytest.mark.parametrize("name", SPECS)
def test_a_policy_survives_its_description_in_json(name: str) -> None:
    policy = categorical(SPECS[name], first_action=-2)
    again = from_description(json.loads(json.dumps(policy.describe())))
    assert isinstance(again, StochasticPolicy)
    assert (again.network.spec, again.distribution) == (SPECS[name], policy.distribution)
    assert (again.obs_layout, again.action_layout) == (policy.obs_layout, policy.action_layout)
    vector = make(SPECS[name])[1].vector.detach().numpy()
    obs, noise = observations(SPECS[name], 3), np.array([0.1, 0.5, 0.9])
    for p in (policy, again):
        p.load(vector)
    assert same(again.act(obs, noise)[1]["log_prob"], policy.act(obs, noise)[1]["log_prob"])


# --- the categorical policy -------------------------------------------------------------------------------------

LOGITS = (0.0, 1.0, -1.0, 2.0, -3.0, 0.5)


def test_actions_are_as_frequent_as_the_softmax_says() -> None:
    policy, count = biased(*LOGITS), 30_000
    noise = policy.draw(np.random.default_rng(0), 1, count)[0]
    action, _ = policy.act(np.zeros((count, 1), np.float32), noise)
    expected = count * torch.tensor(LOGITS).softmax(0).numpy()
    chi_square = ((np.bincount(action, minlength=6) - expected) ** 2 / expected).sum()
    assert chi_square < 20.5  # 5 degrees of freedom: the 0.999 quantile


def test_each_action_takes_its_probability_of_the_noise() -> None:
    count = 100_000
    action, _ = biased(*LOGITS).act(np.zeros((count, 1), np.float32), (np.arange(count) + 0.5) / count)
    shares = np.bincount(action, minlength=6) / count
    np.testing.assert_allclose(shares, torch.tensor(LOGITS).softmax(0).numpy(), atol=2 / count)
    assert (np.diff(action) >= 0).all()


@pytest.mark.parametrize("name", ["tanh", "relu", "oblong"])
def test_log_prob_is_that_of_the_torch_policy(name: str) -> None:
    spec = SPECS[name]
    network, parameters = make(spec)
    policy = categorical(spec)
    policy.load(parameters.vector.detach().numpy())
    obs = observations(spec, 32)
    noise = policy.draw(np.random.default_rng(2), 3, 32)
    assert noise.shape == (3, 32)
    distribution = Categorical(logits=network(torch.tensor(obs)))
    for row in noise:
        action, extras = policy.act(obs, row)
        assert len(set(action.tolist())) > 1
        wanted = distribution.log_prob(torch.tensor(action)).detach().numpy()  # type: ignore[no-untyped-call]
        np.testing.assert_allclose(extras["log_prob"], wanted, atol=1e-5)
    assert policy.greedy(obs).tolist() == network(torch.tensor(obs)).argmax(1).tolist()


def test_actions_are_numbered_from_the_first() -> None:
    obs, noise = np.zeros((50, 1), np.float32), np.linspace(0, 0.99, 50)
    plain, shifted = biased(*LOGITS), biased(*LOGITS, first_action=-7)
    (left, one), (right, other) = plain.act(obs, noise), shifted.act(obs, noise)
    assert (left - 7).tolist() == right.tolist()
    assert same(one["log_prob"], other["log_prob"])
    assert shifted.greedy(obs).tolist() == [3 - 7] * 50
    assert np.issubdtype(right.dtype, np.integer)


@pytest.mark.parametrize("noise", [0.0, 1e-12, 0.5, 1 - 1e-12, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("first_action", [0, 3])
def test_extreme_logits_give_possible_actions_of_finite_log_prob(noise: float, first_action: int) -> None:
    possible = {
        (-1e4, 1e4, -1e4): {1},
        (1e4, -1e4, -1e4): {0},
        (-1e4, -1e4, 1e4): {2},
        (1e4, -1e4, 1e4): {0, 2},
        (-1e4, 1e4, 1e4): {1, 2},
        (1e4, 1e4, -1e4): {0, 1},
        (1e4, 1e4, 1e4): {0, 1, 2},
    }
    for logits, actions in possible.items():
        policy = biased(*logits, first_action=first_action)
        action, extras = policy.act(np.zeros((1, 1), np.float32), np.array([noise]))
        assert action[0] - first_action in actions
        assert extras["log_prob"][0] == pytest.approx(-np.log(len(actions)))


def test_no_action_is_out_of_range_where_rounding_could_make_it_so() -> None:
    rng = np.random.default_rng(0)
    noise = np.full(1, np.nextafter(1.0, 0.0))
    for _ in range(300):
        action, extras = biased(*rng.normal(0, 5, 18)).act(np.zeros((1, 1), np.float32), noise)
        assert 0 <= action[0] < 18
        assert -np.inf < extras["log_prob"][0] <= 0
