"""The process beside a run that copies its directory to a store, and the driver's side of it."""

from __future__ import annotations

import logging
import os
import shlex
import threading
import time
from pathlib import Path

from distrl.config import load_config
from distrl.errors import UserError
from distrl.files import lock_now
from distrl.storage.mirror import Mirror
from distrl.storage.place import Place
from distrl.stores import Store
from distrl.tracking.companion import Companion, Driver, tell_behind
from distrl.tracking.where import without_credentials

NAME = "storage"
REST_S, LONGEST_REST_S = 1.0, 30.0  # between two looks at the directory: four times as long as the last one took
STALL_S = 60.0  # without any sign of progress, after which the store is said to hang
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
LOG = logging.getLogger("distrl.storage")


class StorageCopy(Companion):
    """The process that copies a run to where it is kept. It ends when its driver does, in whatever way."""

    def __init__(self, run_dir: str | Path, address: str) -> None:
        """`address`: of the run in the store."""
        run_dir, self.address = Path(run_dir).absolute(), address
        super().__init__(run_dir, NAME, ["distrl.storage", "--follow", str(run_dir), address], {})

    def poll(self) -> str | None:
        """A line for people when the copy has just fallen behind or caught up. Cheap enough for every iteration."""
        match self.news():
            case "ended", code:
                return f"The process that copies this run to {self.address} ended ({code}) and was started again."
            case "behind", reason:
                return f"{self.address} does not take this run ({reason}). Training goes on; it is copied later."
            case "caught up", _:
                return f"{self.address} has all of this run again."
        return None

    def finish(self, timeout: float) -> str | None:
        """Copy all that is left. Returns a warning where `timeout` s were not enough."""
        if self.end("ended", timeout) == 0:
            return None
        command = f"python -m distrl.storage --sync {shlex.quote(str(self.run_dir))}"
        reason = self.reason or f"see {self.run_dir}/{NAME}.log"
        return f"{self.address} does not have all of this run ({reason}). Copy it later: {command}"


def sync(run_dir: Path, timeout: float = 3600) -> None:
    """Copy what the store lacks of a run that has ended. Raises `UserError` where that is not possible."""
    config = load_config(run_dir / "config.yaml")
    if config.storage is None:
        raise UserError(f"{run_dir} is kept nowhere else: its config has no storage.")
    if warning := StorageCopy(run_dir, str(Store.parse(config.storage) / run_dir.absolute().name)).finish(timeout):
        raise UserError(warning)


def told(error: BaseException) -> str:
    """What went wrong, in one line and without credentials."""
    text = without_credentials(" ".join(str(error).split()))[:300] or type(error).__name__
    for name in SECRETS:
        if len(value := os.environ.get(name, "")) >= 8:
            text = text.replace(value, "***")
    return text


def follow_run(run_dir: Path, address: str) -> int:
    """Copy the run until its driver ends. Returns 0 where the store then has all of it."""
    os.nice(10)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    driver = Driver(LOG)
    driver.start()
    with (run_dir / f"{NAME}.log").open("ab") as lock:
        # The process of a killed driver may still be at work; that of the resumed run then waits for it.
        while not lock_now(lock):
            if driver.ended.wait(0.2) and driver.status is None:
                return 0
        return _Uploader(run_dir, Store.parse(address), driver).run()


class _Uploader:
    def __init__(self, run_dir: Path, store: Store, driver: Driver) -> None:
        self.run_dir, self.store, self.driver = run_dir, store, driver
        self.behind = False
        self.beat_at: float | None = None  # of the last sign of progress; None: nothing is under way
        threading.Thread(target=self._watch, daemon=True).start()

    def run(self) -> int:
        mirror: Mirror | None = None
        failures = 0
        while True:
            ended, start = self.driver.ended.is_set(), time.monotonic()
            try:
                self.beat()
                if mirror is None:
                    keep = load_config(self.run_dir / "config.yaml").checkpoint.keep
                    mirror = Mirror(self.run_dir, Place(self.store, self.beat), keep)
                mirror.copy()
                self._tell("")
                failures = 0
                if ended:
                    return 0
            except Exception as error:  # of the store, the network, the disk: all of it is tried again
                LOG.debug("", exc_info=error)
                self._tell(told(error))
                failures, mirror = failures + 1, None
                if ended and self.driver.status is None and failures > 2:  # nobody waits
                    return 1
            self.beat_at = None
            rest = min(LONGEST_REST_S, max(REST_S, 4 * (time.monotonic() - start)))
            if ended:
                time.sleep(1)
            else:
                self.driver.ended.wait(rest)

    def beat(self) -> None:
        self.beat_at = time.monotonic()

    def _tell(self, reason: str) -> None:
        if reason or self.behind:
            tell_behind(self.run_dir, NAME, reason)
        if bool(reason) != self.behind:
            LOG.warning("%s %s", self.store, f"takes nothing: {reason}" if reason else "takes everything again")
        self.behind = bool(reason)

    def _watch(self) -> None:
        """Tell of a store that neither answers nor refuses, such as a directory of a server that is gone."""
        while True:
            time.sleep(STALL_S / 10)
            if self.beat_at is not None and time.monotonic() - self.beat_at > STALL_S:
                self._tell(f"nothing has moved for more than {STALL_S:.0f} s")
