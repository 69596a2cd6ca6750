"""Files that the machines of a cluster leave in a store and look for, to find out whether all have the same one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any

from distrl.errors import UserError
from distrl.outside import OUTSIDE_S, within
from distrl.storage.place import Place
from distrl.storage.uploader import told
from distrl.stores import Store


def leave_mark(store: Store, name: str) -> dict[str, Any]:
    """Raises `UserError` where it cannot be written."""
    return _do(store, "written", lambda place: place.write(name, BytesIO(name.encode())))


def see_marks(store: Store, names: Sequence[str]) -> dict[str, Any]:
    """Under "said": those that are there and can be read. Raises `UserError` where nothing can."""

    def look(place: Place) -> list[str]:
        seen = []
        for name in names:
            with suppress(FileNotFoundError):
                seen += [name] * (place.read(name) == name.encode())
        return seen

    return _do(store, "read", look)


def drop_mark(store: Store, name: str) -> dict[str, Any]:
    return _do(store, "written", lambda place: place.delete(name))


def _do(store: Store, what: str, work: Callable[[Place], Any]) -> dict[str, Any]:
    try:
        return {"said": within(2 * OUTSIDE_S, lambda: work(Place(store)))}
    except Exception as error:
        raise UserError(f"it cannot be {what} ({told(error)})") from None
