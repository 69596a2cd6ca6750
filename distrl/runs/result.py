"""How a run ended: result.json, and the pictures that people look at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from distrl.errors import UserError
from distrl.files import write_text
from distrl.models.store import newest_checkpoint, read_model, versions, weights_sha256
from distrl.runs.plan import Plan
from distrl.training.trainer import Trainer
from distrl.types import Evaluation


@dataclass
class Result:
    """How a run ended; `data` is what result.json holds."""

    run_dir: Path
    data: dict[str, Any]

    @property
    def status(self) -> str:
        return str(self.data["status"])

    @property
    def evaluation(self) -> Evaluation | None:
        """Of the best model, at the end; None where there was none."""
        data = self.data["evaluation"]
        return None if data is None else Evaluation.from_json(data)


def write_result(trainer: Trainer, status: str, error: str | None) -> Result:
    progress, final = trainer.progress, trainer.evaluations.final
    sha256 = None
    last = newest_checkpoint(trainer.run_dir)
    if status != "running" and last is not None:
        sha256 = weights_sha256(read_model(last)[0])
    data: dict[str, Any] = {
        "status": status,
        "stopped_by": progress.stopped,
        "env_steps": progress.env_steps,
        "episodes": progress.episodes,
        "return_mean": progress.return_mean,
        "evaluation": None if final is None else final.to_json(),
        "weights_sha256": sha256,
        "startup_s": None
        if trainer.ledger.first_step is None
        else trainer.ledger.first_step - psutil.Process().create_time(),
        "train_s": progress.train_s,
        "time_to_threshold_s": progress.time_to_threshold_s,
        "steps_to_threshold": progress.steps_to_threshold,
        "steps_to_streak": progress.steps_to_streak,
        "env_steps_per_s": progress.env_steps / progress.train_s if progress.train_s else None,
        "seconds": {
            name.removeprefix("time/").removesuffix("_s"): value for name, value in trainer.ledger.totals.items()
        },
        "restarts": trainer.recovery.restarts,
        "versions": versions(),
        "error": error,
    }
    write_text(trainer.run_dir / "result.json", json.dumps(data, indent=1))
    return Result(trainer.run_dir, data)


def present(plan: Plan) -> list[str]:
    """Curves, a video and a model card. What cannot be made is told, and costs the run nothing."""
    from distrl.models import video
    from distrl.reports import card, curves, maps

    run_dir, failed = plan.run_dir, []
    try:
        curves.plot_training(run_dir, run_dir / "plots")
        maps.plot_map(run_dir, run_dir / "plots" / "policy.png")
        write_text(run_dir / "best" / "README.md", card.model_card(run_dir))
        if plan.config.track.video and "rgb_array" in plan.info.render_modes:
            policy, _ = read_model(run_dir / "best")
            video.record_video(policy, plan.config.env, run_dir / "videos" / "best.webm", seed=plan.config.seed)
    except (UserError, OSError, ImportError) as error:
        failed.append(f"not all pictures of this run could be made: {error}")
    return failed
