"""Gradients that are written out, against those that autograd records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import spec_of

from distrl.acting.network import NetworkSpec, single_threaded
from distrl.learning import gradients
from distrl.learning.gradients import recorded, tracing, tracing_pair
from distrl.learning.networks import Network, make_network
from distrl.learning.optimizer import FlatParameters

SPECS = {
    "tanh": spec_of((8,), 4),
    "relu": spec_of((3, 5), 2, hidden=(33, 17), activation="relu"),
    "norm": spec_of((6,), 3, hidden=(16, 8), activation="relu", layer_norm=True),
    "norm of tanh": spec_of((6,), 3, hidden=(16,), layer_norm=True),
    "linear": spec_of((6,), 3, hidden=()),
    "narrow": spec_of((1,), 1, hidden=(1, 1)),
    "free": replace(spec_of((5,), 3, hidden=(8,)), free=3),
    "free and linear": replace(spec_of((5,), 3, hidden=()), free=2),
}
RECORDED = {
    "dueling": spec_of((8,), 4, dueling=True),
    "images": spec_of((1, 12, 12), 3, (16,), ((4, 4, 2),), "relu", 1 / 255),
}


@pytest.fixture(autouse=True)
def _single_threaded() -> None:
    single_threaded()


def make(spec: NetworkSpec, seed: int = 0) -> tuple[Network, FlatParameters]:
    """A network with biases that are not zero."""
    network = make_network(spec, spec.initial(np.random.default_rng(seed), 1.0))
    parameters = FlatParameters([network], torch.device("cpu"))
    with torch.no_grad():
        parameters.vector.add_(
            0.05 * torch.randn(parameters.vector.shape, generator=torch.Generator().manual_seed(seed))
        )
    return network, parameters


def observations(spec: NetworkSpec, count: int = 40) -> Tensor:
    part, rng = spec.encoders[0].part, np.random.default_rng(1)
    if part.dtype == "uint8":
        return torch.tensor(rng.integers(0, 256, (count, *part.shape), np.uint8))
    return torch.tensor(rng.normal(size=(count, *part.shape)).astype(np.float32))


def random_like(outputs: Tensor) -> Tensor:
    return torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2))


def assert_close(found: Tensor, wanted: Tensor) -> None:
    """But for the rounding of float32, to the scale of what is compared."""
    scale = wanted.abs().max().item()
    assert scale > 0
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6 * scale)


@pytest.mark.parametrize("name", [*SPECS, *RECORDED])
def test_outputs_and_gradients_are_those_of_autograd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = (SPECS | RECORDED)[name]
    network, parameters = make(spec)
    obs = observations(spec)
    kept = obs.clone()
    with torch.no_grad():
        wanted = network(obs)
    g = random_like(wanted)
    network(obs).backward(g)
    gradient = parameters.grad.clone()
    parameters.grad.zero_()
    if name in SPECS:
        monkeypatch.setattr(gradients, "recorded", None)  # which is not asked for help
    outputs, pull = tracing(network)(obs)
    assert_close(outputs, wanted)
    assert not outputs.requires_grad
    pull(g)
    assert_close(parameters.grad, gradient)
    assert torch.equal(obs, kept)


@pytest.mark.parametrize("name", SPECS)
def test_what_is_traced_is_not_disturbed_by_what_is_traced_behind_it(name: str) -> None:
    network, parameters = make(SPECS[name])
    trace, both = tracing(network), observations(SPECS[name]).split(20)
    traced = [trace(obs) for obs in both]
    for obs, (outputs, pull) in zip(both, traced, strict=True):
        pull(random_like(outputs))
        found = parameters.grad.clone()
        parameters.grad.zero_()
        network(obs).backward(random_like(outputs))
        assert_close(found, parameters.grad)
        parameters.grad.zero_()


def test_a_written_gradient_is_the_slope_of_the_loss() -> None:
    """By differences in the direction of a random vector; autograd is not asked."""
    spec = SPECS["norm of tanh"]
    network, parameters = make(spec)
    obs = observations(spec)
    outputs, pull = tracing(network)(obs)
    pull(2 * outputs)  # of the sum of squares
    direction = random_like(parameters.grad)
    wanted = (parameters.grad * direction).sum().item()
    values = []
    for step in (-1e-3, 1e-3):
        with torch.no_grad():
            parameters.vector.add_(step * direction)
            values.append(network(obs).double().square().sum().item())
            parameters.vector.sub_(step * direction)
    assert (values[1] - values[0]) / 2e-3 == pytest.approx(wanted, rel=2e-3)


@pytest.mark.parametrize("name", ["tanh", "norm", "linear", "free", "images"])
@pytest.mark.parametrize("shared", [False, True])
def test_actor_and_critic_are_traced_together(shared: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    actor_spec = (SPECS | RECORDED)[name]
    critic_spec = replace(actor_spec, outputs=1, free=0)
    (actor, of_actor), (critic, of_critic) = make(actor_spec), make(critic_spec, 1)
    obs = observations(actor_spec)

    def plain() -> tuple[Tensor, Tensor]:
        features = actor.body(obs)
        value = critic.head(features) if shared else critic(obs)
        return actor.outputs(features), value.squeeze(1)

    wanted, value_wanted = plain()
    g, by_value = random_like(wanted), random_like(value_wanted)
    torch.autograd.backward((wanted, value_wanted), (g, by_value))
    gradient = [p.grad.clone() for p in (of_actor, of_critic)]
    for p in (of_actor, of_critic):
        p.grad.zero_()
    if name in SPECS:
        monkeypatch.setattr(gradients, "recorded", None)
    outputs, value, pull = tracing_pair(actor, critic, shared)(obs)
    assert_close(outputs, wanted.detach())
    assert_close(value, value_wanted.detach())
    pull(g, by_value)
    for p, wanted_gradient in zip((of_actor, of_critic), gradient, strict=True):
        assert_close(p.grad, wanted_gradient)


def test_any_function_can_be_recorded_though_nobody_asks_for_gradients_around_it() -> None:
    network, parameters = make(SPECS["tanh"])
    obs = observations(SPECS["tanh"])
    call: Callable[[Tensor], tuple[Tensor, ...]] = lambda x: (network(x), network(x).square())
    with torch.no_grad():
        (one, two), pull = recorded(call, obs)
    assert not one.requires_grad
    assert torch.equal(two, one.square())
    pull(torch.zeros_like(one), torch.ones_like(two))
    found = parameters.grad.clone()
    parameters.grad.zero_()
    network(obs).square().sum().backward()
    assert_close(found, parameters.grad)
