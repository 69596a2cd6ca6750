"""Learning curves and the model card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

from distrl.errors import UserError
from distrl.reports.card import model_card
from distrl.reports.curves import band, plot_runs, plot_training
from distrl.reports.runs import group_runs, read_run
from distrl.types import Evaluation, Spread

# --- learning curves ----------------------------------------------------------------------------------------------


def write_run(path: Path, returns: list[float], seed: int = 1, step: int = 100, **changes: Any) -> Path:
    config: dict[str, Any] = {
        "seed": seed,
        "run_dir": str(path),
        "env": {"id": "CartPole-v1", "kwargs": {}},
        "algorithm": {"name": "ppo", "lr": 0.001, "hidden": [64, 64]},
        "cluster": {"runners": seed},
        "track": {"mlflow": False},
    }
    for key, value in changes.items():
        config["algorithm" if key in ("name", "lr", "hidden") else "env"][key] = value
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [
        {"iteration": i, "env_steps": (i + 1) * step, "time": 0.0, "train/return_mean": value}
        for i, value in enumerate(returns)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, as matplotlib knows them."""
    saved: list[Figure] = []
    original = Figure.savefig

    def savefig(self: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def curves(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """The curves that the legend names."""
    lines = figure.axes[0].get_lines()
    return {
        str(line.get_label()): (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for line in lines
        if not str(line.get_label()).startswith("_")
    }


def test_runs_that_differ_only_in_seed_and_place_are_one_group(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", [1.0], seed=1),
        write_run(tmp_path / "b", [1.0], seed=2),
        write_run(tmp_path / "c", [1.0], seed=1, lr=0.01),
        write_run(tmp_path / "d", [1.0], seed=1, name="dqn"),
    ]
    groups = group_runs([read_run(path) for path in runs])
    assert {label: [run.path.name for run in members] for label, members in groups.items()} == {
        "ppo CartPole-v1 lr=0.001": ["a", "b"],
        "ppo CartPole-v1 lr=0.01": ["c"],
        "dqn CartPole-v1": ["d"],
    }


def test_band_covers_the_steps_that_all_curves_cover() -> None:
    x, y = band(
        [(np.array([0.0, 10, 20]), np.array([0.0, 10, 20])), (np.array([5.0, 15, 35]), np.array([100.0, 200, 200]))]
    )
    assert x.tolist() == [5, 10, 15, 20]
    assert y.tolist() == [[5, 10, 15, 20], [100, 150, 200, 200]]


def test_band_of_curves_that_never_meet_is_empty() -> None:
    x, y = band([(np.array([0.0, 1]), np.array([0.0, 1])), (np.array([2.0, 3]), np.array([0.0, 1]))])
    assert x.shape == (0,)
    assert y.shape == (2, 0)


def test_plot_shows_means_bands_and_threshold(tmp_path: Path, figures: list[Figure]) -> None:
    runs = [
        write_run(tmp_path / "a", [10.0, 20.0, 30.0], seed=1),
        write_run(tmp_path / "b", [30.0, 40.0], seed=2),
        write_run(tmp_path / "c", [5.0, 6.0], seed=1, lr=0.01),
    ]
    out = plot_runs(runs, tmp_path / "plots" / "curves.png")
    with Image.open(out) as image:
        assert image.size[0] > 800
    assert curves(figures[0]) == {
        "ppo CartPole-v1 lr=0.001 (2 seeds)": ([100, 200], [20, 30]),
        "ppo CartPole-v1 lr=0.01": ([100, 200], [5, 6]),
        "reward threshold 475": ([0, 1], [475, 475]),
    }
    filled, _ = figures[0].axes[0].collections  # the other is in the legend alone
    assert list(filled.get_paths()[0].get_extents().extents) == [100, 10, 200, 40]
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend[-1] == "reward threshold 475"


def test_plot_takes_a_threshold_and_smooths(tmp_path: Path, figures: list[Figure]) -> None:
    run = write_run(tmp_path / "a", [0.0, 3.0, 6.0, 0.0], id="NotInstalled-v7")
    plot_runs([run, run], tmp_path / "curves.pdf", smooth=3, threshold=5)
    assert curves(figures[0]) == {
        "training, mean of the last 100 episodes": ([100, 200, 300, 400], [1.5, 3, 3, 3]),
        "reward threshold 5": ([0, 1], [5, 5]),
    }


def test_metrics_may_have_gaps_and_a_half_written_end(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [1.0, 2.0])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "env_steps": 300, "time": 0}\n{"iteration": 3, "env_steps": 400, "time": 0, "tr')
    steps, returns = read_run(run).curve("train/return_mean")
    assert (steps.tolist(), returns.tolist()) == ([100, 200], [1, 2])


def test_what_cannot_be_plotted_is_told(tmp_path: Path) -> None:
    run, empty = write_run(tmp_path / "a", [1.0]), write_run(tmp_path / "empty", [])
    with pytest.raises(UserError, match="no runs"):
        plot_runs([], tmp_path / "curves.png")
    with pytest.raises(UserError, match="nowhere is not a run directory"):
        plot_runs([tmp_path / "nowhere"], tmp_path / "curves.png")
    with pytest.raises(UserError, match="No episode has ended"):
        plot_runs([empty], tmp_path / "curves.png")
    with pytest.raises(UserError, match=r"\.png"):
        plot_runs([run], tmp_path / "curves.docx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]


def test_training_gives_a_curve_and_losses(tmp_path: Path, figures: list[Figure]) -> None:
    run = write_run(tmp_path / "a", [])
    rows = [
        {
            "iteration": i,
            "env_steps": 100 * (i + 1),
            "time": 0,
            "train/return_mean": i,
            "train/episodes": i,
            "train/value_loss": 1 / (i + 1),
            "train/policy_loss": -i,
            "train/learning_rate": 0.1,
            "train/minibatches": 16,
        }
        for i in range(5)
    ]
    rows[4] |= {"evaluation/return_mean": 7, "evaluation/return_std": 2, "evaluation/env_steps": 300}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = plot_training(run, tmp_path / "plots")
    assert [path.name for path in written] == ["learning_curve.png", "losses.png"]
    for path in written:
        with Image.open(path) as image:
            assert image.format == "PNG"
    panels = [axes.get_title() for axes in figures[1].axes if axes.get_visible()]
    assert panels == ["policy_loss", "value_loss", "learning_rate"]  # a constant that nobody knows is left out
    (evaluation,) = figures[0].axes[0].containers
    assert np.asarray(evaluation[0].get_xydata()).tolist() == [[300, 7]]
    assert evaluation[2][0].get_segments()[0].tolist() == [[300, 5], [300, 9]]


def evaluated(run: Path, points: dict[int, float], best: int | None) -> Path:
    """Add evaluations by env steps, and say which of them chose the best model."""
    rows = [
        {"iteration": 100 + i, "env_steps": 10**4, "time": 0}
        | {"evaluation/env_steps": steps, "evaluation/return_mean": mean, "evaluation/return_std": 1}
        for i, (steps, mean) in enumerate(points.items())
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    if best is not None:
        (run / "best").mkdir()
        chosen = Evaluation(1, best, True, 20, Spread(points[best], 1, 0, 9), Spread(5, 0, 5, 5))
        (run / "best" / "policy.json").write_text(json.dumps({"selected_by": chosen.to_json()}))
    return run


def test_one_curve_alone_shows_evaluations_and_where_the_best_model_was_taken(
    tmp_path: Path, figures: list[Figure]
) -> None:
    run = evaluated(write_run(tmp_path / "a", [1.0, 2.0, 3.0], seed=7), {100: 5.0, 200: 9.0, 300: 4.0}, best=200)
    plot_runs([run], tmp_path / "a.svg")
    axes = figures[0].axes[0]
    assert curves(figures[0]).pop("best model, after 200 env steps") == ([200], [9])
    (evaluation,) = axes.containers
    assert np.asarray(evaluation[0].get_xydata()).tolist() == [[100, 5], [200, 9], [300, 4]]
    assert axes.get_title(loc="left") == "ppo CartPole-v1, seed 7"
    assert [text.get_text().partition(",")[0] for text in figures[0].legends[0].get_texts()] == [
        *("training", "evaluation", "best model", "reward threshold 475")
    ]


def test_evaluations_of_seeds_are_joined_where_all_have_one(tmp_path: Path, figures: list[Figure]) -> None:
    runs = [
        evaluated(write_run(tmp_path / "a", [1.0, 2.0], seed=1), {100: 4.0, 200: 6.0}, best=200),
        evaluated(write_run(tmp_path / "b", [1.0, 2.0], seed=2), {100: 8.0, 250: 7.0}, best=100),
        write_run(tmp_path / "c", [1.0], seed=1, lr=0.01),
    ]
    plot_runs(runs[:2], tmp_path / "a.pdf")
    (evaluation,) = figures[0].axes[0].containers
    assert np.asarray(evaluation[0].get_xydata()).tolist() == [[100, 6]]
    assert evaluation[2][0].get_segments()[0].tolist() == [[100, 4], [100, 8]]  # the deviation of 4 and 8
    assert curves(figures[0])["best models of 2 seeds"] == ([200, 100], [6, 8])
    plot_runs(runs, tmp_path / "b.pdf")  # of two curves, training alone
    assert not figures[1].axes[0].containers and not [name for name in curves(figures[1]) if "best" in name]


@pytest.mark.parametrize("suffix", [".pdf", ".svg"])
def test_papers_get_lines_and_no_pixels(tmp_path: Path, suffix: str) -> None:
    out = plot_runs([write_run(tmp_path / "a", [1.0, 2.0])], tmp_path / f"a{suffix}")
    data = out.read_bytes()
    assert b"/Subtype /Image" not in data and b"<image" not in data
    assert b"/FontFile2" in data if suffix == ".pdf" else b"<text" not in data  # TrueType; outlines


def test_training_without_losses_gives_the_curve_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [1.0, 2.0])
    assert plot_training(run, tmp_path) == [tmp_path / "learning_curve.png"]


# --- the model card -----------------------------------------------------------------------------------------------

EVALUATION = Evaluation(
    version=11,
    env_steps=180_224,
    greedy=True,
    episodes=100,
    returns=Spread(499.5, 1.25, 490, 500),
    lengths=Spread(499.5, 1.25, 490, 500),
    scores={"score": Spread(110, 2, 100, 120)},
)


def test_model_card_tells_score_origin_and_use(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [1.0], seed=7)
    result = {
        "status": "finished",
        "env_steps": 200_000,
        "episodes": 900,
        "return_mean": 480.0,
        "evaluation": EVALUATION.to_json(),
        "weights_sha256": "abc123",
        "steps_to_threshold": None,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "init_from": {"path": str(tmp_path / "before"), "weights_sha256": "def456"},
    }
    (run / "result.json").write_text(json.dumps(result))
    card = model_card(run)
    assert card.startswith("# ppo on CartPole-v1\n")
    for fact in (
        "Return 499.5 ± 1.25 (min 490, max 500)",
        "100 greedy episodes",
        "Score 110 ± 2 (min 100, max 120)",
        "180,224",
        "200,000",
        "abc123",
        "the weights of before (sha256 def456)",
        "torch 2.13.0",
        "| seed | 7 |",
    ):
        assert fact in card
    assert "load_policy('a/best')" in card
    assert str(tmp_path) not in card  # it goes along with the model
    assert "to the reward threshold" not in card  # it was not reached
    shown = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert shown["algorithm"]["lr"] == 0.001


def test_model_card_without_evaluation_or_result(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [1.0])
    with pytest.raises(UserError, match=r"result\.json"):
        model_card(run)
    (run / "result.json").write_text(json.dumps({"status": "interrupted", "evaluation": None, "env_steps": 10}))
    assert "| ended by | interrupted |" in model_card(run)
    (run / "result.json").write_text(json.dumps({"status": "finished", "evaluation": {"mean": 7.0}}))
    with pytest.raises(UserError, match="no evaluation"):
        model_card(run)


def test_importing_is_cheap() -> None:
    heavy = ["torch", "ray", "mlflow", "cv2", "matplotlib", "PIL", "pygame", "rich"]
    code = f"import sys, distrl.reports.curves, distrl.models.video, distrl.tools.explore; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
