"""A trained policy as a file for programs that have no distrl: ONNX, TorchScript, safetensors.

What was written is run on real observations and held against the policy (distrl.models.trial) before it takes its place.
Lines that say how it fared are returned.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load, save

from distrl.acting.team import TeamPolicy
from distrl.envs.make import describe_env
from distrl.errors import UserError, reading
from distrl.files import draft
from distrl.json_format import json_text
from distrl.models.store import described, env_of, load_weights, parse_json, read_described, versions, weights_sha256
from distrl.models.trial import REMEMBERS, Trial, best, compare, input_names, observe, output_names
from distrl.types import Array, Arrays, EnvInfo, Policy

if TYPE_CHECKING:
    from types import ModuleType

KEY = "policy.json"  # of the description in the metadata of safetensors


def played(policy: Policy, about: dict[str, Any], team: TeamPolicy | None = None) -> tuple[EnvInfo, Trial]:
    """The policy's env, and what it sees there. `team`: that it is a member of, and plays with."""
    env = env_of(Path(KEY), about)
    info = describe_env(env)
    if team is None:
        return info, observe(policy, info, env)
    info = replace(info, groups={member.name: member.agents for member in team.members})
    info = info.of(policy.obs_layout.agents[0])
    return info, observe(policy, info, env, team)


def write_onnx(policy: Policy, about: dict[str, Any], out: Path, team: TeamPolicy | None = None) -> list[str]:
    """Write ONNX. Raises `UserError` where a package is missing, or onnxruntime computes something else."""
    onnx, onnxruntime = (_package(name, "onnx") for name in ("onnx", "onnxruntime"))
    from distrl.learning import greedy

    if twice := sorted({*input_names(policy)} & {*output_names(policy)}):
        raise UserError(
            f"ONNX has one name for one thing, and {twice[0]!r} is a part of the observations and of the actions. Take "
            "--format torchscript."
        )
    info, trial = _as_files_take_it(*played(policy, about, team))
    first = {f"input_{i}": x[:2] for i, x in enumerate(trial.inputs.values())}  # torch changes names that are numbers
    outputs = [f"output_{i}" for i in range(len(output_names(policy)))]
    with draft(out) as path:
        greedy.write_onnx(policy, first, outputs, path)
        model = onnx.load(path)
        _rename(model.graph, dict(zip([*first, *outputs], [*trial.inputs, *output_names(policy)], strict=True)))
        model.producer_name, model.producer_version = "distrl", importlib.metadata.version("distrl")
        onnx.helper.set_model_props(model, _metadata(policy, about, info))
        onnx.checker.check_model(model)
        onnx.save(model, path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return compare(policy, trial, lambda inputs: session.run(None, inputs), f"{out.name} in onnxruntime")


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Give what goes into and comes out of an ONNX graph other names."""
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [names.get(name, name) for name in ends]


def write_torchscript(policy: Policy, about: dict[str, Any], out: Path, team: TeamPolicy | None = None) -> list[str]:
    """Write TorchScript. Raises `UserError` where it computes something else."""
    from distrl.learning import greedy

    info, trial = _as_files_take_it(*played(policy, about, team))
    first = {name: x[:2] for name, x in trial.inputs.items()}
    with draft(out) as path:
        greedy.write_torchscript(policy, first, path, _metadata(policy, about, info))
        return compare(policy, trial, greedy.read_torchscript(path), f"{out.name} in torch.jit")


def write_safetensors(policy: Policy, about: dict[str, Any], out: Path, team: TeamPolicy | None = None) -> list[str]:
    """Write the weights, with all of policy.json in the metadata. Raises `UserError` where they come back as others."""
    _, trial = played(policy, about, team)
    names = [name for name in input_names(policy) if name != REMEMBERS[0]]
    with draft(out) as path:
        kept = {name: value for name, value in about.items() if name not in ("sha256", "checksum")}  # of another file
        text = json_text(described(policy, kept))
        arrays = {name: np.asarray(array, order="C") for name, array in policy.arrays().items()}
        path.write_bytes(save(arrays, {KEY: text}))
        again, _ = read_safetensors(path)

        def run(inputs: Arrays) -> Sequence[Array]:
            arrays = [inputs[name] for name in names]
            mask = arrays.pop() if again.obs_layout.mask is not None else None
            return best(again, again.obs_layout.join(arrays, mask), inputs.get(REMEMBERS[0]))

        return compare(policy, trial, run, out.name)


def read_safetensors(path: Path) -> tuple[Policy, dict[str, Any]]:
    """The policy that `write_safetensors` wrote, and what is known of it. Raises `UserError` for any other file."""
    with reading(f"{path} is not a model that 'distrl export' wrote as safetensors"):
        with safe_open(path, "numpy") as file:
            about = parse_json((file.metadata() or {})[KEY], KEY)
        policy = read_described(path, about)
        load_weights(policy, load(path.read_bytes()))
    return policy, about


def _as_files_take_it(info: EnvInfo, trial: Trial) -> tuple[EnvInfo, Trial]:
    from distrl.learning.greedy import file_dtype

    inputs = {name: x.astype(file_dtype(str(x.dtype)), copy=False) for name, x in trial.inputs.items()}
    return info, replace(trial, inputs=inputs)


def _metadata(policy: Policy, about: dict[str, Any], info: EnvInfo) -> dict[str, str]:
    """What a file says of itself, as texts by name."""
    return {
        "env_id": info.id,
        "agents": json_text(policy.obs_layout.agents),
        "env": json_text(about["env"]),
        "algorithm": str(about.get("algorithm")),
        "observation_space": str(info.observation_space),
        "action_space": str(info.action_space),
        "inputs": json_text(input_names(policy)),
        "outputs": json_text(output_names(policy)),
        "weights_sha256": weights_sha256(policy),
        "version": str(about["version"]),
        "env_steps": str(about["env_steps"]),
        "versions": json_text(versions()),
    }


def _package(name: str, format: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(f"--format {format} needs the package {name}: pip install onnx onnxruntime") from None
