"""The card of a model: what it is, how well it plays, how it was made, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distrl.reports.runs import NOT_LEARNT, read_config, read_result
from distrl.types import Evaluation
from distrl.yaml_format import write_yaml


def model_card(run_dir: Path) -> str:
    """Markdown about the best model of a run. Raises `UserError` where the run's files cannot be read."""
    config, result = read_config(run_dir), read_result(run_dir)
    data = result.get("evaluation")
    evaluation = None if data is None else Evaluation.from_json(data)
    lines = [f"# {config['algorithm']['name']} on {config['env']['id']}", ""]
    if evaluation is not None:
        lines += _score(evaluation)
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _facts(config, result, evaluation).items() if value]
    remembers = config["algorithm"].get("memory") is not None
    team = evaluation is not None and bool(evaluation.agents)
    lines += ["", "## Use", "", *_use(Path(run_dir.name) / "best", remembers, team), ""]
    lines += ["## Hyperparameters", "", *_hyperparameters(config)]
    return "\n".join(lines) + "\n"


def _score(evaluation: Evaluation) -> list[str]:
    """A line about the return and one about each score."""
    lines = [f"**Return {evaluation.returns:,.6g}** over {evaluation.played}; ± is their standard deviation", ""]
    for name, score in evaluation.scores.items():
        lines += [f"**{name.capitalize()} {score:,.6g}**", ""]
    for name, text in evaluation.told:
        lines += [f"{name[0].upper()}{name[1:]}: {text}", ""]
    return lines


def _facts(
    config: Mapping[str, Any], result: Mapping[str, Any], evaluation: Evaluation | None
) -> dict[str, str | None]:
    """What is known of the run, by name; None for what is not."""
    return {
        "algorithm": config["algorithm"]["name"],
        "environment": config["env"]["id"],
        "seed": str(config["seed"]),
        "began with": _origin(result.get("init_from")),
        "env steps behind these weights": None if evaluation is None else f"{evaluation.env_steps:,}",
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
        "versions": ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items()),
    }


def _origin(source: Mapping[str, Any] | None) -> str | None:
    return None if source is None else f"the weights of {Path(source['path']).name} (sha256 {source['weights_sha256']})"


def _number(value: float | str | None, unit: str = "") -> str | None:
    """A number (or its text, where it is not finite) as people write it, with its unit; None stays None."""
    if value is None:
        return None
    return (f"{value:,}" if isinstance(value, int) else f"{float(value):,.6g}") + unit


def _use(model: Path, remembers: bool, team: bool) -> list[str]:
    return [
        "```python",
        "from distrl import load_policy",
        "",
        f"policy = load_policy({str(model)!r})  # wherever this directory lies",
        *(["policy.reset()  # where an episode begins: this policy remembers"] if remembers else []),
        "action = policy.act(obs, agent=name)  # of each agent, as the env gives it"
        if team
        else "action = policy.act(obs)",
        "```",
    ]


def _hyperparameters(config: Mapping[str, Any]) -> list[str]:
    learnt = {key: value for key, value in config.items() if key not in (*NOT_LEARNT, "init_from")}
    return ["```yaml", write_yaml(learnt).rstrip(), "```"]
