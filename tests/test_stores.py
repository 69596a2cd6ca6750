"""Addresses of stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from distrl.errors import UserError
from distrl.stores import Store, is_address


@pytest.mark.parametrize(
    ("address", "child", "parent"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b/run", "s3://bucket/a"),
        ("s3://bucket", "s3://bucket/run", None),
        ("gs://bucket/a/", "gs://bucket/a/run", "gs://bucket"),
        ("/nfs/runs", "/nfs/runs/run", "/nfs"),
        ("file:///nfs/my%20runs", "/nfs/my runs/run", "/nfs"),
        (
            "s3://b/a?endpoint_override=127.0.0.1:9000&scheme=http",
            "s3://b/a/run?endpoint_override=127.0.0.1:9000&scheme=http",
            "s3://b?endpoint_override=127.0.0.1:9000&scheme=http",
        ),
    ],
)
def test_a_run_in_a_store_has_an_address_of_its_own(address: str, child: str, parent: str | None) -> None:
    store = Store.parse(address)
    assert str(store / "run") == child
    assert (store / "run").name == "run"
    assert (store / "run").parent == Store.parse(str(store)) == Store.parse(str(Store.parse(child).parent))
    if parent is not None:
        assert str(store.parent) == parent


def test_a_directory_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert str(Store.parse("kept")) == str(tmp_path / "kept")
    assert str(Store.parse("~/kept")) == str(tmp_path / "home" / "kept")
    assert not is_address("kept") and is_address("s3://kept")


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("s4://bucket/a", ["s3:// or gs://"]),
        ("hdfs://bucket/a", ["s3:// or gs://"]),
        ("s3:///a", ["names no bucket"]),
        ("s3://b/a?regoin=x", ["regoin", "Did you mean 'region'"]),
        ("s3://KEY:SECRET@b/a", ["AWS_SECRET_ACCESS_KEY", "'s3://b/a'"]),
        ("s3://b/a?secret_key=SECRET", ["AWS_SECRET_ACCESS_KEY"]),
        ("gs://KEY@b/a?access_token=SECRET", ["GOOGLE_APPLICATION_CREDENTIALS"]),
        ("file://host/a", ["file:///DIR"]),
    ],
)
def test_what_is_no_address_is_refused_without_repeating_secrets(address: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        Store.parse(address)
    for part in parts:
        assert part in str(refused.value)
    assert (
        "SECRET@" not in str(refused.value) and "=SECRET" not in str(refused.value) and "KEY:" not in str(refused.value)
    )
