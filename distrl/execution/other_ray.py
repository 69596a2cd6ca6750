"""Finding a Ray to join: one that answers, and to us. Ray's own client would try for a minute, and not be interrupted."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from distrl.errors import UserError
from distrl.outside import OUTSIDE_S

REMEDY = "Start one with 'ray start --head', correct cluster.address, or leave it out to use a Ray of this run's own."
TOKEN = "it is closed to those without its token: put that into RAY_AUTH_TOKEN, or into the file ~/.ray/auth_token"


def show_token() -> None:
    """Let Ray send the token that this user has, where there is one and nothing else is asked for."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_TOKEN" in os.environ or Path(path).exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def find(address: str) -> str:
    """The host:port of the Ray meant by `cluster.address`, which answers there. Raises `UserError` for none."""
    if address != "auto":
        if (reason := silence(address, OUTSIDE_S)) is not None:
            raise UserError(f"cluster.address {address!r} does not answer ({reason}). {REMEDY}")
        return address
    deadline = time.monotonic() + OUTSIDE_S
    reasons = {}
    for candidate in dict.fromkeys(_candidates()):
        reason = silence(candidate, max(1.0, deadline - time.monotonic()))
        if reason is None:
            return candidate
        reasons[candidate] = reason
    found = "; ".join(f"{candidate}: {reason}" for candidate, reason in reasons.items()) or "none was found"
    raise UserError(f"cluster.address is 'auto', but there is no Ray here to join ({found}). {REMEDY}")


def _candidates() -> Iterator[str]:
    """As Ray looks for them: what the environment names, what was started here last, what runs here."""
    from ray._private import services

    if named := os.environ.get("RAY_ADDRESS"):
        yield named
        return
    if last := services.find_bootstrap_address(None):
        yield last
    yield from sorted(services.find_gcs_addresses())


def silence(address: str, seconds: float) -> str | None:
    """Why no Ray answers us at host:port, or None where one does."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel

    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()) or "/" in host:
        return "it must be 'auto' or HOST:PORT, such as 10.0.0.1:6379"
    with init_grpc_channel(address) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=seconds)
            return None
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return TOKEN
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"nothing said within {seconds:.0f} s: is it the port of a Ray's head?"
            return str(error.details()).rpartition(": ")[2]
