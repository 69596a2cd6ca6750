"""What replays hold lies on the learner's device as well: what is looked up there is what comes with a batch otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import DQN, config_of
from workers.test_replay import STACK, World, config

from distrl.errors import UserError
from distrl.learning.drawn import join
from distrl.learning.ring import Ring, to_hold
from distrl.sizes import GIB
from distrl.types import Batch
from distrl.workers.replay import Replay

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def same(left: Batch, right: Batch) -> bool:
    """Whatever part of the updates is asked for."""
    updates = len(left.reward)
    parts = [slice(0, updates), slice(1, 3), slice(updates, updates)]
    looked_up = [(torch.as_tensor(a[p]), torch.as_tensor(b[p])) for a, b in seen(left, right) for p in parts]
    rest = [(a, b) for name, a in vars(left).items() if "obs" not in name for b in [getattr(right, name)]]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in looked_up) and all(
        a is b is None or np.array_equal(a, b) for a, b in rest
    )


def seen(left: Batch, right: Batch) -> list[tuple[Any, Any]]:
    return [(left.obs, right.obs), (left.next_obs, right.next_obs)]


@pytest.mark.parametrize("stack", [0, STACK])
@pytest.mark.parametrize("replays", [1, 2])
def test_what_is_looked_up_is_what_was_drawn(stack: int, replays: int) -> None:
    """On rings that are overwritten many times, where a replay is not asked for a while, and after both began anew."""
    settings = config("algorithm.n_step=3", "replay.capacity=300", f"replay.shards={replays}", "replay.start=60")
    world, ring = World(2, 3, 5, stack), Ring(CPU)
    by_row, plain = ([Replay(settings, number, None) for number in range(replays)] for _ in range(2))
    drawn, sent = 0, []
    for k in range(60):
        fragments = world.fragments(np.int64)
        if k == 40:  # whoever goes on from a checkpoint
            by_row, ring = [Replay(settings, number, replay.state()) for number, replay in enumerate(by_row)], Ring(CPU)
        for number in range(replays):
            by_row[number].add(*fragments[number::replays])
            plain[number].add(*fragments[number::replays])
        if k % 7 == 3:
            continue
        batches = [replay.sample(k, 0, True) for replay in by_row]
        expected = [replay.sample(k, 0) for replay in plain]
        if k % 5 == 0:  # kept as they are, and learnt from all the same
            whole = ring.whole(batches)
            assert all(a.fresh is None and same(a, b) for a, b in zip(whole, expected, strict=True))
        assert same(ring.join(batches), join(expected))
        drawn += batches[0].reward.size
        sent.append(sum(len(batch.fresh.at) for batch in batches if batch.fresh is not None))
    assert drawn > 3000
    steps = 2 * 3 * 5
    assert max(sent[5:30]) < 3 * steps, "what has come before is not sent again"
    assert max(sent[31:]) > 100, "who begins anew is sent what it was sent before"


def test_no_more_is_asked_of_a_replay_than_a_batch() -> None:
    """By row or not, the next batch is the same, and so is the state."""
    world, one, other = World(2, 3, 5, STACK), Replay(config(), 0, None), Replay(config(), 0, None)
    for k in range(8):
        fragments = world.fragments(np.uint8)
        one.add(*fragments)
        other.add(*fragments)
        assert one.sample(k, 0, k % 2 == 0).key.tolist() == other.sample(k, 0).key.tolist()
    states = one.state(), other.state()
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[1]) and len(states[0]) > 5


def test_it_is_on_a_gpu_where_images_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 80 * GIB))
    assert to_hold(None, 7 * GIB, 1_000_000, GPU) and not to_hold(None, 9 * GIB, 1_000_000, GPU)
    assert not to_hold(None, GIB, 2_000_000, GPU), "steps are small"
    assert to_hold(True, GIB, 2_000_000, GPU) and not to_hold(False, GIB, 1000, GPU)
    assert not to_hold(None, GIB, 1000, CPU) and to_hold(True, 1000, 10, CPU)


@pytest.mark.parametrize(("device", "where"), [(GPU, "its GPU"), (CPU, "the learner's machine")])
def test_what_must_lie_there_and_does_not_fit_is_refused(
    device: torch.device, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = psutil.virtual_memory()._replace(available=4 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * GIB, 80 * GIB))
    with pytest.raises(UserError, match=rf"1,000,000 steps take 6\.6 GiB, and 4\.0 GiB of {where} are free") as caught:
        to_hold(True, 7056 * 10**6, 10**6, device)
    assert "Set replay.on_device=auto" in str(caught.value)
    most = int(str(caught.value).rpartition("at most ")[2].rstrip(".").replace(",", ""))
    assert to_hold(True, 7056 * most, most, device) and 480_000 < most < 490_000


def test_who_takes_whole_batches_says_so() -> None:
    with pytest.raises(UserError, match=r"a policy of a group of agents takes .* Set replay\.on_device=auto\."):
        config_of(DQN, "env.id=mpe2/simple_spread_v3", "policies=per_agent", "replay.on_device=true")
    config_of(DQN, "env.id=mpe2/simple_spread_v3", "policies=per_agent")
