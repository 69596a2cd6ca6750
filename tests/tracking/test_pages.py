"""MLflow's pages in a real browser: what `distrl ui` starts shows the runs that were trained."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from browsers import browser
from conftest import CARTPOLE
from processes import distrl, gone, result_of, write
from sweeping import read_trials, sweep_here

from distrl.errors import UserError
from distrl.tracking.ui import find_store, page_of


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


SWEEP: dict[str, Any] = {
    "base": {**CARTPOLE, "track": {"video": False}},
    "search": {"algorithm.lr": {"loguniform": [1e-4, 1e-2]}},
    "budget": {"trials": 2, "env_steps": 2560},
    "scheduler": "none",
    "seeds": {"tune": [1], "test": []},
}


class Pages:
    """`distrl ui`, running: what it told, and its process."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, free_port()
        command = [sys.executable, "-m", "distrl", "ui", "--port", str(self.port)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = psutil.Popen(command, cwd=home, start_new_session=True, **pipes)
        self.address = str(self.process.stdout.readline()).strip()
        assert self.address, self.process.stderr.read()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which somebody trained."""
    home = tmp_path_factory.mktemp("home")
    config = write(home, {**CARTPOLE, "track": {"description": "a first *try*"}})
    done = distrl("train", config, "--local", "-q", "run_dir=runs/first", cwd=home)
    assert done.returncode == 0, done.stderr
    assert f"distrl ui {home}/runs/first" in done.stdout
    done = distrl("register", "runs/first", "--name", "poles", "--alias", "champion", cwd=home)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:  # into the same store
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/runs/mlflow.db")
        sweep_here(patch, SWEEP, home / "sweeps" / "mine")
    return home


@pytest.fixture(scope="module")
def pages(home: Path) -> Iterator[Pages]:
    pages = Pages(home)
    yield pages
    family = [pages.process, *pages.process.children(recursive=True)]
    assert len(family) > 1
    for _ in range(2):  # impatient
        pages.process.send_signal(signal.SIGINT)
    assert pages.process.wait(40) == 0
    assert "Traceback" not in pages.process.stderr.read()
    assert gone(family, 5)


@pytest.fixture
def page(pages: Pages) -> Iterator[Any]:
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)
        yield page


def test_the_address_leads_to_the_runs_and_these_to_their_charts_and_videos(pages: Pages, page: Any) -> None:
    known = json.loads((pages.home / "runs" / "first" / "mlflow.json").read_text())
    assert pages.address.startswith(f"http://127.0.0.1:{pages.port}/#/experiments/{known['experiment_id']}/runs?")
    page.goto(pages.address)
    page.get_by_role("link", name="first", exact=True).click()
    page.get_by_text("a first try").first.wait_for()  # the description, as Markdown
    page.get_by_text("distrl train config.yaml").first.wait_for()  # the command
    final = result_of(pages.home / "runs" / "first")["evaluation"]["mean"]
    page.get_by_text("final/return_mean").wait_for()
    assert f"{final:g}"[:5] in page.inner_text("body")

    page.get_by_role("tab", name="Model metrics").click()
    page.get_by_text("first (evaluation/return_mean)").first.wait_for()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("videos", exact=True).click()
    page.get_by_text("best.webm").click()
    page.wait_for_function("document.querySelector('video')?.readyState >= 2")
    page.get_by_text("plots", exact=True).click()
    page.get_by_text("learning_curve.png").click()
    page.wait_for_function("[...document.querySelectorAll('img')].some(x => x.naturalWidth > 1000)")


def test_the_page_of_models_can_rank_them(pages: Pages, page: Any) -> None:
    """Each has a name of its own, and the numbers of its evaluation."""
    page.set_viewport_size({"width": 2600, "height": 700})  # columns beyond the window are not there
    page.goto(pages.address.replace("/runs?", "/models?"))
    page.get_by_text("ppo-first").first.wait_for()
    page.get_by_text("final/return_mean").first.wait_for()
    assert "system/" not in page.inner_text("body")


def test_a_sweep_leads_to_its_trials_and_these_to_their_seeds(pages: Pages, page: Any) -> None:
    known = json.loads((pages.home / "sweeps" / "mine" / "mlflow.json").read_text())
    page.goto(f"{pages.address.partition('/runs?')[0]}/runs/{known['run_id']}")
    page.get_by_role("link", name="trial 0", exact=True).wait_for()
    page.get_by_role("link", name="trial 1", exact=True).click()
    page.get_by_role("link", name="0001 seed-1", exact=True).click()
    trial = read_trials(pages.home / "sweeps" / "mine")[1]
    page.get_by_text(str(trial["overrides"]["algorithm.lr"])).first.wait_for()  # among its parameters
    page.get_by_text("final/return_mean").wait_for()


def test_the_registry_shows_the_model_with_its_alias(pages: Pages, page: Any) -> None:
    root = f"{pages.address.partition('#')[0]}#/models"
    page.goto(root)
    page.get_by_role("link", name="poles", exact=True).wait_for()
    page.goto(f"{root}/poles")  # a click may meet MLflow's own greeting, which comes when it likes
    page.get_by_text("champion").first.wait_for()
    page.get_by_text("Version 1").first.wait_for()


def test_a_taken_port_is_told_with_one_that_is_free(pages: Pages) -> None:
    done = distrl("ui", "--port", str(pages.port), cwd=pages.home)
    assert done.returncode == 2
    [free] = re.findall(rf"Port {pages.port} .* Choose a free one: --port (\d+)", done.stderr)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", int(free)))


def test_of_a_server_elsewhere_the_page_is_told(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{pages.port}")
    done = distrl("ui", cwd=pages.home)
    assert done.returncode == 0
    assert done.stdout == f"http://127.0.0.1:{pages.port}/#/experiments?workflowType=machine_learning\n"


def test_the_store_is_the_runs_then_the_environments_then_the_one_beside_the_runs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="No run was tracked"):
        find_store(None, tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").touch()
    assert find_store(None, tmp_path) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:1/")
    assert find_store(None, tmp_path) == "http://server:1"
    run = tmp_path / "runs" / "a"
    run.mkdir()
    with pytest.raises(UserError, match=r"it has no track\.json"):
        find_store(run, tmp_path)
    (run / "track.json").write_text('{"uri": "sqlite:////elsewhere/mlflow.db"}')
    assert find_store(run, tmp_path) == "sqlite:////elsewhere/mlflow.db"
    (run / "mlflow.json").write_text('{"experiment_id": "7", "run_id": "abc"}')
    assert page_of("sqlite:////x", run, "http://h:1") == (
        "http://h:1/#/experiments/7/runs/abc?workflowType=machine_learning"
    )
