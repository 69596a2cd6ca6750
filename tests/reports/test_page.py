"""The report: read as a file, and looked at in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from browsers import browser
from conftest import CARTPOLE
from processes import distrl, result_of, write

from distrl import train
from distrl.errors import UserError
from distrl.reports.page import duration, number, report_page, write_page
from distrl.reports.scores import interquartile_mean, over_seeds
from distrl.yaml_format import read_yaml, write_yaml

# --- scores over seeds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5, 6, 7, 8, 11, 20])
def test_five_seeds_and_more_give_the_interquartile_mean(count: int) -> None:
    values = np.random.default_rng(count).normal(100, 30, count)
    score = over_seeds(values.tolist())
    assert score.value == pytest.approx(scipy.stats.trim_mean(values, 0.25))
    assert (score.kind, score.seeds) == ("interquartile mean", count)


def test_few_seeds_give_the_mean_and_one_no_interval() -> None:
    assert (over_seeds([1, 2, 6]).value, over_seeds([1, 2, 6]).kind) == (3, "mean")
    assert f"{over_seeds([7]):.1f}" == "7.0"
    assert f"{over_seeds([7, 7]):g}" == "7 [7, 7]"


@pytest.mark.parametrize("count", [3, 5, 12])
def test_the_interval_is_the_percentile_bootstraps(count: int) -> None:
    values = np.random.default_rng(count).gamma(2, 50, count)
    middle = interquartile_mean if count >= 5 else np.mean
    theirs = scipy.stats.bootstrap((values,), middle, n_resamples=40_000, method="percentile", rng=1)
    score, width = over_seeds(values.tolist()), np.ptp(values)
    assert score.low == pytest.approx(theirs.confidence_interval.low, abs=0.02 * width)
    assert score.high == pytest.approx(theirs.confidence_interval.high, abs=0.02 * width)
    assert score == over_seeds(values.tolist())


def test_numbers_and_times_are_peoples() -> None:
    assert [number(x) for x in (500.0, -156.234567, 0.0031, 1234567)] == ["500", "-156.23", "0.0031", "1,234,567"]
    assert [duration(x) for x in (2.345, 99, 200, 3900)] == ["2.3 s", "99.0 s", "3 min 20 s", "1 h 05 min"]


# --- the page -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of one config, and another config."""
    home = tmp_path_factory.mktemp("runs")
    changes: list[dict[str, Any]] = [{}, {"seed": 2}, {"normalize": {"obs": True}}]
    for i, change in enumerate(changes):
        track = {"mlflow": False, "video": i == 0}
        train({**CARTPOLE, "run_dir": str(home / str(i)), "track": track, **change}, local=True, quiet=True)
    return [home / str(i) for i in range(3)]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


