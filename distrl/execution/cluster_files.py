"""A file for `ray up`, checked before it costs money: by Ray's own schema, and for what Ray finds out too late or not at all."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrl.errors import UserError, reason, shown
from distrl.yaml_format import read_yaml

TOKEN = "~/.ray/auth_token"
V2 = "RAY_UP_enable_autoscaler_v2"  # Ray's newer autoscaler, or the one before
SETUP_S = 1800.0  # the most that a setup command may take
# What `ray up` imports for a cloud, how to get it, and what finds credentials.
CLOUDS = {"aws": ("boto3", "pip install '.[aws]'"), "gcp": ("googleapiclient", "pip install '.[gcp]'")}
EXAMPLES = re.compile(
    r"\b192\.0\.2\.\d+|\bmy-project\b"
)  # what stands in a file of distrl's for what the user must decide


OPEN = re.compile(r"0\.0\.0\.0/0|(^|[^0-9a-f:])::/0|--dashboard-host[= ](0\.0\.0\.0|::)")


@dataclass(frozen=True)
class Finding:
    """What was looked at, what is wrong with it (None: nothing), and otherwise what was found."""

    what: str
    wrong: str | None = None
    found: str = ""


def read_cluster_file(path: Path) -> dict[str, Any]:
    """A file for `ray up`. Raises `UserError` for any other."""
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The cluster file {str(path)!r} cannot be read: {reason(error)}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if isinstance(data, dict) and str(data.get("apiVersion", "")).startswith("ray.io/"):
        raise UserError(f"{path} is for Kubernetes, which checks it: 'kubectl apply --dry-run=server -f {path}'.")
    if isinstance(data, dict) and {"resources", "run"} <= data.keys():
        raise UserError(f"{path} is for SkyPilot, which checks it: 'sky launch --dryrun {path}'.")
    if not isinstance(data, dict) or not isinstance(data.get("provider"), dict):
        raise UserError(f"{path} is no file for 'ray up': it has no provider. See cluster.yaml and configs/cluster/.")
    return data


def check_file(path: Path, note: Callable[[str], None] | None) -> Iterator[Finding]:
    """Everything that can be known from here. Raises `UserError` where it is no file for `ray up`.

    Args:
        note: told each setup command before it is run here, which may take minutes; None: none is run
    """
    config = read_cluster_file(path)
    yield _schema(config)
    yield _decided(config)
    yield from _token(config)
    yield _closed(config)
    yield _mounts(config)
    yield from _provider(config)
    if note is not None:
        yield from _setup(config, note)


def _schema(config: dict[str, Any]) -> Finding:
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # on which Ray gives advice
            validate_config(prepare_config(config))
    except Exception as error:  # jsonschema's, or what Ray's own reading of the file runs into
        place = ".".join(map(str, getattr(error, "absolute_path", ())))
        said = getattr(error, "message", None) or str(error) or type(error).__name__
        return Finding("schema", f"Ray refuses {place or 'it'}: {shown(said)}")
    return Finding("schema", found="Ray takes it")


def _decided(config: dict[str, Any]) -> Finding:
    left = sorted({match for text in _texts(config) for match in EXAMPLES.findall(text)})
    if left:
        return Finding("decisions", f"left as in the example: {', '.join(left)}. See what is marked DECIDE")
    return Finding("decisions", found="no example is left")


def _token(config: dict[str, Any]) -> Iterator[Finding]:
    mounts = config.get("file_mounts") or {}
    starts = [c for c in _commands(config, "head_start_ray_commands", "worker_start_ray_commands") if "ray start" in c]
    open_ones = [command for command in starts if "RAY_AUTH_MODE=token" not in command]
    if not starts or open_ones:
        yield Finding(
            "authentication", "a 'ray start' has no RAY_AUTH_MODE=token before it: whoever reaches it may run code"
        )
    else:
        yield Finding("authentication", found="head and workers ask for the token")
    if (source := mounts.get(TOKEN)) is None:
        yield Finding("token", f"it is not shipped: add '{TOKEN}: {TOKEN}' to file_mounts")
        return
    file = Path(source).expanduser()
    if not file.exists():
        yield Finding(
            "token",
            f"{source} is not there: make it with 'RAY_AUTH_MODE=token ray get-auth-token --generate && chmod 600 {source}'",
        )
    elif file.stat().st_mode & 0o077:
        yield Finding("token", f"others may read it: 'chmod 600 {source}'")
    else:
        yield Finding("token", found=f"{source} is there, and shipped")


def _closed(config: dict[str, Any]) -> Finding:
    wide = [text for text in _texts(config) if OPEN.search(text)]
    if wide:
        return Finding("public addresses", f"open to everybody: {shown(wide[0])}")
    return Finding("public addresses", found="the file opens nothing to everybody")


def _mounts(config: dict[str, Any]) -> Finding:
    sources = (config.get("file_mounts") or {}).values()
    missing = [source for source in sources if source != TOKEN and not Path(source).expanduser().exists()]
    if missing:
        return Finding(
            "file_mounts",
            f"not there, seen from {Path.cwd()}: {', '.join(missing)}. Call it from where it is called 'ray up'",
        )
    return Finding("file_mounts", found=f"all {len(sources)} are there")


def _provider(config: dict[str, Any]) -> Iterator[Finding]:
    kind, auth = config["provider"].get("type"), config.get("auth") or {}
    if (key := auth.get("ssh_private_key")) is not None:
        file = Path(key).expanduser()
        if not file.exists():
            yield Finding("ssh key", f"{key} is not there")
        elif file.stat().st_mode & 0o077:
            yield Finding("ssh key", f"others may read it, and ssh will not use it: 'chmod 600 {key}'")
        else:
            yield Finding("ssh key", found=f"{key} is there")
    if kind in CLOUDS:
        yield _cloud(kind)
    if kind == "local":
        if os.environ.get(V2) != "0":
            yield Finding("autoscaler", f"set {V2}=0: with Ray's newer one no worker is ever started")
        yield from _hosts(config)


def _cloud(kind: str) -> Finding:
    module, remedy = CLOUDS[kind]
    try:
        package = importlib.import_module(module)
    except ImportError:
        return Finding("credentials", f"'ray up' needs {module} for {kind}: {remedy}")
    try:
        if kind == "aws":
            there = package.Session().get_credentials() is not None
        else:
            there = bool(importlib.import_module("google.auth").default())
    except Exception as error:
        return Finding("credentials", f"of {kind} are none to be found ({reason(error)})")
    return Finding("credentials", None if there else f"of {kind} are none to be found here", f"of {kind} are there")


def _hosts(config: dict[str, Any]) -> Iterator[Finding]:
    provider = config["provider"]
    hosts = [provider.get("head_ip"), *(provider.get("worker_ips") or [])]
    silent = []
    for host in hosts:
        try:
            socket.create_connection((str(host), 22), timeout=5).close()
        except OSError as error:
            silent.append(f"{host} ({reason(error)})")
    if silent:
        yield Finding("hosts", f"no ssh at {', '.join(silent)}")
    else:
        yield Finding("hosts", found=f"ssh answers at all {len(hosts)}")
    if len(set(hosts)) < len(hosts):
        yield Finding("hosts", "one is named twice")
    if (least := config.get("min_workers")) is not None and least < len(hosts) - 1:
        yield Finding("min_workers", found=f"{least} of {len(hosts) - 1} workers are started at once")


def _setup(config: dict[str, Any], note: Callable[[str], None]) -> Iterator[Finding]:
    """Run the setup commands in a home of its own, with nothing of this environment. What asks for root is left out."""
    before = ""
    with tempfile.TemporaryDirectory(prefix="distrl-") as home:
        for remote, source in (config.get("file_mounts") or {}).items():
            here, there = Path(source).expanduser(), Path(str(remote).replace("~", home, 1))
            if here.exists() and str(there).startswith(home):
                there.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if here.is_dir() else shutil.copy)(here, there)
        for command in _commands(config, "setup_commands", "head_setup_commands", "worker_setup_commands"):
            told = f"setup: {command if len(command) < 60 else command[:57] + '...'}"
            if re.search(r"\bsudo\b", command):
                yield Finding(told, found="not tried: it asks for root")
                before = ", after what was not tried"
                continue
            note(told)
            clean = {"HOME": home, "PATH": os.defpath, "USER": os.environ.get("USER", "user"), "LANG": "C.UTF-8"}
            code, said = _tried(command, home, clean)
            if code:
                last = "\n".join(f"    {line}" for line in said.splitlines()[-20:])
                yield Finding(told, f"{code}{before}:\n{last}")
                return  # the ones behind it rely on it
            yield Finding(told, found="works")


def _tried(command: str, home: str, environment: dict[str, str]) -> tuple[str, str]:
    """How a command ended, '' where it worked, and what it said."""
    words = ["bash", "--login", "-c", f"source ~/.bashrc 2>/dev/null; {command}"]
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        with subprocess.Popen(
            words, cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        ) as process:
            try:
                code = process.wait(SETUP_S)
                how = f"ended with {code}" if code else ""
            except subprocess.TimeoutExpired:
                how = f"did not end within {SETUP_S:g} s"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # with all that it started
        said.seek(0)
        return how, said.read()


def _commands(config: dict[str, Any], *keys: str) -> list[str]:
    return [str(command) for key in keys for command in config.get(key) or []]


def _texts(part: Any) -> Iterator[str]:
    """All values below."""
    if isinstance(part, dict):
        for value in part.values():
            yield from _texts(value)
    elif isinstance(part, list):
        for value in part:
            yield from _texts(value)
    else:
        yield str(part)
