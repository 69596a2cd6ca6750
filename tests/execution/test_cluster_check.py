"""What `distrl cluster check` finds: each mistake, and no other than it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from distrl.errors import UserError
from distrl.execution import cluster_files
from distrl.execution.cluster_files import check_file
from distrl.execution.jobs import Cluster
from distrl.models.store import versions
from distrl.runs.clusters import judge, judge_storage

HERE = Path(__file__).parent.parent.parent
ONPREM = yaml.safe_load((HERE / "configs" / "cluster" / "onprem.yaml").read_text())


@pytest.fixture
def decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a user made of the on-premises file; the only thing missing are the hosts."""
    monkeypatch.chdir(HERE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_UP_enable_autoscaler_v2", "0")
    for name in ("key", ".ray/auth_token"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch(0o600)
    config: dict[str, Any] = copy.deepcopy(ONPREM)
    config["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": ["127.0.0.2", "127.0.0.3"]}
    config["auth"]["ssh_private_key"] = "~/key"
    return config


def wrong(config: dict[str, Any], directory: Path, said: list[str] | None = None) -> dict[str, str]:
    """What is wrong, but for the hosts, which nobody gave these tests."""
    file = directory / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    found = list(check_file(file, None if said is None else said.append))
    assert [finding for finding in found if finding.wrong is None and not finding.found] == []
    return {finding.what: finding.wrong for finding in found if finding.wrong is not None and finding.what != "hosts"}


def test_nothing_is_wrong_with_a_file_that_was_decided(decided: dict[str, Any], tmp_path: Path) -> None:
    assert wrong(decided, tmp_path) == {}


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "schema": (lambda config: config.update(idle_timeout=5), "idle_timeout"),
    "decisions": (lambda config: config["provider"].update(head_ip="192.0.2.10"), "192.0.2.10"),
    "token": (lambda config: config["file_mounts"].pop("~/.ray/auth_token"), "file_mounts"),
    "authentication": (lambda config: config.update(worker_start_ray_commands=["ray start"]), "run code"),
    "public addresses": (
        lambda config: config["head_start_ray_commands"].append("x --dashboard-host=0.0.0.0"),
        "everybody",
    ),
    "file_mounts": (lambda config: config["file_mounts"].update({"~/data": "no/such/data"}), "no/such/data"),
    "ssh key": (lambda config: config["auth"].update(ssh_private_key="~/.ssh/none"), "~/.ssh/none"),
}


@pytest.mark.parametrize("open_to_all", ["0.0.0.0/0", "::/0", "--dashboard-host=::", "--dashboard-host 0.0.0.0"])
def test_what_is_open_to_everybody_is_found(open_to_all: str, decided: dict[str, Any], tmp_path: Path) -> None:
    decided["head_start_ray_commands"].append(open_to_all)
    assert wrong(decided, tmp_path).keys() == {"public addresses"}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_found_and_no_other(what: str, decided: dict[str, Any], tmp_path: Path) -> None:
    mistake, part = MISTAKES[what]
    mistake(decided)
    found = wrong(decided, tmp_path)
    assert found.keys() == {what} and part in found[what]


def test_what_others_may_read_is_found(decided: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / ".ray" / "auth_token").chmod(0o644)
    (tmp_path / "key").chmod(0o640)
    assert {what: text.rpartition("'")[0].rpartition("'")[2] for what, text in wrong(decided, tmp_path).items()} == {
        "token": "chmod 600 ~/.ray/auth_token",
        "ssh key": "chmod 600 ~/key",
    }


def test_hosts_that_do_not_answer_are_named(decided: dict[str, Any], tmp_path: Path) -> None:
    decided["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": ["nobody.invalid"]}
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(decided))
    [hosts] = [finding for finding in check_file(file, None) if finding.what == "hosts"]
    assert hosts.wrong is not None and "nobody.invalid" in hosts.wrong


