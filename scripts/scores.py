"""Train presets on several seeds, write down what they reach, and make the table of .github/RESULTS.md of it.

    python scripts/scores.py [PRESET ...] [--seeds 1 2 3 4 5] [--set KEY=VALUE ...] [--out configs/scores.json]
    python scripts/scores.py --table            only write the table of what is known

A score is what the best model reaches in the final evaluation of a real run in one process (on Ray the weights are the
same): the exact value of its greedy actions where the MDP is known, else the score that the env reports, of a game of turns that can be
walked whole how many of all lines of moves it loses, of another that is won, drawn or lost the share won against random play from all
seats, else the return. Of games the shares won, drawn and lost are written down as well, against each opponent from each seat.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from distrl.acting.opponents import OUTCOMES
from distrl.errors import UserError
from distrl.models.evaluate import evaluate_exactly
from distrl.models.game_tree import examine_game
from distrl.presets import DIRECTORY, presets, scores
from distrl.types import Evaluation

RESULTS = Path(__file__).parent.parent / ".github" / "RESULTS.md"
SCORES = DIRECTORY / "scores.json"
BEGIN, END = "<!-- scores -->", "<!-- /scores -->"


def measure(preset: str, seed: int, overrides: list[str], directory: Path) -> tuple[str, float, dict[str, Any]]:
    """What is measured, what the run reached, and its result.json."""
    run_dir = directory / f"{preset}-{seed}"
    command = [
        sys.executable,
        "-m",
        "distrl",
        "train",
        preset,
        "--local",
        "--quiet",
        f"seed={seed}",
        f"run_dir={run_dir}",
    ]
    command += ["track.mlflow=false", "track.video=false", *overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    try:
        return "exact value", round(evaluate_exactly(run_dir)[0].value, 4), result
    except UserError:
        evaluation = Evaluation.from_json(result["evaluation"])
    if evaluation.scores:
        name, score = next(iter(evaluation.scores.items()))
        return name, _rounded(score.mean), result
    try:
        seats = examine_game(run_dir, [])
        result["evaluation"]["against"] |= {"random": {o: {s.agent: getattr(s, o) for s in seats} for o in OUTCOMES}}
        return "lines of moves lost", sum(seat.losing for seat in seats), result
    except UserError:  # of one agent, with chance, or too large
        pass
    returns, random = evaluation.returns, evaluation.against.get("random")
    if random and {returns.min, returns.max} <= {-1, 0, 1}:
        return "games won against random", round(fmean(random["win"].values()), 4), result
    return "return", _rounded(evaluation.mean), result


def games(results: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """The shares of games won, drawn and lost, over all runs, by opponent and seat."""
    found = [result["evaluation"]["against"] for result in results]
    return {
        name.rpartition(":")[2]: {
            seat: [round(fmean(of_run[name][outcome][seat] for of_run in found), 4) for outcome in OUTCOMES]
            for seat in shares["win"]
        }
        for name, shares in found[0].items()
        if "win" in shares
    }


def _rounded(score: float) -> float:
    return round(score, 1 if abs(score) >= 10 else 4)


def table(known: dict[str, Any]) -> str:
    lines = ["| preset | measured | seeds | mean | env steps | minutes |", "|---|---|---|---|---|---|"]
    for name, entry in sorted(known.items()):
        values = list(entry["seeds"].values())
        each = ", ".join(f"{value:g}" for value in values)
        steps, minutes = (_range(entry.get(key)) for key in ("env_steps", "minutes"))
        lines.append(f"| `{name}` | {entry['what']} | {each} | {sum(values) / len(values):.5g} | {steps} | {minutes} |")
    lines += ["", "| games of | against | from | won | drawn | lost |", "|---|---|---|---|---|---|"]
    for name, entry in sorted(known.items()):
        for other, by_seat in entry.get("against", {}).items():
            lines += [
                f"| `{name}` | {other} | {' | '.join(map(str, (seat, *shares)))} |" for seat, shares in by_seat.items()
            ]
    return "\n".join(lines)


def _range(ends: list[float] | None) -> str:
    if ends is None:
        return ""
    low, high = (f"{end:,.4g}" if isinstance(end, float) else f"{end:,}" for end in ends)
    return low if low == high else f"{low} to {high}"


def write_table(known: dict[str, Any]) -> None:
    text = RESULTS.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    RESULTS.write_text(f"{before}{BEGIN}\n{table(known)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", metavar="PRESET")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=SCORES)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    known = scores()
    with tempfile.TemporaryDirectory() as directory:
        for preset in [] if arguments.table else arguments.presets or [p.name for p in presets()]:
            found = {seed: measure(preset, seed, arguments.set, Path(directory)) for seed in arguments.seeds}
            results = [result for _, _, result in found.values()]
            steps, minutes = ([r[key] for r in results] for key in ("env_steps", "train_s"))
            known[preset] = {
                "what": found[arguments.seeds[0]][0],
                "seeds": {str(seed): value for seed, (_, value, _) in found.items()},
                "env_steps": [min(steps), max(steps)],
                "minutes": [round(min(minutes) / 60, 1), round(max(minutes) / 60, 1)],
            }
            if results[0]["evaluation"]["against"]:
                known[preset]["against"] = games(results)
            print(preset, json.dumps(known[preset]), flush=True)
            arguments.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    if arguments.out == SCORES:
        write_table(known)


if __name__ == "__main__":
    main()
