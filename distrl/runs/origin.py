"""The weights that a run begins with, where those are of another run (`init_from`): found, compared, copied.

The copy in RUN/init is made before anything else of a run, and the run's own config names it. So neither a resume nor the
same run again needs what it was copied from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distrl.acting.network import flatten, unflatten
from distrl.errors import UserError
from distrl.files import write_directory
from distrl.json_format import json_text
from distrl.models.evaluate import load_model
from distrl.models.store import weights_sha256, write_model
from distrl.settings import dotted
from distrl.types import Array, EnvInfo, Origin, Policy

COPY = "init"  # in a run directory
# Of a policy's description: how it explores, which another run may do otherwise.
EXPLORING = {"ladder", "action_probs", "probs", "log_std_init"}
EPSILON = "epsilon"  # the weight that is of the new run's schedule
SETTINGS = {  # what a user sets of a description
    "network.hidden": "algorithm.hidden",
    "network.activation": "algorithm.activation",
    "network.layer_norm": "algorithm.layer_norm",
    "network.dueling": "algorithm.dueling",
    "network.memory": "algorithm.memory.size",
    "network.cell": "algorithm.memory.kind",
    "distribution.squash": "algorithm.squash",
    "distribution.state_dependent": "algorithm.state_dependent_std",
    "capacity": "algorithm.capacity",
}
OBSERVATIONS = ("obs_layout.",)  # what of a description the spaces say
SHAPES = ("obs_layout.shape", "action_layout.shape")
ACTIONS = ("action_layout.", "distribution.", "network.outputs", "first_action", "actions")


def read_origin(path: Path, policy: Policy, fresh: Array, info: EnvInfo) -> Origin:
    """The weights of a run, a checkpoint, a model or an exported file for the policy of a new run.

    Args:
        fresh: [P] weights of its own, of which it keeps epsilon
        info: of the new run's env
    Raises:
        UserError: there is no model, or one of other spaces or another network
    """
    try:
        found, _, about = load_model(path)
    except UserError as error:
        raise UserError(f"init_from: {error}") from None
    there, here = _description(found), _description(policy)
    if there != here:
        raise UserError(f"init_from: the model of {path} does not fit this run. {_misfit(there, here, about, info)}")
    arrays = found.arrays()
    if EPSILON in arrays:
        arrays[EPSILON] = unflatten(fresh, policy.shapes())[EPSILON]
    source = about.get("origin") or {"path": str(path), "weights_sha256": weights_sha256(found)}
    return Origin(flatten(arrays, policy.shapes()).astype(fresh.dtype), int(about["env_steps"]), source)


def copy_origin(run_dir: Path, policy: Policy, origin: Origin, about: Mapping[str, Any]) -> None:
    """Write RUN/init, where it is not there yet. `about`: JSON of the env and the algorithm."""
    if not (run_dir / COPY).exists():
        told = {**about, "version": 0, "env_steps": origin.env_steps, "origin": origin.source}
        write_directory(run_dir / COPY, lambda directory: write_model(directory, policy, origin.vector, told))


def _description(policy: Policy) -> Any:
    """As plain JSON, without what may differ."""

    def without(data: Any) -> Any:
        if isinstance(data, dict):
            return {name: without(below) for name, below in data.items() if name not in EXPLORING}
        return [without(below) for below in data] if isinstance(data, list) else data

    return without(json.loads(json_text(policy.describe())))


def _misfit(there: Any, here: Any, about: Mapping[str, Any], info: EnvInfo) -> str:
    """What differs, and the remedy: of the spaces first, which no setting mends."""
    if misfit := _other_spaces(there.get("inner", there), here.get("inner", here), about, info):
        return misfit
    normalised = [description["type"] == "normalised" for description in (there, here)]
    if normalised[0] != normalised[1]:
        what = "sees normalised observations" if normalised[0] else "sees observations as they are"
        return f"It {what}, and this run's does not. Set normalize.obs={json.dumps(normalised[0])}."
    if all(normalised):
        there, here = there["inner"], here["inner"]
    if {there["type"], here["type"]} == {"stochastic", "recurrent"}:
        memory = {"kind": there["network"].get("cell"), "size": there["network"].get("memory")}
        what, remedy = "remembers", f"algorithm.memory={json.dumps(memory)} algorithm.shared_body=true"
        if memory["size"] is None:
            what, remedy = "remembers nothing", "algorithm.memory=null"
        return f"It {what}, and this run's policy does not do so. Set {remedy}."
    if there["type"] != here["type"]:
        return (
            f"Its policy is {there['type']}, and this run trains one that is {here['type']}. Take the model of an algorithm that "
            f"has the same kind of policy: that one was trained by {about.get('algorithm')}."
        )
    old, new = dotted(there), dotted(here)
    different = [name for name in old | new if old.get(name) != new.get(name)]
    told = ", ".join(f"{name} ({_short(old.get(name))} there, {_short(new.get(name))} here)" for name in different)
    if known := [name for name in different if name in SETTINGS and name in old and name in new]:
        changes = " ".join(f"{SETTINGS[name]}={json.dumps(old[name])}" for name in known)
        return f"Its network is another one: {told}. Set {changes}."
    return f"They differ in {told}. Set what says so (algorithm.body, algorithm.coding) as the config of the model's run has it."


def _other_spaces(there: Any, here: Any, about: Mapping[str, Any], info: EnvInfo) -> str:
    """What differs of the spaces; '' where nothing does."""
    old, new = dotted(there), dotted(here)
    different = [name for name in old | new if old.get(name) != new.get(name)]
    known = any(name in SETTINGS and name in old and name in new for name in different)
    actions = () if known or there["type"] != here["type"] else ACTIONS
    for kind, parts in (("Observations", OBSERVATIONS), ("Actions", actions)):
        if own := [name for name in different if name.startswith(parts)]:
            own = [name for name in own if name in SHAPES] or own  # of another size all else differs, too
            told = ", ".join(f"{name} ({_short(old.get(name))} there, {_short(new.get(name))} here)" for name in own)
            return (
                f"{kind} of {about['env']['id']}, which it was trained on, are not those of {info.id}: {told}. Take a model "
                "whose env has the same spaces, or wrap the env so that it has those of the model."
            )
    return ""


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
