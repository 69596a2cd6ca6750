"""`python -m distrl.storage`: what is asked of a store in a process of its own; with `--sync RUN`, copies what it lacks."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from distrl.errors import UserError
from distrl.storage.fetch import check_place, fetch_run
from distrl.storage.marks import drop_mark, leave_mark, see_marks
from distrl.storage.uploader import follow_run, sync
from distrl.stores import Store


def main() -> None:
    match sys.argv[1:]:
        case ["--follow", run_dir, address]:
            leave(follow_run(Path(run_dir), address))
        case ["--check", address]:
            answer(lambda: check_place(Store.parse(address)))
        case ["--fetch", address, run_dir]:
            answer(lambda: fetch_run(Store.parse(address), Path(run_dir)))
        case ["--leave", address, name]:
            answer(lambda: leave_mark(Store.parse(address), name))
        case ["--see", address, *names]:
            answer(lambda: see_marks(Store.parse(address), names))
        case ["--drop", address, name]:
            answer(lambda: drop_mark(Store.parse(address), name))
        case ["--sync", run_dir]:
            try:
                sync(Path(run_dir))
            except UserError as error:
                sys.exit(f"error: {error}")
        case _:
            sys.exit(
                "usage: python -m distrl.storage --sync RUN_DIR   (copies to its storage what that lacks of a run)"
            )


def answer(ask: Any) -> None:
    try:
        said = ask()
    except UserError as error:
        said = {"error": str(error)}
    print(json.dumps(said), flush=True)
    leave(0)


def leave(code: int) -> None:
    """At once: whoever hangs in a store would be waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


main()
