"""The optimiser against torch's own, and one form of its step against the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from distrl.learning import optimizer
from distrl.learning.optimizer import (
    Adam,
    FlatParameters,
    Optimizer,
    RMSprop,
    adam_step,
    fused_adam_step,
    plain_adam_step,
)


def linear(seed: int) -> tuple[torch.nn.Linear, FlatParameters]:
    torch.manual_seed(seed)
    layer = torch.nn.Linear(4, 3)
    return layer, FlatParameters([layer], torch.device("cpu"))


@pytest.mark.parametrize("step", [plain_adam_step, fused_adam_step])
def test_adam_takes_the_steps_of_torch_and_goes_on_bit_for_bit_from_its_state(
    step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "adam_step", step)
    (_, slow), (_, fast) = linear(1), linear(2)
    ours = Adam({"slow": slow, "fast": fast}, eps=1e-5)
    theirs = [torch.nn.Parameter(p.vector.detach().clone()) for p in (slow, fast)]
    torch_adam = torch.optim.Adam([{"params": [p]} for p in theirs], eps=1e-5)
    again_parameters = {"slow": linear(3)[1], "fast": linear(4)[1]}
    again = Adam(again_parameters, eps=1e-5)
    generator = torch.Generator().manual_seed(0)
    for t in range(30):
        rates = {"slow": 1e-3 * (30 - t), "fast": 0.1}
        if t == 20:
            again.load_state(ours.state())
        for name, flat, plain in zip(rates, (slow, fast), theirs, strict=True):
            gradient = torch.randn(15, generator=generator) * 10 ** (t % 5 - 3)
            gradient[0] = 0
            plain.grad = gradient.clone()
            flat.grad.copy_(gradient)
            again_parameters[name].grad.copy_(gradient)
        for group, lr in zip(torch_adam.param_groups, rates.values(), strict=True):
            group["lr"] = lr
        ours.step(rates)
        torch_adam.step()
        if t >= 20:
            again.step(rates)
            assert torch.equal(again_parameters["slow"].vector, slow.vector)
            assert torch.equal(again_parameters["fast"].vector, fast.vector)
    for flat, plain in zip((slow, fast), theirs, strict=True):
        torch.testing.assert_close(flat.vector.detach(), plain.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("longer", [None, torch.tensor(3.0)])
def test_both_forms_of_the_step_are_the_same_but_for_rounding(longer: torch.Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1003, generator=generator)  # no multiple of what a processor computes at once
    runs = []
    for step in (plain_adam_step, fused_adam_step):
        gradients = torch.Generator().manual_seed(1)
        theta, m, v = start.clone(), torch.zeros(1003), torch.zeros(1003)
        for t in range(1, 200):
            g = torch.randn(1003, generator=gradients)
            step(theta, g, m, v, torch.tensor(float(t)), 1e-2, (0.8, 0.99), 1e-8, longer)
        runs.append((theta, m, v))
    for plain, fused in zip(*runs, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    assert (runs[0][0] - start).abs().mean() > 0.1


def test_the_fused_step_is_taken_where_torch_has_it() -> None:
    assert adam_step is fused_adam_step


def seen(optimizer: Optimizer) -> list[torch.Tensor]:
    """The gradients that it steps along, from now on."""
    gradients: list[torch.Tensor] = []
    move = optimizer.move

    def spy(theta: torch.Tensor, g: torch.Tensor, *rest: Any) -> None:
        move(theta, g, *rest)
        gradients.append(g.clone())

    optimizer.move = spy  # type: ignore[method-assign]
    return gradients


def backward(loss: torch.Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("kind", [Adam, RMSprop])
def test_each_gradient_is_clipped_by_its_own_norm_and_the_norm_of_all_is_told(kind: type[Optimizer]) -> None:
    large, small = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    flat = {
        "large": FlatParameters([large], torch.device("cpu")),
        "small": FlatParameters([small], torch.device("cpu")),
    }
    optimizer = kind(flat, 1e-8, max_grad_norm=0.25)
    gradients = seen(optimizer)
    x = torch.tensor([[2.0, -1.0, 2.0]])  # with the bias, the gradient of an output has the norm sqrt(10)
    for _ in range(2):  # gradients do not add up
        backward((100 * large(x) + 0.01 * small(x)).sum())
        norm = optimizer.descend({"large": 1e-3, "small": 1e-3})
        assert norm.item() == pytest.approx(10**0.5 * (100**2 + 0.01**2) ** 0.5)
        along, beside = gradients[-2:]
        assert along.norm().item() == pytest.approx(0.25, rel=1e-4)
        assert beside.norm().item() == pytest.approx(0.01 * 10**0.5)
        assert along.tolist() == pytest.approx([0.25 * g / 10**0.5 for g in (2, -1, 2, 1)], rel=1e-4)


def test_a_gradient_is_left_as_it_is_where_no_norm_is_given() -> None:
    layer, flat = linear(1)
    optimizer = Adam({"all": flat}, 1e-8)
    gradients = seen(optimizer)
    backward(1e6 * layer(torch.ones(1, 4)).sum())
    norm = optimizer.descend({"all": 1e-3})
    assert gradients[-1].norm().item() == norm.item() == pytest.approx(1e6 * 15**0.5)


def test_a_step_goes_down_the_loss() -> None:
    layer, flat = linear(1)
    optimizer = Adam({"all": flat}, 1e-8)
    losses = []
    for _ in range(300):
        loss = (layer(torch.eye(4)) - torch.arange(12.0).view(4, 3)).square().mean()
        losses.append(loss.item())
        backward(loss)
        optimizer.descend({"all": 0.1})
    assert losses[-1] < 1e-3 < losses[0]


def test_rmsprop_takes_the_steps_of_torch_and_goes_on_bit_for_bit_from_its_state() -> None:
    (_, flat), (_, resumed) = linear(1), linear(2)
    ours, again = RMSprop({"all": flat}, eps=1e-5), RMSprop({"all": resumed}, eps=1e-5)
    plain = torch.nn.Parameter(flat.vector.detach().clone())
    theirs = torch.optim.RMSprop([plain], lr=1e-2, alpha=0.99, eps=1e-5)
    generator = torch.Generator().manual_seed(0)
    for t in range(30):
        if t == 20:
            again.load_state(ours.state())
        gradient = torch.randn(15, generator=generator) * 10 ** (t % 5 - 3)
        plain.grad = gradient.clone()
        for flat_, optimizer_ in ((flat, ours), (resumed, again)):
            flat_.grad.copy_(gradient)
            optimizer_.step({"all": 1e-2})
        theirs.step()
    torch.testing.assert_close(flat.vector.detach(), plain.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(flat.vector, resumed.vector)
