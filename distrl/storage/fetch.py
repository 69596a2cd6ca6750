"""Asking a store before a run begins, and bringing a run back from it. The asking is done by a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from io import BytesIO
from pathlib import Path
from typing import Any

from distrl.errors import UserError
from distrl.files import refuse_used
from distrl.models.store import list_checkpoints, read_model
from distrl.outside import OUTSIDE_S, child_environment, within
from distrl.storage.mirror import MANIFEST
from distrl.storage.place import Place
from distrl.storage.uploader import told
from distrl.stores import Store, is_address
from distrl.training.checkpoint import read_checkpoint_config

START_S = 60.0  # for a process to start and import, on a busy machine
REMEDY = "Correct storage or its credentials, or leave it out: storage=null."


def check_storage(address: str, run_dir: Path, new: bool) -> None:
    """Raise `UserError` where a run cannot be kept there, within seconds. `new`: nothing of that name may be there yet."""
    store = Store.parse(address) / run_dir.name
    if store.scheme == "file" and Path(store.path).resolve() == run_dir.resolve():
        raise UserError(f"storage {address!r} is where the run itself is. Give another directory.")
    answer = _ask("--check", str(store), limit=START_S + 2 * OUTSIDE_S)
    if new and answer["taken"]:
        raise UserError(f"{store} exists. Choose another run_dir, or go on with it: --resume '{store}'")


def brought(resume: str | Path, run_dir: str | Path | None = None) -> Path:
    """The run here that `resume` means; one in a store is copied to `run_dir` (None: runs/NAME), unless it was already."""
    if not is_address(resume):
        return Path(resume)
    store = Store.parse(str(resume))
    here = Path(run_dir or f"runs/{store.name}").expanduser().absolute()
    _ask("--fetch", str(store), str(here), limit=None)
    return here


def storage_of(resume: str | Path) -> str:
    """Where a run is kept, whose address in a store that is."""
    return str(Store.parse(str(resume)).parent)


def _ask(*arguments: str, limit: float | None) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "distrl.storage", *arguments]
    environment = child_environment()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise UserError(f"{arguments[1]} does not answer within {limit:g} s. {REMEDY}") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise RuntimeError(f"asking {arguments[1]} failed ({done.returncode}): {done.stderr[-2000:]}") from None
    if "error" in answer:
        raise UserError(answer["error"])
    return answer


def check_place(store: Store) -> dict[str, Any]:
    """Write a file there, read it and take it away. Returns whether a run is there. Raises `UserError` where it cannot be."""
    name, content = f".distrl-{uuid.uuid4().hex}", b"whether this can be written"

    def attempt() -> bool:
        place = Place(store)
        taken = "config.yaml" in place.list()
        place.write(name, BytesIO(content))
        try:
            if place.read(name) != content:
                raise OSError("what was written is not what is read")
        finally:
            place.delete(name)
        return taken

    try:
        return {"taken": within(2 * OUTSIDE_S, attempt)}
    except Exception as error:
        raise UserError(f"The storage {store} cannot be used: {told(error)}. {REMEDY}") from None


def fetch_run(store: Store, run_dir: Path) -> dict[str, Any]:
    """Copy a run from a store to a directory, with its newest whole checkpoint. Raises `UserError` where there is none."""
    try:
        place = Place(store)
        there = place.list()
    except Exception as error:
        raise UserError(f"{store} cannot be read: {told(error)}. Correct the address or the credentials.") from None
    if "config.yaml" not in there:
        raise UserError(f"There is no run at {store}: it has no config.yaml.")
    whole = sorted(
        {name.split("/")[1] for name in there if name.startswith("checkpoints/") and name.endswith(MANIFEST)}
    )
    if (run_dir / "config.yaml").exists():
        here = [path.name for path in list_checkpoints(run_dir)]
        if max(here, default="") >= max(whole, default=""):
            return {"checkpoint": max(here, default=None)}  # it was brought before, or began here
    refuse_used(run_dir)
    draft = run_dir.with_name(f".{run_dir.name}.{os.getpid()}.tmp")
    try:
        for name in (name for name in there if not name.startswith("checkpoints/") and not name.startswith(".")):
            place.fetch(name, draft / name)
        checkpoint = _fetch_newest(place, draft, [n for n in there if n.startswith("checkpoints/")], whole)
        if (draft / "best").exists():
            _drop_torn(draft / "best")
        if run_dir.is_dir():
            run_dir.rmdir()
        os.rename(draft, run_dir)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{store} cannot be copied to {run_dir}: {told(error)}. Try again.") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {"checkpoint": checkpoint}


def _fetch_newest(place: Place, run_dir: Path, names: list[str], whole: list[str]) -> str | None:
    """The newest checkpoint that is what was written; one that is not is passed over."""
    reasons: list[str] = []
    for number in reversed(whole):
        path = run_dir / "checkpoints" / number
        try:
            for name in (name for name in names if name.startswith(f"checkpoints/{number}/")):
                place.fetch(name, run_dir / name)
            read_checkpoint_config(path)
            return number
        except (UserError, FileNotFoundError) as error:
            reasons.append(told(error))
            shutil.rmtree(path, ignore_errors=True)
    if reasons:
        raise UserError(f"No checkpoint of {place.root} is whole. Of the newest: {reasons[0]}")
    return None


def _drop_torn(best: Path) -> None:
    """A best model of which only a part had been copied is written again from the checkpoint."""
    try:
        read_model(best)
    except UserError:
        shutil.rmtree(best)
