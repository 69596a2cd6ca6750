"""Nothing in distrl is too large to be read, and scripts/count.py, which says so, counts what there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import count


def test_classes_and_functions_are_small() -> None:
    limits = {"class": count.LARGEST_CLASS, "function": count.LARGEST_FUNCTION}
    found = count.definitions()
    assert len(found) > 500
    assert [d for d in found if d.lines > limits[d.kind]] == []


@pytest.mark.parametrize("name", count.ON_THE_WAY)
def test_an_update_is_soon_read(name: str) -> None:
    """A KeyError names what was moved, or is called otherwise by now."""
    classes, functions, most = count.ON_THE_WAY[name]
    assert len(classes + functions) == len(set(classes + functions)) and count.lines_of(functions)
    assert sum(count.lines_of(classes).values()) <= most


def test_lines_are_counted_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first decorator to the last line, in classes in functions too."""
    text = "import a\n\n@a\n@b(\n    1\n)\ndef f():\n    class C:\n        def g(self): ...\n\n        x = 1\n\n    return C\n"
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "__init__.py").write_text("from distrl.other.x import y\nfrom distrl.base import z\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.py").write_text(text)
    monkeypatch.setattr(count, "PACKAGE", tmp_path)
    assert [(d.name, d.kind, d.lines) for d in count.definitions()] == [
        ("f", "function", 11),
        ("f.C", "class", 4),
        ("f.C.g", "function", 1),
    ]
    assert count.lines_of(["other.x:f.C"]) == {"other.x:f.C": 4}
    assert count.arrows() == {("room", "other"): 1}


@pytest.mark.parametrize("script", sorted(count.PACKAGE.parent.glob("scripts/*.py")), ids=lambda path: path.name)
def test_a_script_tells_what_it_does_instead_of_doing_it(script: Path, tmp_path: Path) -> None:
    told = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("usage: ") and not [*tmp_path.iterdir()]
