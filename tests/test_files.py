"""Files that appear whole or not at all; of directories see test_checkpoint.py."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from conftest import no_file_beyond

from distrl.errors import UserError
from distrl.files import draft, locked, new_directory, write_text


def test_a_text_appears_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "old")
    write_text(tmp_path / "a.json", "größer")
    assert (tmp_path / "a.json").read_bytes() == "größer".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("room", [0, 10])
def test_a_text_that_has_no_room_leaves_the_old_one(room: int, tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "old")
    with no_file_beyond(room), pytest.raises(UserError, match=r"a\.json.*cannot be written"):
        write_text(tmp_path / "a.json", "longer than that")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.json": "old"}


def test_a_draft_takes_the_place_of_the_old_file_when_it_is_done(tmp_path: Path) -> None:
    out = tmp_path / "new" / "curve.png"
    for content in ("old", "new"):
        with draft(out) as path:
            assert path.suffix == ".png"  # by which libraries choose what to write
            path.write_text(content)
        assert out.read_text() == content
    assert [p.name for p in out.parent.iterdir()] == ["curve.png"]


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (KeyError("sprite"), KeyError, "sprite"),
        (FileNotFoundError(errno.ENOENT, "No such file"), FileNotFoundError, "No such file"),  # the env's, not ours
        (OSError(errno.ENOSPC, "No space left on device"), UserError, r"curve\.png.*No space.*Free some"),
    ],
)
def test_a_draft_that_fails_leaves_the_old_file(
    error: Exception, raised: type[Exception], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "curve.png"
    out.write_text("old")

    def write() -> None:
        with draft(out) as path:
            path.write_text("half")
            raise error

    with pytest.raises(raised, match=message):
        write()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"curve.png": "old"}


def test_a_place_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Choose another place"), draft(tmp_path / "file" / "curve.png"):
        pytest.fail("nothing to write to")


def test_a_new_directory_is_gone_again_unless_it_is_kept(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "a" / "b" / "run", tmp_path / "empty"):
        with new_directory(path, numbered=False) as (directory, _):
            assert directory == path
            assert path.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]  # it was there before
    assert [*(tmp_path / "empty").iterdir()] == []
    with new_directory(tmp_path / "a" / "run", numbered=False) as (directory, keep):
        keep()
    assert directory.is_dir()


def test_a_directory_that_is_taken_or_used_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with new_directory(path, numbered=False) as (_, keep):
        with pytest.raises(UserError, match="another process"), new_directory(path, numbered=False):
            pytest.fail("it is taken")
        with pytest.raises(UserError, match="another process"), locked(path):
            pytest.fail("it is taken")
        keep()
    with new_directory(path, numbered=False) as (_, keep):  # nothing came into it, as after a kill
        (path / "config.yaml").write_text("mine")
        keep()
    with pytest.raises(UserError, match=r"exists.*--resume"), new_directory(path, numbered=False):
        pytest.fail("it is used")
    assert (path / "config.yaml").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written|exists"), new_directory(tmp_path / "file", numbered=False):
        pytest.fail("it is a file")


def test_names_that_nobody_chose_are_numbered(tmp_path: Path) -> None:
    with new_directory(tmp_path / "run", numbered=True) as (first, keep_first):
        with new_directory(tmp_path / "run", numbered=True) as (second, _):
            pass
        with new_directory(tmp_path / "run", numbered=True) as (third, keep_third):
            keep_third()
        keep_first()
    assert [path.name for path in (first, second, third)] == ["run", "run-2", "run-2"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run-2"]
