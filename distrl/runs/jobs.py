"""A run as a job on a cluster: what it needs of this machine, gathered and checked before anything is sent; and of the cluster."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values

from distrl.config import load_config, parse_override, read_config_file
from distrl.errors import UserError, shown
from distrl.execution import resources
from distrl.execution.jobs import RUNS, Order, new_id
from distrl.models.store import find_model, versions
from distrl.registry import ALGORITHMS, NETWORKS, WRAPPERS
from distrl.runs.resume import load_resumed_config
from distrl.settings import Config, dotted
from distrl.storage.fetch import brought
from distrl.stores import is_address

PACKAGE = Path(__file__).parent.parent  # all of distrl
MATTER = (
    "python",
    "ray",
    "torch",
    "gymnasium",
    "numpy",
)  # what else than distrl, which comes along, the weights depend on
PASSED = ("MLFLOW_", "AWS_")  # names in the environment that begin so are for what a run speaks to


def order_run(
    source: str, overrides: Sequence[str], working_dir: Path | None, any_versions: bool = False
) -> tuple[str, Order]:
    """A new job's id, and what is to be done: a config file or preset with `key=value` overrides.

    Raises:
        UserError: the config is wrong, or names a module that would not be found on the cluster
    """
    config = load_config(source, overrides)
    check_shared((read_config_file(Path(source)) | dict(map(parse_override, overrides))).get("storage"))
    for module in _own_modules(config):
        _check_comes_along(module, working_dir)
    what = f"{config.algorithm.name}-{config.env.id.split('/')[-1].split(':')[-1]}"
    job, model = new_id(what), None
    if config.init_from is not None:
        path = Path(config.init_from)
        model = path if path.is_file() else find_model(path)
        config = config.model_copy(update={"init_from": None})
    run_dir = config.run_dir or f"{RUNS}/{job}"
    _check_absolute(run_dir)
    config = config.model_copy(update={"run_dir": None})
    order = _order(f"{config.algorithm.name} on {config.env.id}", run_dir, (), any_versions)
    return job, replace(order, config=config.to_yaml(), model=model)


def order_resumption(run: str, overrides: Sequence[str], any_versions: bool = False) -> tuple[str, Order]:
    """The same for a run that goes on: by a job's id, its directory on the head, or its address in a store."""
    name = Path(urlsplit(run).path).name
    place = run if "/" in run else f"{RUNS}/{run}"
    run_dir = f"{RUNS}/{name}" if is_address(run) else place
    _check_absolute(run_dir)
    check_shared(dict(map(parse_override, overrides)).get("storage"))
    order = _order(f"going on with {name}", run_dir, overrides, any_versions)
    return new_id(f"{name}-resumed"), replace(order, resume=place)


def _order(what: str, run_dir: str, overrides: Sequence[str], any_versions: bool) -> Order:
    known = versions()
    wanted = {} if any_versions else {name: known[name] for name in MATTER}
    return Order(what, known["distrl"], run_dir, overrides, versions=wanted, environment=passed_on())


def needed(words: Sequence[str]) -> list[dict[str, float]]:
    """`distrl.execution.resources.needed` of a job.

    Args:
        words: of `distrl train`, on the cluster: a config, or --resume and a run, which is brought from a store if it is there
    """
    if words[0] == "--resume":
        run_dir = next((word.partition("=")[2] for word in words[2:] if word.startswith("run_dir=")), None)
        return resources.needed(load_resumed_config(brought(words[1], run_dir), words[2:]))
    return resources.needed(load_config(words[0], words[1:]))


def passed_on() -> dict[str, str]:
    """What the run needs of the environment here: all of `.env` but what is about Ray, and what is for those it speaks to."""
    written = {name: value for name, value in dotenv_values(Path.cwd() / ".env").items() if value is not None}
    here = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    return {name: here.get(name, value) for name, value in written.items() if not name.startswith("RAY_")} | here


def _check_absolute(run_dir: str) -> None:
    if not run_dir.startswith(("/", "~/")):
        raise UserError(
            f"run_dir {shown(run_dir)} is a directory on the cluster's head, where a job works in a place that vanishes with it. "
            f"Give one that begins with / or ~/, or leave it out: {RUNS}/JOB."
        )


def check_shared(storage: str | None) -> None:
    """`storage`: as it was given, before it was taken for a directory of this machine."""
    if storage is not None and not is_address(storage) and not storage.startswith("/"):
        raise UserError(
            f"storage {shown(storage)} is a directory, and a job works elsewhere than here. Give one that begins with / and that all "
            "machines of the cluster share, or s3://BUCKET/DIR, or gs://BUCKET/DIR."
        )


def _own_modules(config: Config) -> Iterator[str]:
    """The modules that a config names."""
    module, colon, _ = config.env.id.rpartition(":")
    if colon:
        yield module
    for around in config.env.wrappers:
        if any(char in around.name for char in ".:") and around.name not in WRAPPERS.names():
            yield around.name.partition(":")[0]
    if config.algorithm.name not in ALGORITHMS.names():
        yield config.algorithm.name
    network = dotted(config.algorithm.model_dump(mode="json")).get("network")
    if isinstance(network, str) and network not in NETWORKS.names():
        yield network.partition(":")[0]


def _check_comes_along(module: str, working_dir: Path | None) -> None:
    """Raise `UserError` where a module is of one's own here and would not be there: what is installed is taken to be."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    if spec is None:
        return  # the run says so, or the cluster has it
    places = [spec.origin] if spec.has_location and spec.origin else [*(spec.submodule_search_locations or ())]
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    for place in (Path(place).resolve() for place in places):
        if any(place.is_relative_to(other) for other in (*installed, PACKAGE.resolve())):
            continue
        root = place.parent.parent if place.name == "__init__.py" else place.parent
        if working_dir is None or root != working_dir.resolve():
            raise UserError(
                f"The config names {module!r}, which lies in {root} and is not installed: the cluster would not find it. Send that "
                f"directory with --working-dir {root}."
            )
