"""Runs as one HTML page that needs nothing beside itself: scores, curves, evaluation, times, versions, how to repeat it, a video.

The page holds no script and fetches nothing. Colours are CSS variables, so that pictures are light and dark as the rest is.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distrl.errors import UserError
from distrl.files import write_text
from distrl.reports.curves import COLOURS, EDGE, GREY, learning_curves, losses, reward_threshold
from distrl.reports.embedded import VIDEO, data_uri, embedded
from distrl.reports.runs import Run, group_runs, read_json, read_result, read_run
from distrl.reports.scores import CONFIDENCE, Score, over_seeds
from distrl.reports.sweep_page import PageOfSweep
from distrl.reports.sweep_pictures import drawings
from distrl.reports.sweeps import is_sweep, read_sweep
from distrl.training.progress import PHASES
from distrl.types import Evaluation
from distrl.yaml_format import write_yaml

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

INK = "#123456"  # of letters and axes, until it becomes the page's own
SIZES = {"wide": (9.0, 4.2), "narrow": (4.4, 3.6)}  # inches; the second is for telephones
FILMS = 9  # videos of learning in the page, at most


@dataclass(frozen=True)
class Told:
    """A run, and what is said of it beside its metrics."""

    run: Run
    result: dict[str, Any]
    tags: dict[str, str]  # those of MLflow: hardware and revision; none, where it was not tracked

    @classmethod
    def read(cls, run: Run) -> Told:
        track = run.path / "track.json"
        return cls(run, read_result(run.path), read_json(track).get("tags", {}) if track.exists() else {})

    @cached_property
    def evaluation(self) -> Evaluation | None:
        data = self.result.get("evaluation")
        return None if data is None else Evaluation.from_json(data)


def write_page(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write the page of some runs.

    Raises:
        UserError: one of them is no run, two are one, or it cannot be written
    """
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"{str(out)!r} must end in .html: a report is a page.")
    write_text(out, report_page(run_dirs))
    return out


def report_page(run_dirs: Sequence[Path]) -> str:
    """The page of some runs, as HTML. Runs that differ only in the seed are one configuration.

    The directory of a sweep stands for the runs on its test seeds, of the winner and of the base, and for its pictures.
    """
    from jinja2 import Environment, StrictUndefined

    paths = list(dict.fromkeys(Path(path).resolve() for path in run_dirs))
    sweeps = [PageOfSweep(read_sweep(path)) for path in paths if is_sweep(path)]
    roles = {run: role for sweep in sweeps for run, role in sweep.runs.items()}
    runs = [read_run(path) for path in [*(path for path in paths if not is_sweep(path)), *roles]]
    groups = {
        _label(label, members, roles): [Told.read(run) for run in members]
        for label, members in group_runs(runs).items()
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "duration": duration}
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text("utf-8"))
    schedules = {run: sweep.schedule for sweep in sweeps for run in sweep.runs if sweep.changed(run)}
    told = [_group(label, members, schedules.get(members[0].run.path)) for label, members in groups.items()]
    threshold = reward_threshold(runs)
    return template.render(
        title=_title(paths, sweeps, list(groups)),
        when=max((row["time"] for run in runs for row in run.rows), default=None),
        date=_date,
        runs=len(runs),
        groups=told,
        sweeps=[
            sweep.told() | {"pictures": list(filter(None, map(_drawn, drawings(sweep.files).values())))}
            for sweep in sweeps
        ],
        spans=_spans([group["score"] for group in told]),
        confidence=f"{CONFIDENCE:.0%}".replace("%", " %"),
        curves={name: _drawn(partial(learning_curves, runs, threshold, size=size)) for name, size in SIZES.items()},
    )


def _title(paths: Sequence[Path], sweeps: Sequence[PageOfSweep], labels: Sequence[str]) -> str:
    if len(paths) == len(sweeps) == 1:
        return f"Sweep {sweeps[0].name}"
    return labels[0] if len(labels) == 1 else f"{len(labels)} configurations"


