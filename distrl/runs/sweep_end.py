"""What a sweep leaves at its end beside numbers: the model of its winner, pictures, a video."""

from __future__ import annotations

import shutil
from pathlib import Path

from distrl.envs.make import describe_env
from distrl.errors import UserError
from distrl.files import write_directory
from distrl.models.store import MODEL, env_of, read_model
from distrl.reports.embedded import VIDEO
from distrl.runs.sweep import Sweep
from distrl.runs.sweep_jobs import TAKEN_OVER
from distrl.tracking.board import Board


def present_sweep(sweep: Sweep, sweep_dir: Path, winner: Path | None, board: Board) -> None:
    """`winner`: the run whose best model is the sweep's. What cannot be made is told, and costs the sweep nothing."""
    from distrl.reports.sweep_pictures import plot_sweep

    shutil.rmtree(sweep_dir / TAKEN_OVER, ignore_errors=True)
    try:
        plot_sweep(sweep_dir, sweep_dir / "plots")
        if winner is not None:
            _keep_model(winner / "best", sweep_dir / MODEL)
            _film(sweep, sweep_dir)
    except (UserError, OSError, ImportError) as error:
        board.warn(f"not all pictures of this sweep could be made: {error}")


def _keep_model(source: Path, path: Path) -> None:
    def write(directory: Path) -> None:
        shutil.copytree(source, directory, dirs_exist_ok=True)

    write_directory(path, write)


def _film(sweep: Sweep, sweep_dir: Path) -> None:
    """An episode by the winner."""
    from distrl.models.play import by_policy
    from distrl.models.video import SMOOTH, record_video

    config, out = sweep.base_config(), sweep_dir / VIDEO
    if not config.track.video or out.exists():
        return
    policy, about = read_model(sweep_dir / MODEL)
    env = env_of(sweep_dir / MODEL, about)
    if "rgb_array" in describe_env(env).render_modes:
        record_video(by_policy(policy, config.seed), env, out, config.seed, most_fps=SMOOTH)
