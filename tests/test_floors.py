"""Who may import whom: a file imports from its own room and those below it, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The rooms, lowest first: a file imports from its own room and from those below.
ROOMS = [
    [
        "types",
        "layouts",
        "sizes",
        "descriptions",
        "yaml_format",
        "json_format",
        "settings",
        "errors",
        "heartbeat",
        "seeding",
        "files",
        "signals",
        "outside",
        "fragments",
        "stores",
    ],
    ["registry", "presets", "aliases", "schema", "config"],
    ["envs.*"],
    ["acting.*"],
    ["learning.*"],
    ["algorithms.*"],
    ["workers.*"],
    ["execution.*"],
    ["models.*"],
    ["training.*"],
    ["tracking.*"],
    ["storage.*"],
    ["reports.*"],
    ["runs.*"],
    ["tools.*"],
    ["cli.*", "", "__main__"],
]
# Libraries, and the only modules that may import them.
OWNERS = {
    "ray": [
        "execution.cluster",
        "execution.own_ray",
        "execution.other_ray",
        "execution.jobs",
        "execution.probe",
        "execution.room",
        "tools.peer_rllib",
        "execution.cluster_files",
        "execution.gauges",
        "execution.tune",
    ],
    "yaml": ["yaml_format"],
    "pyarrow": ["storage.place"],
    "mlflow": [
        "tracking.follower",
        "tracking.mlflow_model",
        "tracking.mlflow_files",
        "tracking.mlflow_store",
        "tracking.registry",
    ],
    "torch": [
        "acting.modules",
        "learning.*",
        "algorithms.*",
        "workers.learner",
        "workers.holding",
        "workers.learners",
        "tools.doctor",
    ],  # doctor tells what torch sees
}


def module_name(path: Path) -> str:
    """'envs.shard' for distrl/envs/shard.py, 'envs' for distrl/envs/__init__.py, '' for distrl/__init__.py."""
    parts = path.relative_to(ROOT / "distrl").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / "distrl").rglob("*.py"))}


def matches(module: str, patterns: list[str]) -> bool:
    return any(
        module in (p, p.removesuffix(".*")) or (p.endswith(".*") and module.startswith(p[:-1])) for p in patterns
    )


def height(module: str) -> int:
    heights = [number for number, patterns in enumerate(ROOMS) if matches(module, patterns)]
    assert len(heights) == 1, f"distrl/{module.replace('.', '/')}.py has no room: give it one in this file"
    return heights[0]


def imports(module: str) -> Iterator[str]:
    """Full names of all that a module imports, at its head or anywhere in it."""
    path = FILES[module]
    package = ["distrl", *module.split(".")] if module else ["distrl"]
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # the name may be a module of its own
                below = f"{source}.{alias.name}".removeprefix("distrl.")
                yield f"distrl.{below}" if below in FILES and source.startswith("distrl") else source


def own_imports(module: str) -> set[str]:
    """Modules of distrl that a module imports, without 'distrl.'."""
    names = {name.partition(".")[2] for name in imports(module) if name.partition(".")[0] == "distrl"}
    assert names <= FILES.keys(), f"{module} imports {names - FILES.keys()}, which is not there"
    return names


def test_the_parser_sees_all_kinds_of_imports() -> None:
    """The tests below prove nothing where imports are overlooked."""
    assert {"settings", "envs.shard", "acting.network", "seeding", "types"} <= own_imports("workers.runner")
    assert {"runs.run", "models.player"} <= own_imports("")  # lazily
    assert "ray" in set(imports("execution.own_ray"))  # in functions
    assert "torch" in set(imports("learning.networks"))
    assert len(FILES) > 20


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_from_no_higher_room(module: str) -> None:
    higher = {name for name in own_imports(module) if height(name) > height(module)}
    assert not higher, f"{module} imports what lies above it"


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module: own_imports(module) for module in FILES if module}
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in finished and module:
            for name in graph[module]:
                visit(name, (*path, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("library", OWNERS)
def test_a_heavy_library_is_imported_only_where_it_belongs(library: str) -> None:
    users = {module for module in FILES if any(name.partition(".")[0] == library for name in imports(module))}
    assert users, "nobody imports it: the table is out of date"
    assert {module for module in users if not matches(module, OWNERS[library])} == set()


def test_every_library_that_is_imported_is_declared_and_pinned() -> None:
    """Else an installation has it only as long as another library happens to need it."""
    used = {name.partition(".")[0] for module in FILES for name in imports(module)}
    modules = used - {"distrl", *sys.stdlib_module_names}
    packages = importlib.metadata.packages_distributions()
    declared = {
        re.match(r"[\w-]+", line)[0].lower()
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    }
    pinned = {line.partition("==")[0] for line in (ROOT / "scripts" / "constraints.txt").read_text().splitlines()}
    assert len(modules) > 10
    undeclared = {m for m in modules if not {p.lower() for p in packages[m]} & declared & pinned}
    assert undeclared == set()


def test_runners_evaluators_and_drivers_load_neither_torch_nor_ray_nor_mlflow() -> None:
    modules = "distrl.workers.runner, distrl.workers.evaluator, distrl.acting.policies, distrl.models.player, distrl.cli, distrl.runs.run"
    code = f"import sys, {modules}; print(*{{'torch', 'ray', 'mlflow', 'matplotlib'}} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.split() == []
