"""Gradients of networks by the chain rule: written out for layers of the usual kinds, recorded by autograd for others.

What is traced gives its outputs, and a function that takes the gradient of a loss by them, once, and puts those by the
parameters to where autograd would (`parameter.grad`, 0 before; see `distrl.learning.optimizer.FlatParameters`, which must be
made before: where parameters and gradients lie is looked up once). For small networks that is faster: autograd records every
operation, finds it again, and keeps what could be overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from distrl.acting.network import NetworkSpec
from distrl.learning.networks import Body, Network, Part

Back = Callable[[Tensor], Tensor]  # of the gradient by what a part gives out: that by what it was given
Step = Callable[[Tensor], tuple[Tensor, Back]]  # of what a part is given: what it gives out
Pull = Callable[..., object]  # of the gradients of a loss by what was asked for
Trace = Callable[[Tensor], tuple[Tensor, Pull]]
aten = torch.ops.aten
NARROW = 32  # columns: a product with fewer is up to several times as fast where they are rows of what comes out


def tracing(network: Network) -> Trace:
    """From obs, [B, ...], to what the network makes of them, [B, K], and what takes the gradient of a loss by that, [B, K]."""
    if written(network):
        body, head = of_body(network), of_head(network)

        def trace(obs: Tensor) -> tuple[Tensor, Pull]:
            features, back = body(obs)
            outputs, back_head = head(features)
            return outputs, lambda g: back(back_head(g))

        return trace

    def trace_recorded(obs: Tensor) -> tuple[Tensor, Pull]:
        (outputs,), pull = recorded(lambda x: (network(x),), obs)
        return outputs, pull

    return trace_recorded


def tracing_pair(actor: Network, critic: Network, shared_body: bool) -> Callable[[Tensor], tuple[Tensor, Tensor, Pull]]:
    """From obs to what an actor makes of them, [B, K], V [B], and what takes the gradients of a loss by the two."""
    if not shared_body:
        trace_actor, trace_critic = tracing(actor), tracing(critic)

        def trace(obs: Tensor) -> tuple[Tensor, Tensor, Pull]:
            (outputs, pull_actor), (value, pull_critic) = trace_actor(obs), trace_critic(obs)

            def pull(g: Tensor, by_value: Tensor) -> None:
                pull_actor(g)
                pull_critic(by_value[:, None])

            return outputs, value.squeeze(1), pull

        return trace
    if written(actor):  # of the critic only the head is used
        body, head, value_head = of_body(actor), of_head(actor), of_head(critic)

        def trace_shared(obs: Tensor) -> tuple[Tensor, Tensor, Pull]:
            features, back = body(obs)
            (outputs, back_head), (value, back_value) = head(features), value_head(features)
            return outputs, value.squeeze(1), lambda g, by_value: back(back_head(g) + back_value(by_value[:, None]))

        return trace_shared

    def both(obs: Tensor) -> tuple[Tensor, Tensor]:
        features = actor.body(obs)
        return actor.outputs(features), critic.head(features)

    def trace_both(obs: Tensor) -> tuple[Tensor, Tensor, Pull]:
        (outputs, value), pull = recorded(both, obs)
        return outputs, value.squeeze(1), lambda g, by_value: pull(g, by_value[:, None])

    return trace_both


def recorded(call: Callable[[Tensor], tuple[Tensor, ...]], obs: Tensor) -> tuple[list[Tensor], Pull]:
    """What `call` makes of obs, and what takes the gradients of a loss by all of that. By autograd."""
    with torch.enable_grad():
        outputs = call(obs)
    return [x.detach() for x in outputs], lambda *gradients: torch.autograd.backward(outputs, gradients)


def written(network: Network) -> bool:
    """Whether all of its layers are of kinds whose gradients are written out."""
    spec = network.spec
    return type(network) is Network and isinstance(spec, NetworkSpec) and not any(e.conv for e in spec.encoders)


def of_body(network: Network) -> Step:
    """Linear layers, layer norms and activations; nobody asks for the gradient by what was observed."""
    body = cast(Body, network.body)
    kinds = [(part, STEPS[type(part) if isinstance(part, nn.Module) else part]) for part in body.parts()]
    steps = [kind(part, not i) for i, (part, kind) in enumerate(kinds)]

    def step(obs: Tensor) -> tuple[Tensor, Back]:
        x, backs = body.encode(obs), list[Back]()
        for part in steps:
            x, back_part = part(x)
            backs.append(back_part)

        def back(g: Tensor) -> Tensor:
            for back_part in reversed(backs):
                g = back_part(g)
            return g

        return x, back

    return step


def of_head(network: Network) -> Step:
    """A linear layer, and free outputs behind it."""
    head = linear(network.head, not cast(Body, network.body).parts())
    if not network.spec.free:
        return head
    count, free, by_free = network.spec.outputs, network.free.detach(), _grad(network.free)

    def step(x: Tensor) -> tuple[Tensor, Back]:
        outputs, back_head = head(x)

        def back(g: Tensor) -> Tensor:
            torch.sum(g[:, count:], 0, out=by_free)
            return back_head(g[:, :count])

        return torch.cat([outputs, free.expand(len(outputs), -1)], dim=1), back

    return step


def linear(layer: nn.Linear, first: bool) -> Step:
    """y = x W' + b;   dW = dy' x,   db = sum dy,   dx = dy W, for which nobody asks where x is what was observed (`first`)"""
    weight, bias, by_weight, by_bias = (
        layer.weight.detach(),
        layer.bias.detach(),
        _grad(layer.weight),
        _grad(layer.bias),
    )
    transposed, column = weight.t(), bias[:, None]
    few_in = layer.in_features < min(NARROW, layer.out_features)
    few_out = layer.out_features < min(NARROW, layer.in_features)

    def step(x: Tensor) -> tuple[Tensor, Back]:
        def back(g: Tensor) -> Tensor:
            if few_in:
                by_weight.copy_((x.t() @ g).t())
            else:
                torch.mm(g.t(), x, out=by_weight)
            torch.sum(g, 0, out=by_bias)
            return g if first else g @ weight

        return torch.addmm(column, weight, x.t()).t() if few_out else torch.addmm(bias, x, transposed), back

    return step


def normed(norm: nn.LayerNorm, first: bool) -> Step:
    """y = (x - mean x) / std x * w + c; the gradient is torch's own."""
    shape, eps = list(norm.normalized_shape), norm.eps
    weight, bias, by_weight, by_bias = norm.weight.detach(), norm.bias.detach(), _grad(norm.weight), _grad(norm.bias)

    def step(x: Tensor) -> tuple[Tensor, Back]:
        y, mean, scale = torch.native_layer_norm(x, shape, weight, bias, eps)

        def back(g: Tensor) -> Tensor:
            dx, dw, dc = aten.native_layer_norm_backward(g, x, shape, mean, scale, weight, bias, [True] * 3)
            by_weight.copy_(dw)
            by_bias.copy_(dc)
            return cast(Tensor, dx)

        return y, back

    return step


def tanh(_: Part, first: bool) -> Step:
    """y = tanh x, in place of x:   dx = dy (1 - y^2), in place of dy"""

    def step(x: Tensor) -> tuple[Tensor, Back]:
        y = x.tanh_()
        return y, lambda g: aten.tanh_backward.grad_input(g, y, grad_input=g)

    return step


def relu(_: Part, first: bool) -> Step:
    """y = max(x, 0), in place of x:   dx = dy where y > 0, else 0, in place of dy"""

    def step(x: Tensor) -> tuple[Tensor, Back]:
        y = x.relu_()
        return y, lambda g: aten.threshold_backward.grad_input(g, y, 0, grad_input=g)

    return step


STEPS: dict[object, Callable[..., Step]] = {
    nn.Linear: linear,
    nn.LayerNorm: normed,
    torch.tanh: tanh,
    torch.relu: relu,
}


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