def _label(label: str, members: Sequence[Run], roles: Mapping[Path, str]) -> str:
    """With what the runs are in a sweep, where they are one thing in it."""
    found = {roles.get(run.path) for run in members}
    role = found.pop() if len(found) == 1 else None
    return label if role is None else f"{role}: {label}"


def _group(label: str, members: Sequence[Told], schedule: Sequence[str] | None) -> dict[str, Any]:
    """What the template tells of the runs of one configuration. `schedule`: its values where they changed on the way."""
    ranked = sorted(members, key=lambda told: told.evaluation.mean if told.evaluation else -np.inf, reverse=True)
    scored = [told for told in ranked if told.evaluation is not None]
    first, best = members[0], ranked[0]
    filmed = next((told for told in ranked if (told.run.path / VIDEO).parent.exists()), best)
    return {
        "label": label,
        "members": sorted(members, key=lambda told: told.run.config.get("seed", 0)),
        "best": best,
        "score": over_seeds([told.evaluation.mean for told in scored if told.evaluation]) if scored else None,
        "scores": _scores(scored),
        "numbers": _numbers(members),
        "facts": _facts(first) | ({} if schedule is None else {"values": "those of the end; they changed on the way"}),
        "schedule": schedule,
        "phases": _phases(members),
        "versions": first.result.get("versions", {}),
        "hardware": {name: value for name, value in first.tags.items() if not name.startswith("version.")},
        "config": _config(first.run.config),
        "download": data_uri(_config(first.run.config).encode(), "text/yaml"),
        "losses": _drawn(partial(losses, best.run)),
        "map": embedded(best.run.path / "plots" / "policy.png"),
        "filmed": filmed,
        "films": _films(filmed.run.path),
        "video": embedded(filmed.run.path / VIDEO),
    }


def _scores(scored: Sequence[Told]) -> dict[str, Score]:
    """What the env reports beside the return, over seeds."""
    found = [told.evaluation.scores for told in scored if told.evaluation]
    names = dict.fromkeys(name for scores in found for name in scores)
    return {name: over_seeds([scores[name].mean for scores in found if name in scores]) for name in names}


def _numbers(members: Sequence[Told]) -> dict[str, tuple[str, str]]:
    """Mean and range over the runs, for people."""

    def told(name: str, show: Callable[[float], str]) -> tuple[str, str] | None:
        values = [float(member.result[name]) for member in members if member.result.get(name) is not None]
        if not values:
            return None
        low, high = show(min(values)), show(max(values))
        return show(float(np.mean(values))), "" if low == high else f"{low} to {high}"

    whole = lambda value: f"{value:,.0f}"
    found = {
        "env steps": told("env_steps", whole),
        "training time": told("train_s", duration),
        "env steps a second": told("env_steps_per_s", whole),
        "solved after": told("time_to_threshold_s", duration),
    }
    return {name: value for name, value in found.items() if value is not None}


def _facts(told: Told) -> dict[str, str]:
    """What was trained, and on what."""
    config = told.run.config
    env, algorithm, rollout = config["env"], config["algorithm"], config.get("rollout") or {}
    model = told.run.path / "best" / "policy.json"
    about = read_json(model) if model.exists() else {}
    facts = {
        "environment": env["id"],
        "its arguments": ", ".join(f"{name}={value}" for name, value in (env.get("kwargs") or {}).items()),
        "wrappers": ", ".join(wrapper["name"] for wrapper in env.get("wrappers") or ()),
        "time limit": f"{env['max_episode_steps']:,} steps" if env.get("max_episode_steps") else "",
        "observations": _tensors(about.get("observation", ())),
        "actions": _tensors(about.get("action", ())),
        "algorithm": algorithm["name"],
        "network": " - ".join(map(str, algorithm.get("hidden") or ())),
        "learning rate": _schedule(algorithm.get("lr")),
        "discount": number(algorithm["gamma"]) if "gamma" in algorithm else "",
    }
    if rollout:
        copies = rollout["shards"] * rollout["envs_per_shard"]
        facts["env copies"] = f"{copies:,} in {rollout['shards']} shards, {rollout['steps']} steps of each an iteration"
    return {name: str(value) for name, value in facts.items() if value}


