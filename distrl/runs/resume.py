"""Going on with a run: which one is meant, and whether it is still the same run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distrl.config import load_config
from distrl.errors import UserError, reading, shown
from distrl.models.store import newest_checkpoint
from distrl.settings import Config, dotted
from distrl.yaml_format import read_yaml

# What may change on resume, since it cannot change the arithmetic. A device can; so the run tells when it is another.
CHANGEABLE = (
    *("stop", "cluster", "track", "checkpoint", "run_dir", "storage"),
    *("learner.device", "learner.count", "replay.on_device"),
)


def resume_point(path: Path) -> tuple[Path, Path | None]:
    """The run directory that `path` means, and the checkpoint: `path` itself, or the newest of the run, if it has one."""
    path = path.absolute()
    with reading(f"{shown(str(path))} cannot be read"):
        return _resume_point(path)


def _resume_point(path: Path) -> tuple[Path, Path | None]:
    checkpoint = (path / "manifest.json").exists() or path.parent.name == "checkpoints"
    run_dir = path.parent.parent if checkpoint else path
    if not (run_dir / "config.yaml").exists():
        raise UserError(f"There is no run to resume at {str(path)!r}: it has no config.yaml.")
    return run_dir, path if checkpoint else newest_checkpoint(run_dir)


def load_resumed_config(resume: Path, overrides: Sequence[str], source: Path | None = None) -> Config:
    """The config of the run to resume, with overrides of what may change. Raises `UserError` for any other."""
    run_dir, _ = resume_point(resume)
    config = load_config(run_dir / "config.yaml", overrides)
    with reading(f"{run_dir / 'config.yaml'} cannot be read"):
        text = (run_dir / "config.yaml").read_text(encoding="utf-8")
    check_same(text, config, run_dir)
    if source is not None:
        given = load_config(source, overrides)
        if given.init_from is not None and config.init_from is not None:  # of which the run has a copy
            given = given.model_copy(update={"init_from": config.init_from})
        check_same(given.to_yaml(), config, source)
        if given.learner.device != "auto":
            return config.on_device(given.learner.device)
    return config


def check_same(text: str, config: Config, where: Path) -> None:
    """Raise `UserError` where the config `text` (YAML, of `where`) differs in what may not change."""
    # Read as a config, so that a setting which an older distrl did not write has its default.
    texts = (load_config(read_yaml(text)).to_yaml(), config.to_yaml())
    old, new = ({k: v for k, v in dotted(read_yaml(t)).items() if v != {}} for t in texts)
    different = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and not _changeable(k))
    if different:
        changes = ", ".join(f"{k} ({old.get(k)!r} there, {new.get(k)!r} here)" for k in different)
        raise UserError(
            f"{where} is of another config: {changes}. A resumed run may change only {', '.join(CHANGEABLE)}; "
            "start a new run for the rest."
        )


def _changeable(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in CHANGEABLE)
