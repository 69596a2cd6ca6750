"""What does not fit into this machine's memory is refused before it is asked for."""

from __future__ import annotations

import psutil

from distrl.errors import UserError

GIB = 2**30


def check_fits(wanted: int, what: str, remedy: str) -> None:
    """Raise `UserError` where so many bytes are more than are free; `what` says what takes them, and by which sum."""
    free = psutil.virtual_memory().available
    if wanted > free:
        size = (
            f"{wanted / GIB:,.1f}" if wanted < 2**60 else f"{wanted // GIB:,}"
        )  # no float holds what a crafted file asks for
        raise UserError(f"{what}: {size} GiB, and {free / GIB:.1f} GiB of memory are free. {remedy}")