def _tensors(tensors: Any) -> str:
    """Arrays with their names, kinds and shapes; where agents are in groups those of each agent."""
    if isinstance(tensors, Mapping):
        return "; ".join(f"{agent}: {_tensors(parts)}" for agent, parts in tensors.items())
    return ", ".join(f"{x['name']} {x['dtype']} {x['shape'] or ''}".strip() for x in tensors)


def _schedule(value: Any) -> str:
    """A number that stays, or one that moves."""
    if not isinstance(value, Mapping):
        return "" if value is None else number(value)
    start, end = value["start"], value.get("end")
    return number(start) if end is None else f"{number(start)} to {number(end)}"


def _phases(members: Sequence[Told]) -> list[dict[str, Any]]:
    """Mean seconds of each phase, and its share of the longest."""
    seconds = {
        name: float(np.mean([told.result.get("seconds", {}).get(name) or 0.0 for told in members])) for name in PHASES
    }
    longest = max(seconds.values()) or 1.0
    return [
        {"name": name, "about": about, "seconds": seconds[name], "share": 100 * seconds[name] / longest}
        for name, about in PHASES.items()
    ]


def _config(config: Mapping[str, Any]) -> str:
    """The config as one gives it to `distrl train` again, for a directory of its own."""
    return write_yaml({**config, "run_dir": None})


def _spans(scores: Sequence[Score | None]) -> list[dict[str, float] | None]:
    """Where scores and their intervals lie between the least and the largest, in percent."""
    ends = [x for score in scores if score for x in (score.value, score.low, score.high) if x is not None]
    low, high = min(ends, default=0.0), max(ends, default=0.0)

    def place(x: float) -> float:
        return 2 + 96 * (x - low) / (high - low) if high > low else 50.0

    def span(score: Score) -> dict[str, float]:
        left = place(score.value if score.low is None else score.low)
        return {
            "at": place(score.value),
            "left": left,
            "width": place(score.value if score.high is None else score.high) - left,
        }

    return [None if score is None else span(score) for score in scores]


def _drawn(draw: Callable[[], Figure | None]) -> Markup | None:
    """What is drawn, as an element of the page in the page's own letters and colours."""
    import matplotlib

    names = ("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = dict.fromkeys(names, INK)
    with matplotlib.rc_context({**style, "svg.fonttype": "none", "svg.hashsalt": "distrl"}):
        figure = draw()
        return None if figure is None else _svg(figure)


def _svg(figure: Figure) -> Markup:
    from markupsafe import Markup

    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    colours = {INK: "ink", EDGE: "ink", GREY: "muted"} | {colour: f"c{i}" for i, colour in enumerate(COLOURS)}
    for colour, name in colours.items():
        text = text.replace(colour.lower(), f"var(--{name})")
    return Markup(text)


def _films(run_dir: Path) -> list[dict[str, Any]]:
    """Videos of learning, evenly chosen, with the env steps behind them."""
    paths = sorted((run_dir / VIDEO).parent.glob("step-*.webm"))
    chosen = sorted({round(i * (len(paths) - 1) / (FILMS - 1)) for i in range(FILMS)}) if len(paths) > FILMS else None
    shown = paths if chosen is None else [paths[i] for i in chosen]
    return [{"env_steps": int(path.stem.removeprefix("step-")), "video": embedded(path)} for path in shown]


def _date(unix: float) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(unix, UTC):%-d %B %Y, %H:%M} UTC"


def number(value: float) -> str:
    """As people read it: five digits that matter."""
    return f"{float(value):,.5g}" if abs(float(value)) < 1e5 else f"{float(value):,.0f}"


def duration(seconds: float) -> str:
    """Such as '2.4 s', '3 min 20 s' and '1 h 05 min'."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
