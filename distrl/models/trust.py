"""Which modules playing a model imports, and whether the user wants that: importing a module runs its code.

A model comes from anywhere. Its policy.json may name modules: of the env (`module:Id-v0`), of wrappers, of a network.
Reading it imports none of them; playing does, where they are the user's own or well known: files of the current project,
distrl, gymnasium, and the packages of environments that distrl knows. Any other must be named by the user.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from distrl.acting.kinds import network_places
from distrl.envs.plugins import PLUGINS
from distrl.errors import UserError
from distrl.registry import NETWORKS, WRAPPERS
from distrl.settings import EnvSettings
from distrl.types import Policy

OPTION = "--env-module"
KNOWN = {
    "distrl",
    "gymnasium",
    "pettingzoo",
    "mpe2",
    "flappy_bird_gymnasium",
    *(module.partition(".")[0] for module, _ in PLUGINS.values()),
}


def check_modules(path: Path, env: EnvSettings | None, policy: Policy | None, named: Sequence[str] = ()) -> None:
    """Raise `UserError` where the model of `path` names a module that nobody vouches for. Imports nothing.

    Args:
        env, policy: what is about to be made or to act; None: it is not
        named: modules, or packages of them, that the user allows
    """
    wanted = [] if env is None else list(_of_env(env))
    if policy is not None and (places := list(network_places(policy.describe()))):
        known = NETWORKS.names()  # of installed packages
        wanted += [(NETWORKS.key, place) for place in places if place not in known]
    foreign = {place: where for where, place in wanted if not _vouched(place, path, named)}
    if not foreign:
        return
    modules = list(dict.fromkeys(place.partition(":")[0] for place in foreign))
    which = ", ".join(f"{place!r} ({where})" for place, where in foreign.items())
    raise UserError(
        f"The model of {path} names {which}: playing it imports {' and '.join(modules)}, which runs what is written there, and "
        f"which lies neither in this directory nor in a package that distrl knows. If you trust that, add "
        f"{' '.join(f'{OPTION} {module}' for module in modules)} (in Python: load_policy(..., modules={modules!r}))."
    )


def _of_env(env: EnvSettings) -> Iterator[tuple[str, str]]:
    """What names a place of an env, and the place."""
    module, colon, _ = env.id.rpartition(":")
    if colon:
        yield "env.id", module
    for around in env.wrappers:
        if any(char in around.name for char in ".:") and around.name not in WRAPPERS.names():
            module, _, name = around.name.rpartition("." if ":" not in around.name else ":")
            yield WRAPPERS.key.removeprefix("a name in "), f"{module}:{name}"


def _vouched(place: str, path: Path, named: Sequence[str]) -> bool:
    module, _, inside = place.partition(":")
    if any(f"{module}.".startswith(f"{name}.") for name in named):
        return True
    if module.partition(".")[0] in KNOWN:
        return "." not in inside  # what such a module itself imports is not of it
    return _in_project(module, path)


def _in_project(module: str, path: Path) -> bool:
    """Whether all files that an import of it runs lie under the working directory, and none in the run of the model."""
    here, run = Path.cwd().resolve(), path.resolve()
    if run.parent.name == "checkpoints":
        run = run.parent
    if run.name in ("checkpoints", "best", "init", "model"):
        run = run.parent
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    elsewhere = [Path(sys.executable).resolve(), *(Path(sysconfig.get_path(name)).resolve() for name in names)]
    if run != here:  # who stands in a run has what is there for a project
        elsewhere.append(run)
    return all(
        file.is_relative_to(here) and not any(file.is_relative_to(other) for other in elsewhere)
        for file in _files(module)
    )


def _files(module: str) -> Iterator[Path]:
    """The files that importing `module` runs, found without an import; none of what is not there."""
    first, *parts = module.split(".")
    if not all(part.isidentifier() for part in (first, *parts)):
        return
    loaded = sys.modules.get(first)
    if loaded is not None and loaded.__spec__ is None:  # a script's __main__
        yield Path(getattr(loaded, "__file__", None) or sys.executable).resolve()
        return
    spec: ModuleSpec | None = importlib.util.find_spec(first)
    for number in range(len(parts) + 1):
        if spec is None:
            return
        if spec.origin is not None:  # else a namespace, which runs nothing
            yield Path(spec.origin if spec.has_location else sys.executable).resolve()
        if number < len(parts):
            spec = PathFinder.find_spec(parts[number], list(spec.submodule_search_locations or ()))
