"""The files for clusters are what their readers take: Ray's own schema, and the documented fields of KubeRay and SkyPilot."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

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
