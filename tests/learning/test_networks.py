"""What acts (NumPy) against what learns (torch), and the policy on top of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Categorical
from toys import categorical, same, spec_of

from distrl.acting.network import Network as NumpyNetwork
from distrl.acting.network import NetworkSpec, flatten, single_threaded, unflatten
from distrl.learning.networks import Network, make_network
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
    network = make_network(spec, spec.initial(np.random.default_rng(seed), 1.0))
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
    named = {key.removeprefix("body."): parameter for key, parameter in network.named_parameters()}
    assert {k: tuple(p.shape) for k, p in named.items()} == SPECS[name].shapes()
    assert list(named) == list(SPECS[name].shapes())
    arrays = unflatten(parameters.vector.detach().numpy(), SPECS[name].shapes())
    for key, parameter in named.items():
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
