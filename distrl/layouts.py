"""How the observations and actions of any space travel: as one flat array each, cut up again where they are used.

A single Box, Discrete, MultiDiscrete or MultiBinary is an array already and travels as it is. The parts of a Dict or a
Tuple, nested as may be, lie one behind the other in an array [size]: of their own type where all have the same, else of
bytes, aligned so that each can be read as it lies. So images stay bytes, floats stay exact, and fragments, journals, the
replay and checkpoints hold plain arrays whatever the space is.

A mask of the actions is a part of its own, which is not for the network: that of the key `action_mask` of a Dict, that of
the info (then it is laid behind the observation), or, where the state says all, a table of masks of all states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from distrl.descriptions import STRICT, Count, Dtype, Size, from_json
from distrl.errors import shown

if TYPE_CHECKING:  # what acts needs no gymnasium
    import gymnasium as gym

Array = NDArray[Any]  # as in distrl.types, which imports this file
LONGEST_SPACE = 100  # characters of what is shown of an array's space
MASK = "action_mask"
OBSERVATION, AGENT, STATE = (
    "observation",
    "agent",
    "state",
)  # of several agents: what one sees, which it is, what all are in
# Observations that do not travel in their own type: float64 is more than networks compute in, the rest is strange to torch.
TRAVELS_AS = {"float64": "float32", "uint16": "int32", "uint32": "int64", "uint64": "int64"}


class BadMask(ValueError):
    """An action mask that leaves no choice, or does not say what may be done."""


@dataclass(frozen=True)
class Part:
    """One array of an observation or action, and where it lies in the flat array."""

    __pydantic_config__ = STRICT
    path: tuple[str | int, ...]  # keys of Dicts and places in Tuples that lead to it; () the whole
    kind: Literal["box", "discrete", "binary", "mask"]
    shape: tuple[Size, ...]
    dtype: Dtype
    n: tuple[
        Count, ...
    ] = ()  # of discrete ones: how many values each component has; of a mask: the sizes of its groups
    start: tuple[int, ...] = ()  # of discrete ones: the first value of each component
    at: tuple[Size, Size] | None = None  # its elements of the flat array; None: it is that array

    @property
    def name(self) -> str:
        """'' of the whole"""
        return ".".join(map(str, self.path))

    def of(self, flat: Array) -> Array:
        """Its array [..., *shape], a view of flat ones [..., size] where that is possible."""
        if self.at is None:
            return flat
        own: Array = flat[..., slice(*self.at)].view(self.dtype)
        return own.reshape((*flat.shape[:-1], *self.shape))

    def check(self, layout: Layout) -> None:
        """Raise ValueError where it does not lie in the layout's flat array, or says not how many values there are."""
        size, own, all_ = prod(self.shape), np.dtype(self.dtype).itemsize, np.dtype(layout.dtype).itemsize
        if self.at is None:
            fits = len(layout.parts) == 1 and (self.shape, self.dtype) == (layout.shape, layout.dtype)
        else:
            start, stop = self.at
            fits = len(layout.shape) == 1 and stop <= layout.shape[0] and (stop - start) * all_ == size * own
        if not fits:
            raise ValueError(f"the part {self.name!r} does not lie in an array {list(layout.shape)} of {layout.dtype}")
        counts = (sum(self.n), len(self.start)) if self.kind == "mask" else (len(self.n), len(self.start))
        if counts != {"discrete": (size, size), "mask": (size, 0)}.get(self.kind, (0, 0)):
            raise ValueError(
                f"the part {self.name!r} is {self.kind}, with n={list(self.n)} and start={list(self.start)}"
            )


