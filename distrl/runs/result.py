"""How a run ended: result.json, and what people look at."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrl.errors import Diverged, EnvError, UserError
from distrl.files import write_text
from distrl.json_format import json_text
from distrl.models.store import newest_checkpoint, read_model, versions, weights_sha256
from distrl.runs.plan import Plan
from distrl.training.recovery import Observer
from distrl.training.trainer import Trainer
from distrl.types import Evaluation

PASS_ON_S = 5e-5  # in which a thread that draws lets the one that films go on, whose every frame waits for that


@dataclass
class Result:
    """How a run ended."""

    run_dir: Path
    data: dict[str, Any]  # what result.json holds

    @property
    def status(self) -> str:
        return str(self.data["status"])

    @property
    def evaluation(self) -> Evaluation | None:
        """Of the best model, at the end; None where the run did not come to it, or was told not to."""
        data = self.data["evaluation"]
        return None if data is None else Evaluation.from_json(data)


def write_result(trainer: Trainer, since: float, status: str, error: BaseException | None = None) -> Result:
    """Write result.json. `since`: unix time from which the start-up is counted."""
    progress, ledger, final = trainer.progress, trainer.ledger, trainer.evaluations.final
    data: dict[str, Any] = {
        "status": status,
        "stopped_by": progress.stopped,
        "env_steps": progress.env_steps,
        "episodes": progress.episodes,
        "return_mean": progress.return_mean,
        "evaluation": None if final is None else final.to_json(),
        "weights_sha256": None if status == "running" else _newest_sha256(trainer.job.run_dir),
        "startup_s": None if ledger.first_step is None else ledger.first_step - since,
        "train_s": progress.train_s,
        "time_to_threshold_s": progress.time_to_threshold_s,
        "steps_to_threshold": progress.steps_to_threshold,
        "steps_to_streak": progress.steps_to_streak,
        "env_steps_per_s": progress.env_steps / progress.train_s if progress.train_s else None,
        "seconds": {name.removeprefix("time/").removesuffix("_s"): value for name, value in ledger.totals.items()},
        "restarts": trainer.recovery.restarts,
        "init_from": trainer.checkpoints.job.about.get("init_from"),
        "versions": versions(),
        "error": None if error is None else _text(error),
    }
    text = json_text(data, indent=1)
    write_text(trainer.job.run_dir / "result.json", text)
    return Result(trainer.job.run_dir, json.loads(text))


def _newest_sha256(run_dir: Path) -> str | None:
    """Of the weights in the newest checkpoint."""
    newest = newest_checkpoint(run_dir)
    return None if newest is None else weights_sha256(read_model(newest)[0])


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, Diverged | EnvError) else "".join(traceback.format_exception(error))


def present(plan: Plan, observer: Observer) -> None:
    """Write the model's card, record a video and, beside that, draw the curves. What cannot be made is told, and costs the run nothing."""
    makers: list[Callable[[], None]] = [lambda: _write_card(plan.run_dir), lambda: _record(plan, observer)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(PASS_ON_S)
    try:
        with ThreadPoolExecutor(1) as beside:
            drawn = beside.submit(_draw, plan.run_dir)
            for make in (*makers, drawn.result):
                try:
                    make()
                except (UserError, OSError, ImportError) as error:
                    observer.warn(f"not all pictures of this run could be made: {error}")
    finally:
        sys.setswitchinterval(before)


def _write_card(run_dir: Path) -> None:
    from distrl.reports.card import model_card

    write_text(run_dir / "best" / "README.md", model_card(run_dir))


def _draw(run_dir: Path) -> None:
    from distrl.reports import curves, maps

    curves.plot_training(run_dir, run_dir / "plots")
    maps.plot_map(run_dir, run_dir / "plots" / "policy.png")


def _record(plan: Plan, observer: Observer) -> None:
    from distrl.models import video
    from distrl.models.play import by_policy

    if not (plan.config.track.video and "rgb_array" in plan.info.render_modes):
        return
    policy, _ = read_model(plan.run_dir / "best")
    seed = plan.config.seed
    out = plan.run_dir / "videos" / "best.webm"
    recording = video.record_video(by_policy(policy, seed), plan.config.env, out, seed, most_fps=video.SMOOTH)
    if recording.warning is not None:
        observer.warn(recording.warning)
