"""Observations and actions of every space, as flat arrays and back."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Text, Tuple
from toys import same

from distrl.layouts import Layout, action_layout, choices_of, observation_layout

IMAGE = Box(0, 255, (5, 6, 3), np.uint8)
VECTOR = Box(-np.inf, np.inf, (4,), np.float64)
SPACES: dict[str, gym.Space[Any]] = {
    "vector": VECTOR,
    "image": IMAGE,
    "discrete": Discrete(4, start=-2),
    "multi": MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, 3]]),
    "bits": MultiBinary((2, 3)),
    "image and vector": Dict({"image": IMAGE, "speed": VECTOR, "on": Discrete(2)}),
    "nested": Tuple((Dict({"b": Tuple((Discrete(3), IMAGE)), "a": Box(0, 1, (2, 2), np.float16)}), MultiBinary(3))),
    "floats": Dict({"x": VECTOR, "y": Box(0, 1, (), np.float32)}),
    "whole numbers": Tuple((Discrete(32), MultiDiscrete([3, 4], start=[1, 1]), MultiBinary(2))),
    "odd types": Dict(
        {"a": Box(0, 1, (3,), bool), "b": Box(0, 9, (1,), np.uint16), "c": Box(0, 2**40, (1,), np.uint64)}
    ),
}


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, tuple):
        return isinstance(right, tuple) and len(left) == len(right) and all(map(equal, left, right))
    return bool(np.array_equal(np.asarray(left).astype(np.asarray(right).dtype), right))


@pytest.mark.parametrize("name", SPACES)
def test_nothing_is_lost_on_the_way(name: str) -> None:
    space = SPACES[name]
    layout = observation_layout(space)
    for seed in range(5):
        space.seed(seed)
        value = space.sample()
        flat = layout.pack(value)
        assert (flat.shape, flat.dtype) == (layout.shape, layout.dtype)
        assert equal(value, layout.unpack(flat))


@pytest.mark.parametrize("name", SPACES)
def test_a_batch_lies_as_single_ones_do(name: str) -> None:
    space = SPACES[name]
    layout = observation_layout(space)
    flat = np.stack([layout.pack(space.sample()) for _ in range(6)])
    assert same(layout.pack(layout.unpack(flat)), flat)
    for part in layout.parts:
        found = part.of(flat)
        assert (found.shape, found.dtype) == ((6, *part.shape), part.dtype)
        assert np.array_equal(part.of(flat.reshape(2, 3, *layout.shape))[1, 2], found[5])
        assert same(layout.join([part.of(flat) for part in layout.parts]), flat)


@pytest.mark.parametrize("name", SPACES)
def test_a_layout_survives_its_description_in_json(name: str) -> None:
    layout = observation_layout(SPACES[name])
    assert Layout.from_description(json.loads(json.dumps(layout.describe(), allow_nan=False))) == layout


def test_single_arrays_travel_as_they_are_and_others_in_their_own_type_where_they_share_one() -> None:
    forms = {name: (observation_layout(space).dtype, observation_layout(space).shape) for name, space in SPACES.items()}
    assert forms == {
        "vector": ("float32", (4,)),
        "image": ("uint8", (5, 6, 3)),
        "discrete": ("int64", ()),
        "multi": ("int64", (2, 2)),
        "bits": ("int8", (2, 3)),
        "image and vector": ("uint8", (90 + 6 + 16 + 8,)),  # Dicts are sorted: image, on (aligned to 8), speed
        "nested": ("uint8", (8 + 8 + 90 + 3 + 3,)),  # a, b.0, b.1, and bits; padded to 8
        "floats": ("float32", (5,)),
        "whole numbers": ("int64", (5,)),
        "odd types": ("uint8", (3 + 1 + 4 + 8,)),
    }


def test_images_cost_a_byte_a_pixel_and_floats_keep_their_bits() -> None:
    layout = observation_layout(SPACES["image and vector"])
    speed = np.array([np.pi, -1e-30, np.inf, 3e38])
    flat = layout.pack({"image": np.full((5, 6, 3), 7, np.uint8), "speed": speed, "on": 1})
    image, on, found = (part.of(flat) for part in layout.parts)
    assert same(found, speed.astype(np.float32))
    assert image.tobytes() == bytes([7] * 90)
    assert on == 1
    assert image.base is not None  # a view


@pytest.mark.parametrize(
    ("obs", "complaint"),
    [
        ({"image": np.zeros((5, 6, 3), np.uint8), "on": 1}, "'speed' is missing"),
        ({"image": np.zeros((6, 5, 3), np.uint8), "on": 1, "speed": np.zeros(4)}, r"'image' has shape \[6, 5, 3\]"),
        ({"image": np.zeros((5, 6, 3), np.uint8), "on": 1, "speed": np.zeros(1)}, r"the space says \[4\]"),
        (np.zeros(4), "missing"),
    ],
)
def test_what_does_not_fit_the_space_is_refused(obs: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        observation_layout(SPACES["image and vector"]).pack(obs)
    with pytest.raises(ValueError, match=r"has shape \[3\], the space says \[4\]"):
        observation_layout(VECTOR).pack(np.zeros(3))


def test_spaces_that_cannot_travel_are_refused_by_name() -> None:
    graph = Graph(Box(0, 1, (2,)), None)
    for space, complaint in [
        (Text(5), "nothing else than text"),
        (graph, "Graph"),
        (Dict({"a": Tuple((VECTOR, graph))}), "a.1"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            observation_layout(space)
    with pytest.raises(ValueError, match="'word' is a Text"):
        action_layout(Dict({"word": Text(5), "x": VECTOR}))


def test_texts_beside_other_parts_are_left_out() -> None:
    layout = observation_layout(Dict({"image": IMAGE, "mission": Text(50)}))
    assert layout.unread == ("mission",)
    assert [part.name for part in layout.parts] == ["image"]
    layout.pack({"image": np.zeros((5, 6, 3), np.uint8), "mission": "go there"})


# --- masks ------------------------------------------------------------------------------------------------------

CARDS = Dict({"observation": Box(0, 1, (3, 3), np.int8), "action_mask": Box(0, 1, (4,), np.int8)})


def test_a_mask_in_a_dict_is_a_part_that_is_not_seen() -> None:
    layout = observation_layout(CARDS, (4,))
    assert [part.name for part in layout.parts] == ["observation"]
    flat = layout.pack({"observation": np.eye(3), "action_mask": np.array([0, 1, 1, 0])})
    assert layout.masked
    assert layout.mask_of(np.stack([flat, flat])).tolist() == [[False, True, True, False]] * 2  # type: ignore[union-attr]
    seen = observation_layout(CARDS)  # nothing can be masked: a part like any other
    assert [part.name for part in seen.parts] == ["action_mask", "observation"]
    assert seen.mask_of(seen.pack({"observation": np.eye(3), "action_mask": np.zeros(4)})) is None


def test_a_mask_of_the_info_is_laid_behind_the_observation() -> None:
    for space, value in [(VECTOR, np.arange(4.0)), (Discrete(9), 7), (SPACES["image and vector"], None)]:
        layout = observation_layout(space, (2, 3), in_info=True)
        value = space.sample() if value is None else value
        flat = layout.pack(value, np.array([1, 0, 0, 0, 1]))
        assert layout.mask_of(flat).tolist() == [True, False, False, False, True]  # type: ignore[union-attr]
        assert equal(value, layout.unpack(flat))
        assert Layout.from_description(json.loads(json.dumps(layout.describe()))) == layout


def test_masks_of_all_states_are_looked_up() -> None:
    masks = np.array([[1, 0], [0, 1], [1, 1]], bool)
    layout = observation_layout(Discrete(3, start=5), (2,), states=masks)
    assert layout.plain
    assert layout.masked
    assert layout.mask_of(np.array([7, 5])).tolist() == [[True, True], [True, False]]  # type: ignore[union-attr]
    assert Layout.from_description(json.loads(json.dumps(layout.describe()))) == layout


def test_masks_of_several_choices_may_lie_in_a_tuple() -> None:
    """As `MultiDiscrete.sample(mask)` and `Tuple.sample(mask)` of gymnasium take them."""
    layout = observation_layout(VECTOR, (2, 3), in_info=True)
    whole = layout.pack(np.zeros(4), np.array([1, 0, 0, 1, 1]))
    for mask in [(np.array([1, 0]), np.array([0, 1, 1])), ([1, 0], ([0, 1, 1],)), (1, 0, 0, 1, 1)]:
        assert (layout.pack(np.zeros(4), mask) == whole).all()
    with pytest.raises(ValueError, match=r"the action mask \[\[1, 0\], \[0, 1, 1\]\] is no array of numbers"):
        layout.pack(np.zeros(4), [[1, 0], [0, 1, 1]])


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (np.ones(4), r"has shape \[4\], and there are 5 choices"),
        (np.zeros(5), "allows nothing"),
        (np.array([1, 1, 0, 0, 0]), "allows nothing"),  # of the second choice
        (None, "no 'action_mask'"),
    ],
)
def test_masks_that_leave_no_choice_are_refused_but_at_an_end(mask: Any, complaint: str) -> None:
    layout = observation_layout(VECTOR, (2, 3), in_info=True)
    with pytest.raises(ValueError, match=complaint):
        layout.pack(np.zeros(4), mask)
    if mask is None or mask.size == 5:
        flat = layout.pack(np.zeros(4), mask, over=True)
        assert layout.mask_of(flat)[2:].all()  # type: ignore[index]


def test_a_mask_of_another_size_than_the_actions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'action_mask' has shape \[4\], and there are 3 choices"):
        observation_layout(CARDS, (3,))


# --- actions ----------------------------------------------------------------------------------------------------


def test_actions_come_out_as_the_space_has_them() -> None:
    space = Dict({"go": Tuple((Discrete(3, start=1), Box(-1, 1, (2,), np.float64))), "fire": MultiBinary(2)})
    layout = action_layout(space)
    assert choices_of(layout) == (3,)
    for seed in range(5):
        space.seed(seed)
        arrays = [
            np.stack(x)
            for x in zip(*([s["fire"], s["go"][0], s["go"][1]] for s in [space.sample(), space.sample()]), strict=True)
        ]
        flat = layout.join(arrays)
        for row in flat:
            assert space.contains(layout.unpack(row)), layout.unpack(row)


def test_what_is_unpacked_is_the_envs_own_to_change() -> None:
    layout = action_layout(Tuple((VECTOR, VECTOR)))
    flat = np.zeros(8)
    layout.unpack(flat)[0][:] = 5
    assert not flat.any()
