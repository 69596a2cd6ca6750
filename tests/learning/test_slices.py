"""Minibatches in slices: the gradient of the whole one, and the same bits whoever has which of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from test_gradients import RECORDED, SPECS, assert_close, make, observations, random_like
from torch import Tensor
from toys import spec_of

from distrl.learning.gradients import tracing, tracing_pair
from distrl.learning.slices import Slices


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Threads:
    """Peers that are threads of this process."""

    def __init__(self, count: int) -> None:
        self.barrier, self.brought = Barrier(count), list[Any]([None] * count)

    def meet(self, slices: Slices, number: int) -> None:
        slices.peers = Peer(self, number)


class Peer:
    def __init__(self, threads: Threads, number: int) -> None:
        self.threads, self.number, self.count = threads, number, len(threads.brought)

    def gather(self, own: Tensor) -> Tensor:
        self.threads.brought[self.number] = own
        self.threads.barrier.wait(20)
        whole = torch.stack(self.threads.brought)
        self.threads.barrier.wait(20)
        return whole


def together(learners: int, count: int, work: Any) -> list[Any]:
    """What `work(slices)` gives each of so many learners."""
    threads = Threads(learners)

    def one(number: int) -> Any:
        torch.set_num_threads(1)
        slices = Slices(count)
        threads.meet(slices, number)
        return work(slices)

    with ThreadPoolExecutor(learners) as pool:
        return list(pool.map(one, range(learners)))


def learnt(slices: Slices, name: str) -> list[Tensor]:
    """Outputs of 11 rows and of 3 steps of 5 sequences, the gradients of a loss by the parameters, and what is asked for."""
    spec, found = (SPECS | RECORDED)[name], []
    network, parameters = make(spec)
    for rows, steps in ((11, 1), (15, 3)):
        obs = observations(spec, rows)
        outputs, pull = slices.traced(lambda x: tracing(network)(x), [parameters], obs, steps)
        pull(random_like(outputs))
        found += [outputs, parameters.grad.clone()]
        parameters.grad.zero_()
    return [*found, slices.asked(network, observations(spec, 11), most=2)]


@pytest.mark.parametrize("name", ["tanh", "free", "images", "dueling"])
@pytest.mark.parametrize("count", [2, 4, 6])
def test_the_gradient_is_that_of_the_whole_minibatch(name: str, count: int) -> None:
    """By autograd, of a loss of all rows at once."""
    spec = (SPECS | RECORDED)[name]
    found = learnt(Slices(count), name)
    for rows, outputs, gradient in ((11, *found[:2]), (15, *found[2:4])):
        network, parameters = make(spec)
        wanted = network(observations(spec, rows))
        wanted.backward(random_like(wanted))
        assert_close(outputs, wanted.detach())
        assert_close(gradient, parameters.grad)
    network, _ = make(spec)
    assert_close(found[4], network(observations(spec, 11)).detach())


@pytest.mark.parametrize(("learners", "count"), [(2, 2), (2, 4), (4, 4), (3, 6)])
@pytest.mark.parametrize("name", ["tanh", "images"])
def test_the_bits_are_the_same_whoever_has_which_slices(name: str, learners: int, count: int) -> None:
    """Also of slices that have different numbers of rows."""
    alone = learnt(Slices(count), name)
    for found in together(learners, count, lambda slices: learnt(slices, name)):
        assert all(torch.equal(x, y) for x, y in zip(found, alone, strict=True))


def test_the_number_of_slices_is_part_of_the_arithmetic() -> None:
    """Else the test before would say little."""
    assert not torch.equal(learnt(Slices(1), "tanh")[1], learnt(Slices(4), "tanh")[1])


def test_gradients_are_summed_in_the_order_of_slices() -> None:
    """(1 + 1e8) - 1e8 is 0 in float32, and (1e8 - 1e8) + 1 is 1."""
    _, parameters = make(SPECS["linear"])

    def pulled(values: list[float], slices: Slices) -> float:
        def trace(part: Tensor) -> tuple[Tensor, Any]:
            return part, lambda g: parameters.grad.add_(part.sum())

        _, pull = slices.traced(trace, [parameters], torch.tensor(values))
        parameters.grad.zero_()
        pull(torch.zeros(len(values)))
        return float(parameters.grad[0])

    assert pulled([1.0, 1e8, -1e8], Slices(3)) == 0
    assert pulled([1e8, -1e8, 1.0], Slices(3)) == 1


def test_actor_and_critic_are_cut_together() -> None:
    actor, of_actor = make(SPECS["tanh"])
    critic, of_critic = make(spec_of((8,), 1), seed=1)
    obs, parameters = observations(SPECS["tanh"], 9), [of_actor, of_critic]
    outputs, value, pull = Slices(3).traced(lambda x: tracing_pair(actor, critic, False)(x), parameters, obs)
    pull(random_like(outputs), torch.ones_like(value))
    found = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad.zero_()
    actor(obs).backward(random_like(outputs))
    critic(obs).sum().backward()
    for gradient, p in zip(found, parameters, strict=True):
        assert_close(gradient, p.grad)


def test_more_slices_than_rows_have_some_that_are_empty() -> None:
    """Which happens where agents are missing."""
    network, parameters = make(SPECS["tanh"])
    obs = observations(SPECS["tanh"], 2)
    outputs, pull = Slices(4).traced(lambda x: tracing(network)(x), [parameters], obs)
    pull(random_like(outputs))
    found = parameters.grad.clone()
    parameters.grad.zero_()
    network(obs).backward(random_like(outputs))
    assert_close(found, parameters.grad)