@dataclass(frozen=True)
class Layout:
    __pydantic_config__ = STRICT
    parts: tuple[Part, ...]  # what is seen (or done)
    shape: tuple[Size, ...]  # of one flat array
    dtype: Dtype
    mask: Part | None = None
    in_info: bool = False  # the mask comes in the info
    states: tuple[str, ...] = ()  # masks of all states of a single Discrete observation, as '0110'
    unread: tuple[str, ...] = ()  # parts that are left out, since they are texts
    agents: tuple[str, ...] = ()  # names of those of one env copy: each has a row; () where there is but one, unnamed
    members: tuple[
        Layout, ...
    ] = ()  # of each agent, where there are groups: rows are bytes, each as its own layout says
    central: Part | None = None  # a state of all of them, which a critic is shown beside the parts, and who acts is not

    @property
    def rows(self) -> int:
        """Rows of one env copy: its agents."""
        return max(1, len(self.agents))

    @property
    def plain(self) -> bool:
        """Whether the env's own arrays travel as they are."""
        return not self.members and self.parts[0].at is None

    @property
    def masked(self) -> bool:
        return self.mask is not None or bool(self.states)

    @property
    def nbytes(self) -> int:
        """Of one flat array."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    @cached_property
    def table(self) -> Array:
        """[states, A] bool"""
        return np.array([[char == "1" for char in row] for row in self.states])

    def mask_of(self, flat: Array) -> Array | None:
        """Which choices are allowed, [..., M] bool; None: nothing is masked."""
        allowed: Array | None = None
        if self.mask is not None:
            allowed = self.mask.of(flat) != 0
        elif self.states:
            allowed = self.table[flat - self.parts[0].start[0]]
        return allowed

    def state(self, flat: Array) -> Array:
        """What a table reads: the only part [..., *shape], or the whole numbers [..., D] of all parts."""
        if len(self.parts) == 1:
            return self.parts[0].of(flat)
        last = self.parts[-1].at
        assert last is not None
        return flat[..., : last[1]]

    def pack(self, value: Any, mask: Any = None, over: bool = False) -> Array:
        """The flat array [..., size] of an observation, or of a batch of them, as the space has it.

        Args:
            mask: of the info, where it comes from there
            over: the episode is: nobody acts any more, so no choice need be left
        Raises:
            ValueError: a part is missing or has another shape
            BadMask: a mask is missing, has another shape or leaves no choice
        """
        arrays = [inside(value, part) for part in self.parts]
        lead = arrays[0].shape[: arrays[0].ndim - len(self.parts[0].shape)]
        for part, array in zip(self.parts, arrays, strict=True):
            if array.shape != (*lead, *part.shape):
                what = repr(part.name) if part.path else "it"
                raise ValueError(f"{what} has shape {list(array.shape)}, the space says {list(part.shape)}")
        if self.plain:
            return arrays[0].astype(self.dtype, copy=False)
        flat = np.zeros((*lead, *self.shape), self.dtype)
        for part, array in zip(self.parts, arrays, strict=True):
            part.of(flat)[...] = array
        if self.mask is not None:
            allowed = mask if self.in_info else inside(value, self.mask)
            self.mask.of(flat)[...] = checked_mask(allowed, lead, self.mask, over)
        return flat

    def of(self, agent: str) -> Layout:
        """That of an agent's own observations (or actions)."""
        return self.members[self.agents.index(agent)] if self.members else self

    def pack_agents(self, seen: Mapping[str, Any], infos: Mapping[str, Mapping[str, Any]]) -> Array:
        """The rows [A, size] of what some agents of an env copy see, as the env has it; nothing is in those of the others."""
        rows = self.examples()
        for name, value in seen.items():
            own, mask = self.of(name), infos.get(name, {}).get(MASK)
            row = own.pack(own.seen_by(name, value), mask, over=True)
            rows[self.agents.index(name)] = widened(row[None], self.nbytes)[0] if self.members else row
        return rows

    def unpack_agents(self, rows: Array) -> list[Any]:
        """The actions of all agents of an env copy, as the env has them, of rows [A, size]."""
        if not self.members:
            return [self.unpack(row) for row in rows]
        return [own.unpack(own.narrow(row)) for own, row in zip(self.members, rows, strict=True)]

    def seen_by(self, agent: str, value: Any, batch: tuple[int, ...] = ()) -> dict[str, Any]:
        """What an agent sees, as the env has it, in the form that `pack` takes."""
        one_hot = np.zeros((*batch, len(self.agents)))
        one_hot[..., self.agents.index(agent)] = 1
        return split_mask(value) | {AGENT: one_hot}

    def narrow(self, rows: Array) -> Array:
        """The flat arrays [..., *shape] that lie in wider rows of bytes [..., W]; in memory of their own."""
        return narrowed(rows, self.shape, self.dtype)

    def join(self, arrays: Sequence[Array], mask: Array | None = None) -> Array:
        """The flat array [N, size] of arrays [N, *shape], one a part."""
        if self.plain:
            return arrays[0].astype(self.dtype, copy=False)
        flat = np.zeros((len(arrays[0]), *self.shape), self.dtype)
        for part, array in zip(self.parts, arrays, strict=True):
            part.of(flat)[...] = array
        if self.mask is not None and mask is not None:
            self.mask.of(flat)[...] = mask
        return flat

    def unpack(self, flat: Array) -> Any:
        """What the space has, of one flat array [size] or a batch of them: Dicts and Tuples of arrays of their own."""
        return nested({part.path: _own(part.of(flat), part) for part in self.parts})

    def tensors(self, space: Any) -> list[dict[str, Any]]:
        """Name, shape and type of each part as the space has it, and of the mask, as plain JSON."""
        found = []
        for part in (*self.parts, *([self.mask] if self.mask is not None else [])):
            own = space
            told = part is self.mask and self.in_info  # by the info, where gymnasium's masks are int8
            for key in () if told else part.path:
                own = own[key]
            dtype = "int8" if told else str(own.dtype)
            found.append({"name": part.name, "shape": list(part.shape), "dtype": dtype})
        return found

    def describe(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_description(cls, data: Mapping[str, Any]) -> Layout:
        """Raises ValueError where the parts do not lie in the flat array, or one says not what is in it."""
        layout = from_json(cls, data)
        for own in layout.members:
            cls.from_description(own.describe())
        if not layout.parts and not layout.members:
            raise ValueError("a layout has no parts")
        for part in (*layout.parts, *(part for part in (layout.mask, layout.central) if part is not None)):
            part.check(layout)
        states = layout.parts[0].n[0] if layout.states and layout.parts else 0
        if layout.states and (len(layout.states) != states or len({len(row) for row in layout.states}) != 1):
            raise ValueError(f"a layout has not a mask for each of {states} states")
        return layout

    def example(self) -> Array:
        """A flat observation [*shape] in which all numbers are 0, or the first that may be, and nothing is masked."""
        flat = np.zeros((1, *self.shape), self.dtype)
        for part in self.parts:
            if part.start:
                part.of(flat)[...] = np.array(part.start).reshape(part.shape)
        if self.mask is not None:
            self.mask.of(flat)[...] = 1
        one: Array = flat[0]
        return one

    def examples(self) -> Array:
        """As `example`, of all agents of an env copy: [A, size]."""
        if not self.members:
            return np.stack([self.example()] * self.rows)
        return np.concatenate([widened(own.example()[None], self.nbytes) for own in self.members])


def joint_layout(of_agents: Mapping[str, Layout]) -> Layout:
    """Of the rows of agents whose layouts may differ: each lies at the beginning of a row as wide as the widest needs."""
    width = -(-max(own.nbytes for own in of_agents.values()) // 8) * 8  # so that each begins where any type may
    return Layout((), (width,), "uint8", agents=tuple(of_agents), members=tuple(of_agents.values()))


def widened(array: Array, width: int) -> Array:
    """Arrays [N, ...] as bytes [N, width], with zeros behind them."""
    wide = np.zeros((len(array), width), np.uint8)
    own = np.ascontiguousarray(array).reshape(len(array), prod(array.shape[1:])).view(np.uint8)
    wide[:, : own.shape[1]] = own
    return wide


def narrowed(rows: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """The arrays [..., *shape] of which `widened` made bytes [..., W]; in memory of their own."""
    own: Array = np.ascontiguousarray(rows[..., : prod(shape) * np.dtype(dtype).itemsize]).view(dtype)
    return own.reshape((*rows.shape[:-1], *shape))


def row_space(space: gym.Space[Any], agents: int) -> gym.Space[Any]:
    """Of what a row holds: what one of several agents sees, a mask of its own, and which of them it is."""
    import gymnasium as gym

    parts = split_mask(space)
    seen = parts[OBSERVATION]
    parts[OBSERVATION] = gym.spaces.Dict(seen) if isinstance(seen, dict) else seen
    floats = isinstance(parts[OBSERVATION], gym.spaces.Box) and parts[OBSERVATION].dtype.kind == "f"
    one_hot = gym.spaces.Box(0.0, 1.0, (agents,), np.float32) if floats else gym.spaces.MultiBinary(agents)
    return gym.spaces.Dict(parts | {AGENT: one_hot})


def action_layout(space: gym.Space[Any]) -> Layout:
    """How actions travel. Raises ValueError, with a reason, for a space that cannot."""
    import gymnasium as gym

    leaves = list(_leaves(space, ()))
    if texts := [part.name for part in leaves if part.dtype == "text"]:
        raise ValueError(f"{texts[0]!r} is a Text")
    return _laid_out(leaves, isinstance(space, gym.spaces.Dict | gym.spaces.Tuple))


def discrete_layout(n: int, start: int = 0) -> Layout:
    """Of one whole number from `start` on."""
    return Layout((Part((), "discrete", (), "int64", (n,), (start,)),), (), "int64")


def is_text(space: gym.Space[Any]) -> bool:
    """Whether it is of texts: a Text, or MiniGrid's missions. No network here reads them."""
    return space.dtype is not None and space.dtype.kind == "U"


def space_text(space: gym.Space[Any]) -> str:
    """A space on one line, for people: no larger than it is read, and a Text of any kind as that."""
    import gymnasium as gym

    match space:
        case gym.spaces.Dict():
            return "Dict(" + ", ".join(f"{name!r}: {space_text(below)}" for name, below in space.spaces.items()) + ")"
        case gym.spaces.Tuple():
            return "Tuple(" + ", ".join(map(space_text, space.spaces)) + ")"
        case _ if is_text(space):
            return "Text"
    text = " ".join(str(space).split())
    if len(text) > LONGEST_SPACE and isinstance(space, gym.spaces.Box):
        return f"Box({space.low.min():g}, {space.high.max():g}, {space.shape}, {space.dtype})"
    if len(text) > LONGEST_SPACE and isinstance(space, gym.spaces.MultiDiscrete):
        return f"MultiDiscrete of {space.nvec.size} numbers of up to {space.nvec.max()} values"
    return shown(space)


def choices_of(actions: Layout) -> tuple[int, ...]:
    """The sizes of the groups of a mask of these actions; () where nothing can be masked."""
    return tuple(n for part in actions.parts if part.kind == "discrete" for n in part.n)


def split_mask(value: Any) -> dict[str, Any]:
    """What an agent sees, and of a mapping (an observation, or the space of one) with a mask this by itself."""
    try:
        keys = list(value.keys())
    except AttributeError:
        keys = []
    if MASK not in keys:
        return {OBSERVATION: value}
    rest = {key: value[key] for key in keys if key != MASK}
    return {OBSERVATION: rest[OBSERVATION] if list(rest) == [OBSERVATION] else rest, MASK: value[MASK]}


def observation_layout(
    space: gym.Space[Any],
    choices: tuple[int, ...] = (),
    in_info: bool = False,
    states: Array | None = None,
    agents: tuple[str, ...] = (),
    central: gym.Space[Any] | None = None,
) -> Layout:
    """How observations travel. Raises ValueError, with a reason, for a space that cannot.

    Args:
        choices: see `choices_of`
        in_info: the info holds a mask
        states: [states, A] bool, the masks of all states of a Discrete space
        agents, central: see `Layout`
    """
    import gymnasium as gym

    composite = isinstance(space, gym.spaces.Dict | gym.spaces.Tuple)
    leaves = list(_leaves(space, ()))
    unread = tuple(part.name for part in leaves if part.dtype == "text")
    leaves = [replace(p, dtype=TRAVELS_AS.get(p.dtype, p.dtype)) for p in leaves if p.dtype != "text"]
    mask = next((part for part in leaves if part.path == (MASK,)), None) if choices else None
    if mask is not None:
        leaves.remove(mask)
        if prod(mask.shape) != sum(choices):
            raise ValueError(f"{MASK!r} has shape {list(mask.shape)}, and there are {sum(choices)} choices to mask")
        in_info = False
    if not leaves:
        raise ValueError("there is nothing else than text in it" if unread else "nothing is in it")
    if mask is not None or in_info:
        mask = Part((MASK,), "mask", (sum(choices),), "int8", choices)
    whole = [] if central is None else [replace(part, dtype="float32") for part in _leaves(central, (STATE,))]
    layout = _laid_out([*leaves, *([mask] if mask else []), *whole], composite or mask is not None)
    if whole:
        layout = replace(layout, parts=layout.parts[:-1], central=layout.parts[-1])
    if mask is not None:
        layout = replace(layout, parts=layout.parts[:-1], mask=layout.parts[-1])
    rows = () if states is None else tuple("".join("01"[int(x)] for x in row) for row in states)
    return replace(layout, in_info=in_info, states=rows, unread=unread, agents=agents)


def _leaves(space: gym.Space[Any], path: tuple[str | int, ...]) -> Iterator[Part]:
    """The parts of a space, not yet laid out; of a Text, which no network here reads, one of dtype 'text'."""
    import gymnasium as gym

    match space:
        case gym.spaces.Dict():
            for name, below in space.spaces.items():
                yield from _leaves(below, (*path, name))
        case gym.spaces.Tuple():
            for place, below in enumerate(space.spaces):
                yield from _leaves(below, (*path, place))
        case gym.spaces.Box():
            yield Part(path, "box", space.shape, str(space.dtype))
        case gym.spaces.Discrete():
            yield Part(path, "discrete", (), "int64", (int(space.n),), (int(space.start),))
        case gym.spaces.MultiDiscrete():
            n, start = tuple(space.nvec.ravel().tolist()), tuple(space.start.ravel().tolist())
            yield Part(path, "discrete", space.shape, str(space.dtype), n, start)
        case gym.spaces.MultiBinary():
            yield Part(path, "binary", space.shape, "int8")
        case _ if is_text(space):
            yield Part(path, "box", (), "text")
        case _:
            raise ValueError(f"{'.'.join(map(str, path)) or 'it'} is a {type(space).__name__}")


def _laid_out(parts: Sequence[Part], composite: bool) -> Layout:
    if not composite:
        return Layout(tuple(parts), parts[0].shape, parts[0].dtype)
    if all(part.kind != "box" for part in parts):
        parts = [replace(part, dtype="int64") for part in parts]  # whole numbers alone: tables can read them
    parts = [replace(part, dtype="uint8") if part.dtype == "bool" else part for part in parts]
    types = {part.dtype for part in parts}
    flat = types.pop() if len(types) == 1 else "uint8"
    laid, stop = [], 0
    for part in parts:
        step = np.dtype(part.dtype).itemsize // np.dtype(flat).itemsize
        start = -(-stop // step) * step
        stop = start + step * prod(part.shape)
        laid.append(replace(part, at=(start, stop)))
    widest = max(np.dtype(part.dtype).itemsize for part in parts) // np.dtype(flat).itemsize
    return Layout(tuple(laid), (-(-stop // widest) * widest,), flat)


def inside(value: Any, part: Part) -> Array:
    """The array that lies at a part's path in what an env gave. Raises ValueError where none does."""
    try:
        for key in part.path:
            value = value[key]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"{part.name!r} is missing") from None
    return np.asarray(value)


def joined_mask(mask: Any) -> Array:
    """A mask as one array; a tuple of them, as gymnasium has it for MultiDiscrete and Tuple actions, one behind another."""
    try:
        return np.concatenate([joined_mask(below) for below in mask], axis=-1) if _several(mask) else np.asarray(mask)
    except ValueError:
        raise BadMask(f"the action mask {mask!r} is no array of numbers") from None


def _several(mask: Any) -> bool:
    return isinstance(mask, tuple) and any(np.iterable(below) for below in mask)


def checked_mask(mask: Any, lead: tuple[int, ...], part: Part, over: bool) -> Array:
    """A mask [..., M] bool in which each group has a choice."""
    size = prod(part.shape)
    if mask is None:
        if not over:
            raise BadMask(f"there is no {MASK!r}, though there was one at first")
        mask = np.zeros((*lead, size))
    mask = joined_mask(mask)
    if mask.size != prod(lead) * size:
        raise BadMask(f"the action mask has shape {list(mask.shape)}, and there are {size} choices to mask")
    allowed: Array = mask.reshape(*lead, size) != 0
    starts = np.cumsum([0, *part.n[:-1]])
    left = np.logical_or.reduceat(allowed, starts, axis=-1)
    if not left.all():
        if not over:
            raise BadMask(f"the action mask {mask.astype(int).tolist()} allows nothing")
        allowed = allowed | np.repeat(~left, part.n, axis=-1)
    return allowed


def _own(array: Array, part: Part) -> Any:
    return array.item() if part.kind == "discrete" and array.ndim == 0 else array.copy()


def nested(values: Mapping[tuple[str | int, ...], Any]) -> Any:
    if () in values:
        return values[()]
    keys = dict.fromkeys(path[0] for path in values)
    below = {key: nested({path[1:]: x for path, x in values.items() if path[0] == key}) for key in keys}
    return tuple(below.values()) if all(isinstance(key, int) for key in keys) else below