def test_a_page_tells_what_was_reached_and_loads_nothing(runs: list[Path], tmp_path: Path, chromium: Any) -> None:
    out = write_page(runs[:2], tmp_path / "page.html")
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    asked: list[str] = []
    told: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.goto(out.as_uri())
    page.wait_for_function("document.querySelector('video').readyState >= 2")
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"} and told == []
    text = page.inner_text("body")
    means = [result_of(run)["evaluation"]["mean"] for run in runs[:2]]
    assert page.inner_text(".tile.main b") == number(np.mean(means))
    assert "mean over 2 seeds, 95 %" in page.inner_text(".tile.main")
    for fact in ("ppo CartPole-v1", "float32 [4]", "16 in 4 shards", result_of(runs[1])["weights_sha256"]):
        assert fact in text
    assert page.evaluate("document.querySelector('video').duration") > 0.1
    curve = page.locator("#curves .wide svg")
    assert curve.is_visible() and "best models of 2 seeds" in curve.text_content()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_a_page_fits_telephones_and_both_colour_schemes(
    width: int, scheme: str, runs: list[Path], tmp_path: Path, chromium: Any
) -> None:
    out = write_page(runs, tmp_path / "page.html")
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(out.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing to scroll sideways
    assert page.locator("#curves .wide").is_visible() == (width == 1200) != page.locator("#curves .narrow").is_visible()

    def brightness(selector: str, what: str) -> float:
        colour = page.evaluate(f"getComputedStyle(document.querySelector({selector!r})).{what}")
        return float(np.mean([int(x) for x in re.findall(r"\d+", colour)[:3]]))

    letters = ["h1", f"#curves .{'wide' if width == 1200 else 'narrow'} svg text"]
    inks = [brightness("h1", "color"), brightness(letters[1], "fill")]
    background = brightness("body", "backgroundColor")
    assert all(ink < 60 and background > 200 if scheme == "light" else ink > 200 and background < 60 for ink in inks)
    assert page.locator(".configuration").count() == 2 and page.locator("#scores tr").count() == 3
    context.close()


def test_the_command_and_the_config_of_a_page_give_the_same_weights(runs: list[Path], tmp_path: Path) -> None:
    page = report_page(runs[:2])
    [data] = re.findall(r'href="data:text/yaml;base64,([^"]+)"', page)
    (tmp_path / "config.yaml").write_bytes(base64.b64decode(data))
    command = re.findall(r"distrl (train config.yaml seed=\d)", page)[1]
    done = distrl(*command.split(), "--local", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [run] = (tmp_path / "runs").glob("ppo-*")
    assert result_of(run)["weights_sha256"] == result_of(runs[1])["weights_sha256"] in page


def test_names_are_text_and_a_run_that_was_cut_off_has_a_page(runs: list[Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    for name in ("config.yaml", "metrics.jsonl", "result.json"):
        (cut / name).write_text((runs[0] / name).read_text())
    config = (cut / "config.yaml").read_text().replace("kwargs: {}", "kwargs: {note: <script>alert(1)</script>}", 1)
    (cut / "config.yaml").write_text(config)
    result = json.loads((cut / "result.json").read_text()) | {"evaluation": None, "status": "interrupted"}
    (cut / "result.json").write_text(json.dumps(result | {"stopped_by": "interrupted", "weights_sha256": None}))
    page = report_page([cut])
    assert "no final evaluation yet" in page and "interrupted" in page
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


def test_agents_in_groups_are_told_one_by_one(runs: list[Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(runs[1], cut)
    about = json.loads((cut / "best" / "policy.json").read_text())
    two = {"chaser": about["observation"], "prey": [{"name": "", "shape": [3], "dtype": "uint8"}]}
    (cut / "best" / "policy.json").write_text(json.dumps(about | {"observation": two}))
    assert "chaser: float32 [4]; prey: uint8 [3]" in report_page([cut])


def write_sweep(sweep: Path, runs: list[Path], **more: Any) -> Path:
    """A sweep of two trials, of which number 3 won. `runs`: of the base on two test seeds, of the winner on one."""
    sweep.mkdir(parents=True)
    of_trial = {"seconds": 90.0, "weights_sha256": "0", "run_dir": "", "rungs": [], "ended": 1.0, "error": None}
    trials = [
        {"trial": n, "overrides": {"normalize.obs": n == 3, "algorithm.lr": 1e-3}, "seed": 1, "status": status}
        | {"score": 10.0 * n, "env_steps": 1000 * n} | of_trial
        for n, status in ((3, "finished"), (1, "stopped"))
    ]  # fmt: skip
    search = {
        "normalize.obs": {"choice": [True, False]},
        "algorithm.lr": {"loguniform": [1e-4, 1e-2], "when": {"a": 1}},
    }
    data = {
        "base": {"seed": 1}, "search": search, "metric": "final/return_mean", "scheduler": "halving", "searcher": "random",
        "seeds": {"tune": [1], "test": [101, 102]}, "budget": {"trials": 2}, "trial": {"runners": 1}, "sweep_dir": "/x",
    }  # fmt: skip
    best = {"trial": 3, "overrides": trials[0]["overrides"], "score": 30.0, "scores": [30.0], "returns": [30.0]}
    (sweep / "sweep.yaml").write_text(write_yaml(data | more))
    (sweep / "events.jsonl").touch()
    (sweep / "trials.json").write_text(json.dumps(trials))
    schedule = [[0, {"algorithm.lr": 1e-3}], [1, {"algorithm.lr": 4e-3}]]
    (sweep / "result.json").write_text(
        json.dumps({"best": best | {"schedule": schedule}, "search_s": 61.5, "test": {"best": [], "base": []}})
    )
    for run, place in zip(runs, ("base/seed-1", "base/seed-2", "trial-0003/seed-1"), strict=False):
        shutil.copytree(run, sweep / "test" / place)
    return sweep


def test_a_sweep_is_told_with_who_won_and_how_to_repeat_it(runs: list[Path], tmp_path: Path, chromium: Any) -> None:
    sweep = write_sweep(tmp_path / "sweeps" / "first", runs)
    shutil.copytree(runs[0] / "videos", sweep / "videos")
    out = write_page([sweep], tmp_path / "page.html")
    context = chromium.new_context(viewport={"width": 360, "height": 800}, color_scheme="dark")
    page = context.new_page()
    page.goto(out.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.inner_text("h1") == "Sweep first"
    assert page.inner_text("#scores tr:nth-child(2)").startswith("winner (trial 3): ppo")
    assert page.inner_text("#scores tr:nth-child(3)").startswith("base config: ppo")
    rows = [re.split(r"\t", row) for row in page.locator(".sweep .scroll tr").all_inner_texts()]
    assert rows[1] == ["3", "30", "1", "finished", "3,000", "3 min 00 s", "normalize.obs=True algorithm.lr=0.001"]
    assert rows[2][:4] == ["1", "(10)", "0", "stopped"]
    page.wait_for_function("document.querySelector('.sweep video').readyState >= 2")
    assert page.locator(".sweep .chart svg").count() == 2  # of two trials no importance, and of their runs no curves
    text = page.inner_text(".sweep")
    for fact in (
        "halving",
        "101, 102",
        "loguniform [0.0001, 0.01], where a is 1",
        "distrl tune first.yaml --name first",
    ):
        assert fact in text
    config = page.locator(".sweep a[download]").get_attribute("href").partition(",")[2]
    assert read_yaml(base64.b64decode(config).decode())["sweep_dir"] is None
    context.close()


def test_a_population_is_repeated_by_its_sweep_and_not_by_its_last_values(runs: list[Path], tmp_path: Path) -> None:
    page = report_page([write_sweep(tmp_path / "pop", runs, scheduler="pbt")])
    winner, base = page.split('<section class="configuration">')[1:]
    assert "distrl train config.yaml" in base and "changed on the way" not in base
    assert "distrl train config.yaml" not in winner and "changed on the way" in winner
    assert "<td>1</td><td>algorithm.lr=0.001</td>" in winner and "<td>2</td><td>algorithm.lr=0.004</td>" in winner


def test_a_sweep_without_test_runs_is_told_by_its_winner_or_not_yet(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing on its test seeds yet.*distrl tune --status first"):
        report_page([write_sweep(tmp_path / "first", [])])
    sweep = write_sweep(tmp_path / "second", [], seeds={"tune": [1], "test": []})
    shutil.copytree(runs[0], sweep / "trials" / "0003" / "seed-1")
    assert "winner (trial 3), on tuning seeds" in report_page([sweep])


def test_what_is_no_run_or_no_page_is_told_by_the_command(runs: list[Path], tmp_path: Path) -> None:
    done = distrl("report", str(runs[0]), "--out", "page.html", cwd=tmp_path)
    assert done.stdout == "report: page.html\n" and (tmp_path / "page.html").stat().st_size > 50_000
    with pytest.raises(UserError, match=r"must end in \.html"):
        write_page(runs, tmp_path / "page.pdf")
    with pytest.raises(UserError, match="nowhere is not a run directory"):
        write_page([tmp_path / "nowhere"], tmp_path / "a.html")
    write(tmp_path, {"env": {"id": "CartPole-v1"}, "algorithm": {"name": "ppo"}})
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"result\.json cannot be read"):
        write_page([tmp_path], tmp_path / "a.html")
