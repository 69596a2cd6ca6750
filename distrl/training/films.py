"""Videos on the way: an episode by the weights of every N-th evaluation, recorded beside the training.

Another process plays and draws (`distrl record`), one video after the other, so that neither training waits for a picture nor a
broken renderer ends it. An episode is fixed by the seed, so every video begins as the others do.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from distrl.models.store import write_model
from distrl.models.trust import OPTION
from distrl.outside import child_environment
from distrl.settings import Config
from distrl.training.recovery import Recovery
from distrl.types import Policy, Weights

LONGEST_S = 120.0  # that the end of a run waits for a video


class Films:
    def __init__(
        self, config: Config, policy: Policy, about: dict[str, Any], run_dir: Path, recovery: Recovery
    ) -> None:
        """`about`: of the env and the algorithm."""
        self.config, self.policy, self.about, self.recovery = config, policy, about, recovery
        self.directory = run_dir / "videos"
        self.waiting: deque[Path] = deque()  # videos to come; beside each lies its model
        self.process: subprocess.Popen[str] | None = None
        self.began = time.monotonic()  # that process

    def take(self, number: int, weights: Weights, env_steps: int) -> None:
        """The weights of an evaluation; `number`: of this one in the run."""
        every = self.config.track.video_every
        out = self.directory / f"step-{env_steps:010}.webm"
        if not every or number % every or out.exists() or out in self.waiting:
            return
        model = _model_of(out)
        model.mkdir(parents=True, exist_ok=True)
        about = self.about | {"version": weights.version, "env_steps": env_steps}
        write_model(model, self.policy, weights.vector, about)
        self.waiting.append(out)
        self._work()

    def close(self, wait: bool) -> None:
        """Wait for the videos that are to come, or leave them; so does a wish to end the run."""
        while wait and self.waiting and self.recovery.interrupted() is None:
            self._work()
            with suppress(subprocess.TimeoutExpired):
                if self.process is not None:
                    self.process.wait(0.2)
            if time.monotonic() - self.began > LONGEST_S:
                self._warn(
                    f"{self.waiting[0]} takes longer than {LONGEST_S:g} s: it and what comes after it is left out"
                )
                break
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for out in self.waiting:
            shutil.rmtree(_model_of(out), ignore_errors=True)
        self.waiting.clear()

    def _warn(self, message: str) -> None:
        self.recovery.observer.warn(message)

    def _work(self) -> None:
        """Begin the next video where none is being recorded."""
        if self.process is not None:
            if self.process.poll() is None:
                return
            _, told = self.process.communicate()
            if self.process.returncode:
                self._warn(f"a video could not be recorded: {' '.join(told.split()[-60:])}")
            shutil.rmtree(_model_of(self.waiting.popleft()), ignore_errors=True)
            self.process = None
        if self.waiting:
            out, self.began = self.waiting[0], time.monotonic()
            modules = [word for name in self._modules() for word in (OPTION, name)]
            command = [sys.executable, "-m", "distrl", "record", str(_model_of(out)), "--out", str(out), *modules]
            self.process = subprocess.Popen(
                [*(["nice"] if shutil.which("nice") else []), *command, "--seed", str(self.config.seed)],
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

    def _modules(self) -> list[str]:
        """That training has imported, so that playing may."""
        env = self.config.env
        network = getattr(self.config.algorithm, "network", None)
        places = [env.id, *(wrapper.name for wrapper in env.wrappers), *([network] if network else [])]
        return [place.partition(":")[0] for place in places if ":" in place]


def _model_of(out: Path) -> Path:
    return out.with_name(f".{out.stem}")
