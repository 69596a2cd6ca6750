"""Tables as files: what people read is right, what comes back acts the same, anything else is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from toys import states
from typer.testing import CliRunner

from distrl.acting.codings import Bins, Coding, Discrete, Product, Tiles
from distrl.acting.tables import TablePolicy
from distrl.cli import app
from distrl.config import load_config
from distrl.errors import UserError
from distrl.models.table_files import export, read_export
from distrl.runs.run import train

ALLOWED = np.array([[True, True], [False, True], [True, False]])


def policy_of(coding: Coding, capacity: int | None = None, allowed: np.ndarray | None = None) -> TablePolicy:
    policy = TablePolicy(states(3, 2, allowed, start=4), coding, 2, 1, capacity)
    vector = np.random.default_rng(0).normal(size=policy.vector.size)
    if capacity is not None:
        vector[-1 - capacity : -1] = [*range(5, 5 - capacity + 1, -1), -1]
    vector[-1] = 0.25
    policy.load(vector)
    return policy


POLICIES = [
    policy_of(Discrete(3, 4), allowed=ALLOWED),
    policy_of(Product((2, 3), (0, 5))),
    policy_of(Product((2, 3), (0, 5)), capacity=4),
    policy_of(Bins((2, 4), (0.0, -1.0), (1.0, 1.0), ("0", "2-1"))),
    policy_of(Tiles((2,), (0.0,), (1.0,), ("1",), 2)),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p.coding).__name__)
@pytest.mark.parametrize("kind", ["json", "npz"])
def test_what_was_written_acts_the_same(policy: TablePolicy, kind: str, tmp_path: Path) -> None:
    about = {"env": {"id": "X-v0"}, "version": 3}
    export(policy, about, tmp_path / f"table.{kind}")
    again, known = read_export(tmp_path / f"table.{kind}")
    assert again.describe() == policy.describe() and (again.vector == policy.vector).all()
    assert known == about


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p.coding).__name__)
def test_a_csv_tells_what_the_policy_does_where(policy: TablePolicy, tmp_path: Path) -> None:
    export(policy, {}, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == policy.rows_in_table
    if isinstance(policy.coding, Tiles):
        return
    for row in rows:
        seen = [float(value) for name, value in row.items() if name == "state" or name.startswith("input")]
        if seen[-1] == -1 and not isinstance(policy.coding, Bins):  # rows of a hash that are free
            continue
        if isinstance(policy.coding, Bins):  # the lower edge of the bin of each input
            edge = np.array(seen) + 1e-9
            obs = np.array([[edge[0], 0.0, edge[1]]])
        else:
            obs = np.array(seen, np.int64) if isinstance(policy.coding, Discrete) else np.array([seen], np.int64)
        assert policy.values(obs)[0].tolist() == [float(row["q1"]), float(row["q2"])]
        assert policy.greedy(obs)[0] == int(row["best"])


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    for kind in ("json", "npz"):
        export(POLICIES[0], {}, tmp_path / f"table.{kind}")
    good = json.loads((tmp_path / "table.json").read_text())
    wrong = {
        "empty.json": "",
        "list.json": "[]",
        "other.json": "{}",
        "short.json": json.dumps(good | {"states": good["states"][:-1]}),
        "ragged.json": json.dumps(good | {"states": [*good["states"][:-1], {"state": 0, "values": [1.0]}]}),
        "nan.json": json.dumps(good | {"epsilon": float("nan")}),
        "kind.json": json.dumps(good | {"kind": "else"}),
        "policy.json": json.dumps(good | {"policy": {"type": "os:system"}}),
        "table.csv": "state,q0\n",
        "text.npz": "PK",
    }
    for name, text in wrong.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "table.npz").read_bytes()[:300])
    np.savez(tmp_path / "pickled.npz", about=np.array([{}], dtype=object))
    for name in [*wrong, "cut.npz", "pickled.npz"]:
        with pytest.raises(UserError, match="is not a table") as caught:
            read_export(tmp_path / name)
        assert "unsafely" not in str(caught.value)  # NumPy's advice on how to run what is in a file


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    overrides = ["track.mlflow=false", "track.video=false", f"run_dir={path}"]
    train(load_config("configs/q_cliffwalking.yaml", overrides), local=True, quiet=True)
    return path


def test_the_command_line(run_dir: Path, tmp_path: Path) -> None:
    """Train, then evaluate exactly, plot and export, as a user does."""
    runner = CliRunner()

    def ask(*words: str) -> str:
        result = runner.invoke(app, list(words))
        if result.exception is not None:
            raise result.exception
        return str(result.stdout)

    text = ask("evaluate", str(run_dir), "--exact")
    assert "agent    -13.000000" in text and "gap      0.000000" in text and "1 of 1" in text
    for kind in ("csv", "npz", "json"):
        ask("export", str(run_dir), "--format", kind)
        assert (run_dir / f"table.{kind}").exists()
    assert ask("evaluate", str(run_dir / "table.json"), "--exact") == text
    assert ask("evaluate", str(run_dir / "table.npz"), "--episodes", "3") == ask(
        "evaluate", str(run_dir), "--episodes", "3"
    )
    assert (run_dir / "plots" / "policy.png").stat().st_size > 10_000
    (run_dir / "plots" / "policy.png").unlink()
    assert "policy.png" in ask("plot", str(run_dir), "--out", str(tmp_path / "curve.png"))
    assert (run_dir / "plots" / "policy.png").exists()
    with pytest.raises(UserError, match="csv, json, npz"):
        ask("export", str(run_dir), "--format", "pickle")
    with pytest.raises(UserError, match="leave out --sampled"):
        ask("evaluate", str(run_dir), "--exact", "--sampled")
