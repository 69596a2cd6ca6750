"""The card of a model: what it is, how it was made, how well it does."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from distrl.errors import UserError
from distrl.reports.runs import read_config, read_file


def model_card(run_dir: Path) -> str:
    """Markdown that tells what the best model of a run is, how good, how it came about and how to use it."""
    run_dir = Path(run_dir)
    config = read_config(run_dir)
    try:
        result = json.loads(read_file(run_dir / "result.json"))
    except ValueError:
        raise UserError(f"{run_dir / 'result.json'} is not valid JSON.") from None
    algorithm, env_id = config["algorithm"]["name"], config["env"]["id"]
    evaluation = result.get("evaluation") or {}
    lines = [f"# {algorithm} on {env_id}", ""]
    if evaluation:
        how = "greedy actions" if evaluation.get("greedy", True) else "sampled actions"
        lines += [
            f"**Return {_number(evaluation.get('mean'))} ± {_number(evaluation.get('std'))}** "
            f"(mean and standard deviation of {_number(evaluation.get('episodes'))} episodes, {how}; "
            f"{_number(evaluation.get('min'))} to {_number(evaluation.get('max'))})",
            "",
        ]
        lines += [
            f"**{name.capitalize()} {_number(value.get('mean'))} ± {_number(value.get('std'))}** "
            f"({_number(value.get('min'))} to {_number(value.get('max'))})\n"
            for name, value in evaluation.items()
            if isinstance(value, dict)
        ]
    facts = {
        "algorithm": algorithm,
        "environment": env_id,
        "seed": config.get("seed"),
        "env steps behind these weights": _number(evaluation.get("env_steps")),
        "env steps of the run": _number(result.get("env_steps")),
        "episodes of the run": _number(result.get("episodes")),
        "return of the last 100 training episodes": _number(result.get("return_mean")),
        "env steps to the reward threshold": _number(result.get("steps_to_threshold")),
        "env steps to the streak of episodes asked for": _number(result.get("steps_to_streak")),
        "time to the reward threshold": _number(result.get("time_to_threshold_s"), " s"),
        "training time": _number(result.get("train_s"), " s"),
        "speed": _number(result.get("env_steps_per_s"), " env steps/s"),
        "workers restarted": _number(result.get("restarts")),
        "ended by": result.get("stopped_by") or result.get("status"),
        "sha256 of the run's last weights": result.get("weights_sha256"),
        "versions": ", ".join(f"{name} {version}" for name, version in (result.get("versions") or {}).items()),
    }
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items() if value not in (None, "")]
    learnt = {key: value for key, value in config.items() if key not in ("run_dir", "cluster", "track")}
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "from distrl import load_policy",
        "",
        f"policy = load_policy({str(run_dir / 'best')!r})",
        "action = policy.act(obs)",
        "```",
        "",
        "## Hyperparameters",
        "",
        "```yaml",
        yaml.safe_dump(learnt, sort_keys=False).rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _number(value: object, unit: str = "") -> str | None:
    """A number as people write it, with its unit; None for what is not there."""
    if not isinstance(value, int | float):
        return None
    return (f"{value:,}" if isinstance(value, int) else f"{value:,.6g}") + unit
