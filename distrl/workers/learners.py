"""Several learners that do the same at the same time, and share what networks compute (`distrl.learning.slices`).

Each is given all fragments or batches, makes the whole update, and comes to the same weights. What goes between them, over
sockets by gloo or from GPU to GPU by NCCL, is what each made of its slices. Where one is lost the others end, too: to the
driver all of them are one learner that was lost.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psutil

from distrl.heartbeat import HEART, at_work
from distrl.workers.learner import Learner, choose_device, gpu_count

if TYPE_CHECKING:
    from torch import Tensor

MEET_S = timedelta(seconds=900)  # that one may be late: a cluster may have to find a machine for its process
TOLD_S = 15.0  # in which the driver finds out who is lost, ends the others and can say why


@at_work
class LearnerAmongOthers(Learner):
    """Alone, with all slices, until it meets them."""

    def listen(self, host: str) -> int:
        """The port of this node's address `host` where the others find each other."""
        from torch import distributed

        with socket.create_server((host, 0), family=_family(host)) as server:
            port: int = server.getsockname()[1]
            fd = server.detach()  # a socket of its own would listen on every address of the node
        store: Any = distributed.TCPStore  # type: ignore[attr-defined]
        self.store = store(host, port, None, True, wait_for_workers=False, master_listen_fd=fd)
        return port

    def meet(self, number: int, hosts: Sequence[str], port: int) -> None:
        """Share slices with others from now on. `hosts`: the addresses of all, of whom the first one listens."""
        device = choose_device(self.config.learner.device, gpu_count())
        patience = timedelta(seconds=2 * self.config.cluster.update_timeout_s)  # the watch finds out first who hangs
        self.slices.peers = Group(number, hosts, port, device, patience)
        if device == "cpu":  # gloo is done with it; NCCL goes on asking
            self.store = None


class Group:
    """`distrl.learning.slices.Peers`, by torch.distributed."""

    def __init__(self, number: int, hosts: Sequence[str], port: int, device: str, patience: timedelta) -> None:
        from torch import distributed, zeros

        self.number, self.count = number, len(hosts)
        with _others():
            store: Any = distributed.TCPStore  # type: ignore[attr-defined]
            store = store(hosts[0], port, timeout=MEET_S, wait_for_workers=False)
            store.set(f"here {number}", "")
            store.wait([f"here {other}" for other in range(self.count)], MEET_S)
            self.group = _make_group(store, number, hosts, device, patience)
        self.gather(zeros(1, device=device))  # behind it all are connected

    def gather(self, own: Tensor) -> Tensor:
        whole = own.new_empty(self.count, *own.shape)
        with _others():
            self.group._allgather_base(whole.flatten(0, 1), own.contiguous()).wait()
        return whole


def _make_group(store: Any, number: int, hosts: Sequence[str], device: str, patience: timedelta) -> Any:
    """Connected by this node's own address alone."""
    from torch import distributed

    if device == "cuda":
        os.environ["NCCL_SOCKET_IFNAME"] = f"={_interface(hosts[number])}"
        nccl = distributed.ProcessGroupNCCL.Options()
        nccl._timeout = patience
        return distributed.ProcessGroupNCCL(store, number, len(hosts), nccl)
    gloo: Any = distributed.ProcessGroupGloo
    options = gloo._Options()
    options._devices, options._timeout = [gloo.create_device(hostname=hosts[number])], patience
    return gloo(store, number, len(hosts), options)


def _interface(host: str) -> str:
    """The name of the network interface that has this address."""
    return next(name for name, has in psutil.net_if_addrs().items() if host in [address.address for address in has])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextlib.contextmanager
def _others() -> Iterator[None]:
    """Within, the others are waited for. Without them this process ends, as it would have to be ended."""
    try:
        with HEART.waiting():
            yield
    except RuntimeError as error:
        print(f"the other learners do not answer: {error}", file=sys.stderr, flush=True)
        time.sleep(TOLD_S)
        os._exit(1)
