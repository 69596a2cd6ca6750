"""What a report tells of a sweep: how it was searched, what won, the best trials, pictures, how to repeat it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distrl.errors import UserError
from distrl.reports.embedded import VIDEO, data_uri, embedded
from distrl.reports.sweeps import SweepFiles, told_overrides, told_score
from distrl.yaml_format import read_yaml, write_yaml

ROWS = 10  # trials in the table


@dataclass(frozen=True)
class PageOfSweep:
    files: SweepFiles

    @property
    def name(self) -> str:
        return self.files.path.name

    @property
    def best(self) -> dict[str, Any]:
        return self.files.result.get("best") or {}

    @cached_property
    def runs(self) -> dict[Path, str]:
        """Those that the page shows, and what each is: the runs on test seeds; without such those of the winner.

        Raises:
            UserError: there are none yet
        """
        path = self.files.path
        roles = {
            f"trial-{self.best.get('trial', -1):04}": f"winner (trial {self.best.get('trial')})",
            "base": "base config",
        }
        files = sorted(path.glob("test/*/seed-*/result.json"), key=lambda file: (file.parts[-3] == "base", file))
        tested = [file.parent for file in files]
        if tested:
            return {run: roles.get(run.parent.name, run.parent.name) for run in tested}
        if self.best and not self.files.sweep.get("seeds", {}).get("test"):
            own = sorted(path.glob(f"trials/{self.best['trial']:04}/seed-*"))
            return dict.fromkeys(own, f"winner (trial {self.best['trial']}), on tuning seeds")
        raise UserError(
            f"{path} has tried nothing on its test seeds yet. Wait for its end ('distrl tune --status {self.name}'), or name "
            f"runs of it: distrl report {path}/trials/*/seed-*"
        )

    def changed(self, run: Path) -> bool:
        """Whether a run had other values on the way than at its end."""
        return self.files.population and run.parent.name != "base"

    @property
    def schedule(self) -> list[str]:
        """The winner's values, generation by generation."""
        return [told_overrides(values) for _, values in self.best.get("schedule", ())]

    def told(self) -> dict[str, Any]:
        """For the template."""
        files = self.files
        text = (files.path / "sweep.yaml").read_text(encoding="utf-8")
        config = write_yaml({**read_yaml(text), "sweep_dir": None})
        rows = [
            (
                t.number,
                told_score(t),
                len(t.scores),
                t.status,
                t.env_steps,
                t.seconds * files.cpus,
                told_overrides(t.overrides),
            )
            for t in files.trials[:ROWS]
        ]
        return {
            "name": self.name,
            "metric": files.metric,
            "population": files.population,
            "winner": told_overrides(self.best["overrides"]) if self.best else "",
            "facts": self._facts(),
            "rows": rows,
            "more": max(0, len(files.trials) - ROWS),
            "video": embedded(files.path / VIDEO),
            "config": config,
            "download": data_uri(config.encode(), "text/yaml"),
        }

    def _facts(self) -> dict[str, str]:
        sweep = self.files.sweep
        seeds, budget = sweep.get("seeds") or {}, sweep.get("budget") or {}
        searched = self.files.result.get("search_s")
        facts = {
            "scheduler": sweep.get("scheduler"),
            "searcher": sweep.get("searcher"),
            "trials": len(self.files.trials),
            "tuning seeds": ", ".join(map(str, seeds.get("tune") or ())),
            "test seeds": ", ".join(map(str, seeds.get("test") or ())),
            "env steps of a run": "" if budget.get("env_steps") is None else f"{budget['env_steps']:,}",
            "searched for": "" if searched is None else f"{searched:,.0f} s",
            **{key: _told_space(space) for key, space in sweep["search"].items()},
        }
        return {name: str(value) for name, value in facts.items() if value not in ("", None)}


def _told_space(space: dict[str, Any]) -> str:
    kind = next(name for name in space if name != "when")
    values = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in space[kind])
    when = " and ".join(f"{key} is {value}" for key, value in (space.get("when") or {}).items())
    return f"{kind} [{values}]{f', where {when}' if when else ''}"