def test_setup_commands_are_tried_in_a_clean_environment_and_a_failure_is_shown(
    decided: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_HERE", "x")
    decided["setup_commands"] = ["sudo no-such-thing", 'test -z "$ONLY_HERE" && test -f ~/distrl/scripts/install.sh']
    told: list[str] = []
    assert wrong(decided, tmp_path, told) == {}
    assert [line[:16] for line in told] == ['setup: test -z "']
    decided["setup_commands"] += ["echo its last words; exit 3", "echo never > ~/never"]
    [said] = wrong(decided, tmp_path, told).values()
    assert "ended with 3, after what was not tried" in said and "its last words" in said
    assert not (tmp_path / "never").exists()
    monkeypatch.setattr(cluster_files, "SETUP_S", 1.0)
    decided["setup_commands"] = ["echo asking for a password; sleep 60 & sleep 60"]
    [said] = wrong(decided, tmp_path, told).values()
    assert "did not end within 1 s" in said and "asking for a password" in said


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[1", "not valid YAML"),
        ("a: 1", "no provider"),
        ("apiVersion: ray.io/v1", "kubectl"),
        ("{resources: {}, run: x}", "sky launch"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_file_for_ray_up_is_refused(text: str | None, part: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=part):
        list(check_file(file, None))


def machine(**other: Any) -> dict[str, Any]:
    alike = {
        name: version
        for name, version in versions().items()
        if name in ("python", "ray", "torch", "gymnasium", "numpy")
    }
    about = {"address": "10.0.0.1", "alive": True, "head": False, "cpus": 4.0, "gpus": 0, "processor": "Xeon"}
    measured = {"clock_off_s": 0.01, "round_trip_ms": 2.0, "mb_per_s": 100.0, "fragment_ms": 12.0}
    return {**about, **alike, **measured, "reached": [], "let_in": False, **other}


def test_machines_that_are_alike_are_well_and_what_they_allow_is_told() -> None:
    found = list(
        judge([machine(head=True), machine(address="10.0.0.2", torch=f"{versions()['torch'].partition('+')[0]}+cu130")])
    )
    assert [finding for finding in found if finding.wrong is not None] == []
    assert found[0].found == "2 with 8 CPUs and 0 GPUs"
    assert "is here after 12 ms, and 100 of them a second" in found[-1].found and "take 0.1 s" in found[-1].found


@pytest.mark.parametrize(
    ("other", "what", "part"),
    [
        ({"numpy": "1.0"}, "numpy", "10.0.0.2 1.0"),
        ({"python": "3.9.1"}, "python", "10.0.0.2 3.9"),
        ({"processor": "EPYC"}, "processors", "EPYC, Xeon"),
        ({"clock_off_s": -7.0}, "clocks", "10.0.0.2 by -7.0 s"),
        ({"error": "GetTimeoutError"}, "answers", "10.0.0.2 (GetTimeoutError)"),
        ({"reached": ["10.0.0.1:8265"]}, "ports", "--dashboard-host=127.0.0.1"),
        ({"let_in": True}, "ports", "RAY_AUTH_MODE=token"),
    ],
)
def test_a_machine_that_is_not_like_the_others_is_named(other: dict[str, Any], what: str, part: str) -> None:
    found = list(judge([machine(head=True), machine(address="10.0.0.2", **other)]))
    assert {finding.what: finding.wrong for finding in found if finding.wrong is not None}.keys() == {what}
    assert any(part in (finding.wrong or "") for finding in found)


def test_all_machines_of_another_version_than_here_are_told() -> None:
    found = [finding for finding in judge([machine(ray="1.0"), machine(ray="1.0")]) if finding.wrong is not None]
    assert [finding.what for finding in found] == ["ray"] and "1.0 there" in (found[0].wrong or "")


def test_a_machine_with_an_address_of_the_internet_is_named() -> None:
    found = list(judge([machine(head=True), machine(address="8.8.8.8")]))
    assert {finding.what for finding in found if finding.wrong is not None} == {"ports"}
    assert any("8.8.8.8" in (finding.wrong or "") for finding in found)


@pytest.mark.parametrize(
    ("other", "part"),
    [
        ({"store_lacks": []}, None),
        ({"store_lacks": ["10.0.0.1"]}, "10.0.0.2 does not see what 10.0.0.1 wrote; it is not one that all share"),
        ({"store_error": "OSError: it cannot be written (full)"}, "10.0.0.2: OSError: it cannot be written (full)"),
    ],
)
def test_a_store_that_is_not_the_same_for_all_machines_is_told(other: dict[str, Any], part: str | None) -> None:
    found = judge_storage([machine(head=True, store_lacks=[]), machine(address="10.0.0.2", **other)], "/nfs")
    assert (found.wrong is None) == (part is None) and (part or "") in (found.wrong or "")


@pytest.mark.parametrize(("status", "closed"), [(200, False), (401, True), (403, True), (404, False)])
def test_a_dashboard_that_answers_without_a_token_is_open(status: int, closed: bool) -> None:
    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert "Authorization" not in self.headers
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        cluster = object.__new__(Cluster)  # which asks for more when it is made
        cluster.address = f"http://127.0.0.1:{server.server_port}"
        assert cluster.is_closed is closed
