"""The files for clusters are what their readers take: Ray's own schema, and the documented fields of KubeRay and SkyPilot."""

from __future__ import annotations

import ipaddress
import os
import re
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from distrl.outside import HUGE_PAGES
from distrl.presets import presets

ROOT = Path(__file__).parent.parent
RAY_UP = [ROOT / "cluster.yaml", *(ROOT / "configs" / "cluster" / f"{name}.yaml" for name in ("gcp", "onprem"))]
FILES = [ROOT / "cluster.yaml", *sorted((ROOT / "configs" / "cluster").glob("*.yaml"))]

# Of ray.io/v1 as KubeRay 1.6 documents it.
CLUSTER_FIELDS = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
    "gcsFaultToleranceOptions", "upgradeStrategy", "suspend", "managedBy", "headServiceAnnotations",
}  # fmt: skip
AUTOSCALER_FIELDS = {
    "version", "idleTimeoutSeconds", "upscalingMode", "resources", "image", "imagePullPolicy", "securityContext", "env",
    "envFrom", "volumeMounts",
}  # fmt: skip
HEAD_FIELDS = {"serviceType", "rayStartParams", "template", "headService", "enableIngress", "resources", "labels"}
WORKER_FIELDS = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "idleTimeoutSeconds", "numOfHosts",
    "resources", "labels", "scaleStrategy", "suspend",
}  # fmt: skip
JOB_FIELDS = {
    "entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "activeDeadlineSeconds",
    "submitterConfig", "rayClusterSpec", "submissionMode", "runtimeEnvYAML", "jobId", "metadata", "clusterSelector",
    "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "submitterPodTemplate", "suspend", "managedBy",
    "deletionStrategy", "preRunningDeadlineSeconds",
}  # fmt: skip
SKY_FIELDS = {
    "name", "workdir", "event_callback", "num_nodes", "resources", "file_mounts", "service", "pool", "setup", "run", "envs",
    "secrets", "volumes", "inputs", "outputs", "config", "experimental", "priority",
}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return data


