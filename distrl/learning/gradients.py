"""Gradients of networks by the chain rule: written out for layers of the usual kinds, recorded by autograd for others.

What is traced gives its outputs, and a function that takes the gradient of a loss by them and adds those by the parameters
to where autograd would add them (`parameter.grad`, see `distrl.learning.optimizer.FlatParameters`). For small networks
that is faster: autograd records every operation, finds it again, and keeps what could be overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from distrl.acting.network import NetworkSpec
from distrl.learning.networks import Body, Network, Part

Back = Callable[[Tensor], Tensor]  # of the gradient by what a part gives out: that by what it was given
Pull = Callable[..., None]  # of the gradients of a loss by what was asked for
aten = torch.ops.aten


def traced(network: Network, obs: Tensor) -> tuple[Tensor, Pull]:
    """What a network makes of obs, [B, K], and what takes the gradient of a loss by that, [B, K]."""
    spec = network.spec
    if type(network) is Network and isinstance(spec, NetworkSpec) and not any(e.conv for e in spec.encoders):
        return written_out(network, obs)
    (outputs,), pull = recorded(lambda x: (network(x),), obs)
    return outputs, pull


def traced_pair(actor: Network, critic: Network, shared_body: bool, obs: Tensor) -> tuple[Tensor, Tensor, Pull]:
    """What an actor makes of obs, [B, K], V [B], and what takes the gradients of a loss by the two."""
    if shared_body:  # of the critic only the head is used
        (outputs, value), pull = recorded(
            lambda x: (actor.outputs(features := actor.body(x)), critic.head(features)), obs
        )
        return outputs, value.squeeze(1), lambda g, by_value: pull(g, by_value[:, None])
    (outputs, pull_actor), (value, pull_critic) = traced(actor, obs), traced(critic, obs)

    def pull_both(g: Tensor, by_value: Tensor) -> None:
        pull_actor(g)
        pull_critic(by_value[:, None])

    return outputs, value.squeeze(1), pull_both


def recorded(call: Callable[[Tensor], tuple[Tensor, ...]], obs: Tensor) -> tuple[list[Tensor], Pull]:
    """What `call` makes of obs, and what takes the gradients of a loss by all of that. By autograd."""
    with torch.enable_grad():
        outputs = call(obs)
    return [x.detach() for x in outputs], lambda *gradients: torch.autograd.backward(outputs, gradients)


@torch.no_grad()
def written_out(network: Network, obs: Tensor) -> tuple[Tensor, Pull]:
    """As `traced`, of a network of linear layers, layer norms, activations and free outputs."""
    body, backs = cast(Body, network.body), list[Back]()
    x = body.encode(obs)
    for part in body.parts():
        x, back = STEPS[type(part) if isinstance(part, nn.Module) else part](part, x, not backs)
        backs.append(back)
    count, head = network.spec.outputs, linear_back(network.head, x, not backs)

    def pull(g: Tensor) -> None:
        with torch.no_grad():
            if network.spec.free:
                _grad(network.free).add_(g[:, count:].sum(0))
            g = head(g[:, :count])
            for back in reversed(backs):
                g = back(g)

    return network.outputs(x), pull


def linear(layer: nn.Linear, x: Tensor, first: bool) -> tuple[Tensor, Back]:
    """y = x W' + b"""
    return torch.addmm(layer.bias, x, layer.weight.t()), linear_back(layer, x, first)


def linear_back(layer: nn.Linear, x: Tensor, first: bool) -> Back:
    """dW = dy' x,   db = sum dy,   dx = dy W, for which nobody asks where x is what was observed"""

    def back(g: Tensor) -> Tensor:
        _grad(layer.weight).addmm_(g.t(), x)
        _grad(layer.bias).add_(g.sum(0))
        return g if first else g @ layer.weight

    return back


def normed(norm: nn.LayerNorm, x: Tensor, first: bool) -> tuple[Tensor, Back]:
    """y = (x - mean x) / std x * w + c; the gradient is torch's own."""
    shape = list(norm.normalized_shape)
    y, mean, scale = torch.native_layer_norm(x, shape, norm.weight, norm.bias, norm.eps)

    def back(g: Tensor) -> Tensor:
        dx, dw, dc = aten.native_layer_norm_backward(g, x, shape, mean, scale, norm.weight, norm.bias, [True] * 3)
        _grad(norm.weight).add_(dw)
        _grad(norm.bias).add_(dc)
        return cast(Tensor, dx)

    return y, back


def tanh(_: Part, x: Tensor, first: bool) -> tuple[Tensor, Back]:
    """y = tanh x, in place of x:   dx = dy (1 - y^2), in place of dy"""
    y = x.tanh_()
    return y, lambda g: aten.tanh_backward.grad_input(g, y, grad_input=g)


def relu(_: Part, x: Tensor, first: bool) -> tuple[Tensor, Back]:
    """y = max(x, 0), in place of x:   dx = dy where y > 0, else 0, in place of dy"""
    y = x.relu_()
    return y, lambda g: aten.threshold_backward.grad_input(g, y, 0, grad_input=g)


STEPS: dict[object, Callable[..., tuple[Tensor, Back]]] = {
    nn.Linear: linear,
    nn.LayerNorm: normed,
    torch.tanh: tanh,
    torch.relu: relu,
}


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
