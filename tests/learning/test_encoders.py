"""Encoders: what acts against what learns, and both against what they should be by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from toys import states

from distrl.acting.encoders import AT_ONCE, Encoder, encode
from distrl.acting.network import Network as NumpyNetwork
from distrl.acting.network import NetworkSpec, single_threaded
from distrl.acting.spaces import network_spec
from distrl.errors import UserError
from distrl.layouts import observation_layout
from distrl.learning.encoders import Masks
from distrl.learning.networks import Network
from distrl.types import Array, EnvInfo

CHW, HWC = Box(0, 255, (3, 40, 57), np.uint8), Box(0, 255, (40, 57, 3), np.uint8)
VECTOR = Box(-np.inf, np.inf, (4,), np.float64)


def info_of(space: gym.Space[Any]) -> EnvInfo:
    return EnvInfo("Some-v0", space, Discrete(2), None, None, (), 30)


def made(space: gym.Space[Any], body: Any = "auto") -> tuple[NumpyNetwork, Network]:
    """Both networks, of the same random weights."""
    spec = network_spec(info_of(space), 5, body, hidden=(16,))
    vector = spec.initial(np.random.default_rng(0), 1.0) + np.random.default_rng(1).normal(0, 0.02, spec.parameters)
    acting = NumpyNetwork(spec)
    acting.load(vector.astype(np.float32))
    return acting, Network(spec, acting.vector)


def samples(space: gym.Space[Any], count: int = AT_ONCE + 4) -> Array:
    space.seed(0)
    layout = observation_layout(space)
    return np.stack([layout.pack(space.sample()) for _ in range(count)])


SPACES: dict[str, tuple[gym.Space[Any], Any]] = {
    "images": (CHW, "auto"),
    "channels last": (HWC, "auto"),
    "small": (Box(0, 255, (7, 7, 3), np.uint8), "auto"),
    "bools": (Box(0, 1, (10, 10, 6), bool), "auto"),
    "flat image": (CHW, "mlp"),
    "pixels left over on the right and below": (Box(0, 255, (3, 47, 38), np.uint8), "cnn"),
    "left over, channels last": (Box(0, 255, (39, 46, 3), np.uint8), "small_cnn"),
    "floats as an image": (Box(0, 1, (1, 40, 40), np.float32), "small_cnn"),
    "discrete": (Discrete(7, start=-3), "auto"),
    "multi": (MultiDiscrete([[2, 5], [3, 4]], start=[[0, -1], [2, 3]]), "auto"),
    "bits": (MultiBinary((2, 3)), "auto"),
    "all": (Dict({"a": Tuple((HWC, MultiDiscrete([3, 2]))), "b": VECTOR, "c": MultiBinary(3), "d": CHW}), "auto"),
}


@pytest.fixture(autouse=True)
def _single_threaded() -> None:
    single_threaded()


@pytest.mark.parametrize("name", SPACES)
def test_numpy_and_torch_compute_the_same(name: str) -> None:
    space, body = SPACES[name]
    acting, learning = made(space, body)
    obs = samples(space)
    wanted = learning(torch.tensor(obs)).detach().numpy()
    assert np.ptp(wanted, axis=0).min() > 1e-3
    np.testing.assert_allclose(acting(obs), wanted, rtol=1e-5, atol=1e-5)
    named = {key.removeprefix("body."): tuple(parameter.shape) for key, parameter in learning.named_parameters()}
    assert named == acting.spec.shapes() and list(named) == list(acting.spec.shapes())


def test_channels_first_and_last_are_the_same_image() -> None:
    (first, _), (last, learning) = made(CHW), made(HWC)
    assert [encoder.channels_last for encoder in (*first.spec.encoders, *last.spec.encoders)] == [False, True]
    obs = samples(CHW)
    turned = np.ascontiguousarray(obs.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(first(obs), last(turned), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(first(obs), learning(torch.tensor(turned)).detach(), rtol=1e-5, atol=1e-5)


def test_a_kernel_is_whole_squares_of_its_stride() -> None:
    about = json.loads(json.dumps(asdict(made(CHW)[0].spec)))
    NetworkSpec.from_description(about)
    about["encoders"][0]["conv"][0] = [32, 8, 3]
    with pytest.raises(ValueError, match="no multiple of its stride"):
        NetworkSpec.from_description(about)


def test_numbers_of_a_kind_become_columns() -> None:
    (part,) = observation_layout(MultiDiscrete([2, 3], start=[1, -1])).parts
    assert encode(Encoder(part), np.array([[1, -1], [2, 1]]), {}).tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]
    (part,) = observation_layout(Discrete(3, start=4)).parts
    assert encode(Encoder(part), np.array([6, 4]), {}).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_features_of_all_parts_stand_side_by_side() -> None:
    space = Dict({"a": Discrete(3), "b": Box(0, 255, (2,), np.uint8), "c": VECTOR})
    acting, _ = made(space)
    obs = observation_layout(space).pack({"a": 1, "b": np.array([255, 51]), "c": np.array([1.0, 2, 3, 4])})[None]
    features = np.concatenate([encode(encoder, obs, {}) for encoder in acting.spec.encoders], axis=1)
    np.testing.assert_allclose(features, [[0, 1, 0, 1, 0.2, 1, 2, 3, 4]])
    assert acting.spec.shapes()["hidden.0.weight"] == (16, 9)


@pytest.mark.parametrize(
    ("space", "kernels", "scale"),
    [
        (CHW, [8, 4, 3], 1 / 255),
        (Box(0, 255, (3, 20, 84), np.uint8), [3, 3], 1 / 255),
        (Box(0, 255, (7, 7, 3), np.uint8), [3, 3], 1.0),  # symbols, not light
        (Box(0, 1, (10, 10, 4), bool), [3, 3], 1.0),
        (Box(0, 255, (3, 3, 3), np.uint8), [], 1 / 255),
        (Box(0, 1, (3, 40, 40), np.float32), [], 1.0),
    ],
)
def test_images_are_known_by_their_axes_and_bytes(space: Box, kernels: list[int], scale: float) -> None:
    (encoder,) = network_spec(info_of(space), 2).encoders
    assert [kernel for _, kernel, _ in encoder.conv] == kernels
    assert encoder.scale == pytest.approx(scale)


def test_a_body_for_images_needs_one() -> None:
    space = Dict({"image": CHW, "speed": VECTOR})
    spec = network_spec(info_of(space), 2, "small_cnn")
    assert [len(encoder.conv) for encoder in spec.encoders] == [2, 0]
    with pytest.raises(
        UserError, match=r"'grid', which takes images .* at least 5 pixels; observations of Some-v0 are"
    ):
        network_spec(info_of(VECTOR), 2, "grid")


def test_what_is_free_is_the_same_in_every_state_and_learns() -> None:
    spec = replace(network_spec(info_of(VECTOR), 2), free=3)
    vector = spec.initial(np.random.default_rng(0), 1.0)
    assert not vector[:3].any()
    vector[:3] = [1, 2, 3]
    acting = NumpyNetwork(spec)
    acting.load(vector)
    learning = Network(spec, vector)
    obs = samples(VECTOR)
    out = learning(torch.tensor(obs))
    assert (out[:, 2:] == torch.tensor([1.0, 2, 3])).all()
    np.testing.assert_allclose(acting(obs), out.detach(), rtol=1e-5, atol=1e-5)
    out[:, 2:].sum().backward()
    assert learning.free.grad is not None
    assert learning.free.grad.tolist() == [len(obs)] * 3


@pytest.mark.parametrize("kind", ["dict", "info", "states", "none"])
def test_masks_are_the_same_in_both_halves(kind: str) -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((20, 3)) < 0.5
    masks[:, 1] = True
    if kind == "states":
        layout = states(20, 3, masks, start=4)
        obs = np.arange(20) + 4
    elif kind == "none":
        layout, obs = states(20, 3), np.arange(20)
    else:
        space: gym.Space[Any] = HWC if kind == "info" else Dict({"action_mask": MultiBinary(3), "seen": HWC})
        layout = observation_layout(space, (3,), in_info=kind == "info")
        images = [HWC.sample() for _ in range(20)]
        obs = np.stack(
            [
                layout.pack(image, mask) if kind == "info" else layout.pack({"seen": image, "action_mask": mask})
                for image, mask in zip(images, masks, strict=True)
            ]
        )
    found, of_torch = layout.mask_of(obs), Masks(layout)(torch.tensor(obs))
    if kind == "none":
        assert found is None
        assert of_torch is None
    else:
        assert found is not None
        assert found.tolist() == of_torch.tolist() == masks.tolist()
