"""What is shown of a sweep while it goes on, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
import sys

import pytest

from distrl.tracking import board as module
from distrl.tracking.board import Board, Going, View

ROW = {"env_steps": 5000.0, "time/env_steps_per_s": 250.0, "train/return_mean": 21.5}
VIEW = View(
    "lr (asha): 12 of 16 trials begun, best 416 of trial 4",
    ("trial", "evaluation/return_mean", "overrides"),
    [("4", "416 [402, 430]", "algorithm.lr=0.0042"), ("2", "(98.2)", "env.kwargs.x=[1]")],
    [Going("trial 5 seed 1", 10_000, ROW), *(Going(f"trial {n} seed 1", 10_000, {}) for n in range(6, 16))],
)


def plain(text: str) -> str:
    """Without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_leaders_and_a_line_for_each_run_and_messages_above_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    board = Board()
    assert board.due()
    board.show(VIEW)
    shown = [line.rstrip() for line in plain(terminal.getvalue()).splitlines()]
    assert shown[:4] == [
        "lr (asha): 12 of 16 trials begun, best 416 of trial 4",
        "trial  evaluation/return_mean  overrides",
        "4      416 [402, 430]          algorithm.lr=0.0042",
        "2      (98.2)                  env.kwargs.x=[1]",
    ]
    assert re.fullmatch(r"trial 5 seed 1 +\S+ +5,000/10,000  250/s  return 21.5 +0:00:20 left", shown[4])
    assert len(shown) == 4 + 8 + 1 and shown[-1] == "and 3 more"
    before = len(terminal.getvalue())
    board.note("trial 5 seed 1: [finished]")
    said = plain(terminal.getvalue()[before:])
    assert said.index("trial 5 seed 1: [finished]") < said.index("trial  evaluation")  # the board is drawn again below
    before = len(terminal.getvalue())
    board.close()
    assert "\x1b[2K" in terminal.getvalue()[before:]  # its lines are gone
    board.warn("after it")
    assert terminal.getvalue().endswith("warning: after it\n")


def test_elsewhere_a_plain_line_tells_of_what_is_under_way_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board()
    assert not board.due()
    monkeypatch.setattr(module, "EVERY_PLAIN_S", 0.0)
    assert board.due()
    board.show(View("lr: 1 of 2 trials begun", VIEW.columns, VIEW.leaders, VIEW.going[:2]))
    board.show(View("lr: 2 of 2 trials begun", VIEW.columns, VIEW.leaders, []))
    board.close()
    assert capsys.readouterr() == (
        "",
        "lr: 1 of 2 trials begun; under way: trial 5 seed 1 5,000/10,000 250/s return 21.5 0:00:20 left; trial 6 seed 1 0/10,000\n"
        "lr: 2 of 2 trials begun; under way: nothing\n",
    )
    assert not Board(quiet=True).due()
