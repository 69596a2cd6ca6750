"""Places for trials: what there can never be is refused, and what only waits holds up no Ctrl-C."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from distrl.errors import UserError
from distrl.execution.tune import Trials

pytestmark = pytest.mark.timeout(600)


class Waiting:
    """A dealer with one piece of work, who wants to leave when it has been asked for a while."""

    def __init__(self) -> None:
        self.dealt, self.watched, self.taken = False, 0, list[Any]()

    def deal(self) -> Mapping[str, Any] | None:
        self.dealt = True
        return {"piece": 1}

    def done(self) -> bool:
        return self.dealt

    def take(self, piece: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
        self.taken.append(result)

    def watch(self) -> None:
        self.watched += 1

    def leaving(self) -> bool:
        return self.watched > 5


def work(piece: Mapping[str, Any]) -> Mapping[str, Any]:
    return piece


def wait() -> None:
    with Trials("local", 0, 0.0, None) as trials:
        trials._bundles = [{"CPU": 1.0, "GPU": 64.0}]  # of which others have all
        dealer = Waiting()
        trials.run(work, dealer)
    assert dealer.dealt and dealer.taken == []


def ask_for_gpus() -> None:
    with pytest.raises(UserError, match=r"learner\.device=cuda takes 64 GPU for each trial; there are 0\."):
        Trials("local", 0, 64.0, None)


@pytest.mark.parametrize("what", [wait, ask_for_gpus])
def test_in_a_process_that_has_no_ray_yet(what: Callable[[], None], temporary: Path) -> None:
    program = f"import test_places; test_places.{what.__name__}()"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, check=True, timeout=500)
