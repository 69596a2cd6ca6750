"""How much one has to read to follow one update, what is large, and which rooms import from which.

    python scripts/count.py

`ON_THE_WAY` names what an update goes through, from the loop to the optimiser's step, as whole classes and functions with
their docstrings and comments. tests/test_sizes.py holds the limits.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "distrl"
LARGEST_CLASS, LARGEST_FUNCTION = 300, 60
LOOP = [
    "training.trainer:Trainer",
    "training.collector:Collector",
    "training.schedule:Lockstep",
    "training.updates:Updates",
]
TORCH = ["learning.networks:Body", "learning.networks:Network", "learning.optimizer:FlatParameters"]
TORCH += ["learning.optimizer:Optimizer", "learning.optimizer:Adam"]
CHAIN = [f"learning.gradients:{name}" for name in ("tracing", "written", "of_body", "of_head", "linear", "relu")]
ON_THE_WAY = {  # of an update: the classes, whole; the functions that they call; the most lines of the classes
    "PPO": (
        [
            *LOOP,
            "training.feed:OnPolicyFeed",
            "workers.learner:Learner",
            "algorithms.ppo:PPO",
            "algorithms.actor_critic:ActorCritic",
            "algorithms.actor_critic:ActorCriticBatch",
            "learning.scale:Scale",
            "learning.schedules:KLControl",
            *TORCH,
        ],
        [
            "fragments:unstacked",
            "fragments:true_successors",
            "fragments:after_waiting",
            "algorithms.actor_critic:advantages",
            "workers.learner:check_finite",
            "learning.losses:vtrace",
            "learning.losses:discounted_sum",
            "learning.losses:normalised",
            "learning.losses:clipped_surrogate",
            "learning.losses:value_loss",
            "learning.losses:approximate_kl",
            "learning.losses:explained_variance",
            "learning.gradients:tracing_pair",
            *CHAIN,
            "learning.optimizer:too_long",
            "learning.optimizer:fused_adam_step",
        ],
        700,
    ),
    "DQN": (
        [
            *LOOP,
            "training.feed:ReplayFeed",
            "workers.replay:Replay",
            "workers.sumtree:SumTree",
            "workers.learner:Learner",
            "workers.holding:HoldsReplays",
            "algorithms.dqn:DQN",
            *TORCH,
        ],
        [
            "workers.replay:updates_due",
            "workers.replay:steps_left",
            "learning.drawn:join",
            "learning.drawn:learn_from",
            "workers.learner:check_finite",
            "learning.losses:td_target",
            "learning.losses:greedy_value",
            "learning.losses:huber_loss",
            "learning.losses:huber_slope",
            *CHAIN,
            "learning.optimizer:too_long",
            "learning.optimizer:fused_adam_step",
        ],
        970,
    ),
}


@dataclass(frozen=True)
class Definition:
    """A class or a function, at any depth."""

    module: str  # without 'distrl.'
    name: str  # with the names of what it stands in
    kind: str  # class or function
    lines: int


def trees() -> dict[str, ast.Module]:
    """Every module of distrl, parsed, by its name without 'distrl.'."""
    paths = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {name.removesuffix(".__init__"): ast.parse(path.read_text("utf-8")) for name, path in paths.items()}


def definitions() -> list[Definition]:
    """All classes and functions of distrl, the largest first."""

    def inside(node: ast.AST, module: str, above: str) -> Iterator[Definition]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                kind = "class" if isinstance(child, ast.ClassDef) else "function"
                yield Definition(module, above + child.name, kind, (child.end_lineno or first) - first + 1)
                yield from inside(child, module, f"{above}{child.name}.")
            else:
                yield from inside(child, module, above)

    found = [definition for module, tree in trees().items() for definition in inside(tree, module, "")]
    return sorted(found, key=lambda definition: -definition.lines)


def lines_of(parts: list[str]) -> dict[str, int]:
    """The lines of each part, named `module:Name`. Raises KeyError for one that is not there."""
    known = {f"{definition.module}:{definition.name}": definition.lines for definition in definitions()}
    return {part: known[part] for part in parts}


def files(*parts: str) -> set[str]:
    return {part.partition(":")[0] for part in parts}


def arrows() -> dict[tuple[str, str], int]:
    """Which room (a folder) imports from which other one, and by how many pairs of files. All may use what is in no folder."""

    def room(module: str) -> str:
        return module.rpartition(".")[0].partition(".")[0] or module

    pairs = set()
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("distrl."):
                pairs.add((module, node.module.removeprefix("distrl.")))
    found = [(room(module), room(other)) for module, other in pairs if (PACKAGE / room(other)).is_dir()]
    return {pair: found.count(pair) for pair in sorted(set(found)) if pair[0] != pair[1]}


def main() -> None:
    for name, (classes, functions, most) in ON_THE_WAY.items():
        lines, called = lines_of(classes), lines_of(functions)
        print(f"one {name} update: {sum(lines.values())} lines of whole classes (at most {most}),")
        print(
            f"    and {sum(called.values())} of {len(called)} functions that they call, in {len(files(*lines, *called))} files"
        )
        for part, count in sorted((lines | called).items(), key=lambda item: -item[1]):
            print(f"    {count:4}  {part}")
    for kind, most in (("class", LARGEST_CLASS), ("function", LARGEST_FUNCTION)):
        print(f"the largest of kind {kind} (at most {most})")
        for definition in [d for d in definitions() if d.kind == kind][:5]:
            print(f"    {definition.lines:4}  {definition.module}:{definition.name}")
    found = arrows()
    print(f"imports from room to room: {len(found)} arrows, of {sum(found.values())} pairs of files")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
