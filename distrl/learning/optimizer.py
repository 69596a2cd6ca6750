"""Optimisers on flat vectors of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from distrl.heartbeat import HEART
from distrl.types import Arrays


class FlatParameters:
    """All parameters of some modules as one vector, and all their gradients as another.

    The modules keep working: their parameters become views. An optimiser step, a gradient norm and a copy for
    the runners are then one operation each instead of one for every small tensor.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        modules = [module.to(device) for module in modules]
        parameters = [parameter for module in modules for parameter in module.parameters()]
        self.vector = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
        self.grad = self.vector.grad = torch.zeros_like(self.vector)
        start = 0
        for parameter in parameters:
            span = slice(start, start + parameter.numel())
            parameter.data = self.vector.data[span].view(parameter.shape)
            parameter.grad = self.grad[span].view(parameter.shape)
            start = span.stop


def plain_adam_step(
    theta: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    t: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    longer: Tensor | None = None,
) -> None:
    """Step t (1, 2, ...) of Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1), in place; [P] each, t a scalar.

    g = g / longer, where that is given
    m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
    theta = theta - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
    """
    beta1, beta2 = betas
    if longer is not None:
        g.div_(longer)
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    denominator = v.sqrt().div_((1 - beta2 ** t.item()) ** 0.5).add_(eps)
    theta.addcdiv_(m, denominator, value=-lr / (1 - beta1 ** t.item()))


def fused_adam_step(
    theta: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    t: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    longer: Tensor | None = None,
) -> None:
    """As `plain_adam_step`, in one pass over memory: a third of the time. It rounds differently."""
    torch._fused_adam_(
        [theta], [g], [m], [v], [], [t],
        lr=lr, beta1=betas[0], beta2=betas[1], eps=eps, weight_decay=0.0, amsgrad=False, maximize=False, grad_scale=longer,
    )  # fmt: skip


# The fused step is no public part of torch and may go; which one a torch has is part of the arithmetic.
adam_step = fused_adam_step if hasattr(torch, "_fused_adam_") else plain_adam_step


def too_long(norm: Tensor, most: Tensor | None) -> Tensor | None:
    """max(1, |g| / most), by which a gradient of that norm is to be divided (Pascanu et al. 2013, arXiv:1211.5063); None: by nothing."""
    return None if most is None else torch.maximum(norm, most) / most


class Optimizer:
    """Steps on flat vectors, each with a learning rate of its own; `moments` of each are kept beside it."""

    moments: tuple[str, ...]

    def __init__(self, parameters: dict[str, FlatParameters], eps: float, max_grad_norm: float | None = None) -> None:
        """`max_grad_norm`: of each vector's gradient by itself, so that none shrinks another's; None: any."""
        self.parameters, self.eps = parameters, eps
        self.one = torch.ones_like(next(iter(parameters.values())).grad[0])  # torch wraps a plain number anew each time
        self.most = None if max_grad_norm is None else self.one * max_grad_norm
        self.kept = {name: {kind: torch.zeros_like(p.grad) for kind in self.moments} for name, p in parameters.items()}
        self.t = torch.zeros_like(self.one)  # float32, as the fused step wants it

    def descend(self, lr: dict[str, float]) -> Tensor:
        """One step down the gradients, which are 0 behind it; returns the norm of all before clipping, a scalar. `lr` by name."""
        norms: list[Tensor] = [torch.linalg.vector_norm(vector.grad) for vector in self.parameters.values()]
        self.step(lr, [too_long(norm, self.most) for norm in norms])
        for vector in self.parameters.values():
            vector.grad.zero_()
        return norms[0] if len(norms) == 1 else cast(Tensor, torch.linalg.vector_norm(torch.stack(norms)))

    @torch.no_grad()
    def step(self, lr: dict[str, float], longer: Sequence[Tensor | None] = ()) -> None:
        """One step along the gradients that lie in the parameters; `longer`: what each is divided by first."""
        HEART.beat()
        self.t += self.one
        for (name, parameters), times in zip_longest(self.parameters.items(), longer):
            self.move(parameters.vector, parameters.grad, self.kept[name], lr[name], times)

    def move(self, theta: Tensor, g: Tensor, kept: dict[str, Tensor], lr: float, longer: Tensor | None) -> None:
        """Change theta [P] and its moments in place, by its gradient g [P], divided by `longer` where that is given."""
        raise NotImplementedError

    def state(self) -> Arrays:
        """Parameters and moments."""
        arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in self._tensors()}
        return {"t": np.array(int(self.t)), **arrays}

    @torch.no_grad()
    def load_state(self, state: Arrays) -> None:
        self.t.fill_(int(state["t"]))
        for name, tensor in self._tensors():
            tensor.copy_(torch.tensor(state[name]))

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameters in self.parameters.items():
            yield f"{name}.parameters", parameters.vector
            yield from ((f"{name}.{kind}", tensor) for kind, tensor in self.kept[name].items())


class Adam(Optimizer):
    """Adam with beta 0.9 and 0.999; `adam_step` is the one that runs.

    The same steps as `torch.optim.Adam`, which takes longer to call than to compute on vectors of this size, and
    whose first use imports a compiler for two seconds.
    """

    moments = ("m", "v")
    betas = (0.9, 0.999)

    def move(self, theta: Tensor, g: Tensor, kept: dict[str, Tensor], lr: float, longer: Tensor | None) -> None:
        adam_step(theta, g, kept["m"], kept["v"], self.t, lr, self.betas, self.eps, longer)


class RMSprop(Optimizer):
    """RMSprop (Tieleman and Hinton 2012), as A2C was published with; the steps of `torch.optim.RMSprop`.

    v = alpha v + (1 - alpha) g^2,   theta = theta - lr g / (sqrt(v) + eps)
    """

    moments = ("v",)
    alpha = 0.99

    def move(self, theta: Tensor, g: Tensor, kept: dict[str, Tensor], lr: float, longer: Tensor | None) -> None:
        if longer is not None:
            g.div_(longer)
        v = kept["v"].mul_(self.alpha).addcmul_(g, g, value=1 - self.alpha)
        theta.addcdiv_(g, v.sqrt().add_(self.eps), value=-lr)


def make_optimizer(
    name: Literal["adam", "rmsprop"],
    parameters: dict[str, FlatParameters],
    eps: float,
    max_grad_norm: float | None,
) -> Optimizer:
    """The kind that a config names; else as `Optimizer`."""
    return {"adam": Adam, "rmsprop": RMSprop}[name](parameters, eps, max_grad_norm)