def texts(part: Any) -> Iterator[str]:
    """All keys and values below."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield str(key)
            yield from texts(value)
    elif isinstance(part, list):
        for value in part:
            yield from texts(value)
    else:
        yield str(part)


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_ray_up_takes_it(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read(path))
    validate_config(config)
    wrong = read(path) | {"idle_timeout": 5}
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_what_is_shipped_is_there_and_installs_the_pinned_versions(path: Path) -> None:
    config = read(path)
    shipped = {remote: local for remote, local in config["file_mounts"].items() if not local.startswith("~")}
    assert all((ROOT / local).exists() for local in shipped.values())
    needed = [
        "distrl",
        "configs",
        "scripts",
        "pyproject.toml",
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["readme"],
    ]
    assert {f"~/distrl/{name}" for name in needed} == shipped.keys()
    installed = [c for c in config["setup_commands"] if "scripts/install.sh" in c]
    assert len(installed) == 1 and "scripts/constraints.txt" in (ROOT / "scripts" / "install.sh").read_text()
    assert not any("pip install" in text for text in texts(config))
    extras = re.findall(r"install\.sh (\w+)", " ".join(config.get("head_setup_commands", [])))
    assert (
        set(extras) <= tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    )


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_it_asks_for_the_token_and_shows_nobody_the_dashboard(path: Path) -> None:
    config = read(path)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [c for c in config["head_start_ray_commands"] + config["worker_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in c.partition("ray start")[0] for c in starts)
    assert all("=".join(HUGE_PAGES) in c for c in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0] and config["idle_timeout_minutes"] > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_file_holds_a_secret_or_opens_a_network(path: Path) -> None:
    told = list(texts(read(path)))
    assert not [text for text in told if re.search(r"[0-9a-fA-F]{32}|RAY_AUTH_TOKEN=", text)]
    for text in told:
        for network in re.findall(r"\d+\.\d+\.\d+\.\d+/\d+", text):
            assert ipaddress.ip_network(network).prefixlen == 32


def test_workers_of_the_clouds_come_and_go_on_spot_and_the_head_does_not() -> None:
    for path in RAY_UP[:2]:
        groups = read(path)["available_node_types"]
        assert groups["runner"]["min_workers"] == 0 < groups["runner"]["max_workers"]
        assert groups["learner"]["resources"]["GPU"] == 1 and groups["head"]["resources"] == {"CPU": 0}
        spot = {
            name: bool({"InstanceMarketOptions", "scheduling"} & group["node_config"].keys())
            for name, group in groups.items()
        }
        assert spot["runner"] and not spot["head"]


NO_NOTICE = ("/latest/api/token", "token"), ("/computeMetadata/v1/instance/preempted", "FALSE")


@pytest.mark.parametrize(
    ("notice", "seconds"),
    [
        (("/latest/meta-data/spot/instance-action", '{"action": "terminate"}'), 120),
        (("/computeMetadata/v1/instance/preempted", "TRUE"), 30),
    ],
    ids=["aws", "gcp"],
)
def test_a_spot_notice_drains_the_machine(notice: tuple[str, str], seconds: int, tmp_path: Path) -> None:
    """The clouds' servers of metadata and `ray` are made up; the rehearsal and tests/execution/test_nodes.py drain real nodes."""
    answers = dict(NO_NOTICE)
    asked = threading.Event()

    class Metadata(BaseHTTPRequestHandler):
        def answer(self) -> None:
            said = answers.get(self.path, "").encode()
            self.send_response(200 if said else 404)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)
            if self.path.endswith("preempted"):
                asked.set()

        do_GET = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$RAY_AUTH_MODE $@" >> {tmp_path}/called\n')
    ray.chmod(0o755)
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), "EVERY": "0.1"}
        environment["METADATA"] = f"http://127.0.0.1:{server.server_port}"
        command = [str(ROOT / "scripts" / "spot_notice.sh")]
        with subprocess.Popen(command, env=environment) as watch:
            assert asked.wait(60) and subprocess.run(command, env=environment, timeout=60, check=False).returncode == 0
            assert watch.poll() is None and not (tmp_path / "called").exists()
            answers.update([notice])
            assert watch.wait(60) == 0
        server.shutdown()
    [said] = (tmp_path / "called").read_text().splitlines()
    assert said.startswith("token drain-node --reason=DRAIN_NODE_REASON_PREEMPTION")
    assert said.endswith(f"--deadline-remaining-seconds={seconds}")
    for path in RAY_UP[:2]:
        assert "scripts/spot_notice.sh" in read(path)["worker_start_ray_commands"][-1]


@pytest.mark.parametrize("name", ["kuberay-raycluster", "kuberay-rayjob"])
def test_kuberay_knows_every_field(name: str) -> None:
    data = read(ROOT / "configs" / "cluster" / f"{name}.yaml")
    assert data["apiVersion"] == "ray.io/v1" and data.keys() == {"apiVersion", "kind", "metadata", "spec"}
    cluster = data["spec"]
    if data["kind"] == "RayJob":
        assert data["spec"].keys() <= JOB_FIELDS
        assert data["spec"]["backoffLimit"] > 0 and data["spec"]["activeDeadlineSeconds"] > 0
        cluster = data["spec"]["rayClusterSpec"]
    assert cluster.keys() <= CLUSTER_FIELDS and cluster["authOptions"] == {"mode": "token"}
    assert cluster.get("autoscalerOptions", {}).keys() <= AUTOSCALER_FIELDS
    assert cluster["headGroupSpec"].keys() <= HEAD_FIELDS
    assert all(group.keys() <= WORKER_FIELDS for group in cluster["workerGroupSpecs"])
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1  # one Python, one Ray, one distrl
    assert all(pod["containers"][0]["resources"].keys() == {"requests", "limits"} for pod in pods)
    for pod in pods:
        mounted = {mount["name"] for mount in pod["containers"][0].get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}
    pins = (ROOT / "scripts" / "constraints.txt").read_text().split()
    assert f"ray=={cluster['rayVersion']}" in pins
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_skypilot_knows_every_field() -> None:
    """The whole schema is in its package, which brings other versions of what distrl uses, so that it is not installed here."""
    data = read(ROOT / "configs" / "cluster" / "skypilot.yaml")
    assert data.keys() <= SKY_FIELDS and data["num_nodes"] > 1
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed: its own schema was not asked")
    sky.Task.from_yaml_config(data)


def test_they_are_no_presets() -> None:
    assert not {preset.name for preset in presets()} & {path.stem for path in FILES}
