"""Names of what can be exchanged: algorithms, policies, networks and wrappers, built in or of anybody's package.

A name is looked up among the built-in ones, then among the entry points of installed packages:

    [project.entry-points."distrl.algorithms"]        # in a package's pyproject.toml
    reinforce = "my_package.reinforce"

What a user names may instead say where it is: `my_package.reinforce`, or `my_package.algorithms:Reinforce`. What a file
names may not, since files come from anywhere: reading a model runs no code but that of distrl and installed packages.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol, cast

from distrl.errors import UserError, did_you_mean, shown, users_code
from distrl.settings import AlgorithmSettings
from distrl.types import Algorithm, Array, EnvInfo, Policy


@dataclass(frozen=True)
class Registry:
    """Where things of one kind are found by name. A place is `module`, or `module:Name` for what is in one."""

    key: str  # what holds the name, for messages
    group: str  # of entry points
    built_in: Mapping[str, str]  # name: place
    places: str | None  # what else a name may be, for messages: a place; None: nothing

    def names(self) -> dict[str, str]:
        """Every registered name, and its place. No package can replace what is built in."""
        return dict(self.built_in) | {
            point.name: point.value for point in entry_points(group=self.group) if point.name not in self.built_in
        }

    def find(self, name: object) -> Any:
        """What is called so, imported. Raises `UserError` where nothing is, or where it cannot be imported."""
        if isinstance(name, str) and name in self.built_in:  # looking for entry points takes some 30 ms
            return _import(self.built_in[name])
        names = self.names()
        place = names.get(name) if isinstance(name, str) else None
        if place is None and self.places is not None and isinstance(name, str) and _is_place(name):
            place = name
        if place is None:
            raise UserError(self._unknown(name, names))
        try:
            with users_code(f"{self.key} is {shown(name)}, and {place} cannot be imported"):
                return _import(place)
        except UserError as told:
            error = told.__cause__
            if not isinstance(error, ImportError):
                raise
            itself = place == name and f"{place.partition(':')[0]}.".startswith(f"{error.name}.")
            if itself and isinstance(error, ModuleNotFoundError):
                raise UserError(self._unknown(name, names, f" ({error})")) from None
            raise UserError(
                f"{self.key} is {name!r}, and {place} cannot be imported: {error}.{_nearby(error)}"
            ) from error

    def _unknown(self, name: object, names: Mapping[str, str], why: str = "") -> str:
        other = self.places or f"what an installed package brings as an entry point of {self.group}"
        near = did_you_mean(name, names) if isinstance(name, str) else ""
        known = f"one of {', '.join(names)}, or " if names else ""
        return f"{self.key} is {shown(name)}; it must be {known}{other}{why}.{near}"


def _is_place(name: str) -> bool:
    return all(part.isidentifier() for part in name.replace(":", ".", 1).split("."))


def _import(place: str) -> Any:
    module, _, inside = place.partition(":")
    found = importlib.import_module(module)
    try:
        return operator.attrgetter(inside)(found) if inside else found
    except AttributeError as error:
        raise ImportError(str(error)) from error


def _nearby(error: ImportError) -> str:
    """What is called nearly as the thing that a module lacks."""
    cause = error.__cause__
    return did_you_mean(str(cause.name), dir(cause.obj)) if isinstance(cause, AttributeError) else ""


ALGORITHMS = Registry(
    "algorithm.name",
    "distrl.algorithms",
    {
        "ppo": "distrl.algorithms.ppo",
        "a2c": "distrl.algorithms.a2c",
        "dqn": "distrl.algorithms.dqn",
        "q": "distrl.algorithms.tabular_q",
    },
    places="a module that can be imported, such as my_package.my_module",
)
POLICIES = Registry(
    "the type of its policy",
    "distrl.policies",
    {
        "stochastic": "distrl.acting.policies:StochasticPolicy",
        "recurrent": "distrl.acting.recurrent:RecurrentPolicy",
        "epsilon_greedy": "distrl.acting.policies:EpsilonGreedyPolicy",
        "table": "distrl.acting.tables:TablePolicy",
        "normalised": "distrl.acting.normalise:NormalisedPolicy",
        "team": "distrl.acting.team:TeamPolicy",
    },
    places=None,
)
WRAPPERS = Registry(
    "a name in env.wrappers",
    "distrl.wrappers",
    {
        "atari": "distrl.envs.wrappers:atari",
        "clip_reward": "distrl.envs.wrappers:clip_reward",
        "flatten": "distrl.envs.wrappers:flatten",
        "frame_stack": "distrl.envs.wrappers:frame_stack",
        "select": "distrl.envs.wrappers:select",
        "time_limit": "gymnasium.wrappers:TimeLimit",
    },
    places="a wrapper in a module that can be imported, such as gymnasium.wrappers.ClipAction or my_package.wrappers:Mine",
)
NETWORKS = Registry(
    "algorithm.network",
    "distrl.networks",
    {},
    places="a torch.nn.Module in a module that can be imported, such as my_package.nets:MyNet",
)
NORMALISING = {"normalize_obs": "normalize.obs", "normalize_reward": "normalize.reward"}


class AlgorithmModule(Protocol):
    """What an algorithm's module (or whatever `module:Name` is) offers.

    It is imported without torch, so that a config is checked and runners start without it; `make` may import it.
    """

    NEEDS_TORCH: (
        bool  # whether it learns with torch; where none does, nothing in a run imports it, and `device` is None
    )
    Settings: type[AlgorithmSettings]  # its part of a config, with a default for all but the name

    def make_policy(self, settings: Any, info: EnvInfo) -> Policy:
        """What acts, in NumPy, without weights yet. Raises `UserError` for spaces that the algorithm cannot take."""

    def initial_weights(self, settings: Any, policy: Any, seed: int) -> Array:
        """The weights of version 0, [P]: those that what `make` makes begins with."""

    def make(self, settings: Any, policy: Any, seed: int, device: Any) -> Algorithm:
        """What learns: `distrl.types.OnPolicy`, or `OffPolicy` where `Settings.replayed` says from which batches.

        `policy` holds the weights of version 0, with which it is to begin: those of `initial_weights`, or, by `init_from`,
        those of another run. What does not is refused where there is an `init_from`.
        """


def wrapper(name: str) -> Callable[..., Any]:
    """What a name in `env.wrappers` means: makes an env of an env. Raises `UserError` where there is no such thing."""
    if name in NORMALISING:
        raise normalises(name, NORMALISING[name])
    place = name
    if ":" not in name and "." in name and name not in WRAPPERS.names():  # no module is a wrapper: it is in one
        place = ":".join(name.rpartition(".")[::2])
    found = WRAPPERS.find(place)
    if not callable(found):
        raise UserError(
            f"{WRAPPERS.key} is {name!r}, which is of type {type(found).__name__} and no wrapper: a subclass of gymnasium.Wrapper, "
            "or a function that is given an env and returns one, is due."
        )
    return cast(Callable[..., Any], found)


def normalises(name: str, key: str) -> UserError:
    """The refusal of a wrapper that normalises by what its own env copy has seen; `key` does it for all copies."""
    return UserError(
        f"{WRAPPERS.key} is {name!r}, which keeps statistics of its own for each env copy, so that what is learnt would "
        f"depend on how many there are. Leave it out and set {key}=true: then there is one for all."
    )


OFFERED = [part for part in (*AlgorithmModule.__annotations__, *vars(AlgorithmModule)) if not part.startswith("_")]


def algorithm_module(name: object) -> AlgorithmModule:
    """The algorithm that `algorithm.name` means. Raises `UserError` where there is none, or it is not whole."""
    found = ALGORITHMS.find(name)
    missing = [part for part in OFFERED if not hasattr(found, part)]
    if missing:
        raise UserError(
            f"algorithm.name is {name!r}, which is no algorithm: it has no {', '.join(missing)}. An algorithm offers "
            f"{', '.join(OFFERED)}; see distrl.registry.AlgorithmModule."
        )
    if not (isinstance(found.Settings, type) and issubclass(found.Settings, AlgorithmSettings)):
        raise UserError(
            f"algorithm.name is {name!r}, whose Settings are no subclass of distrl.settings.AlgorithmSettings. Derive them from it."
        )
    return cast(AlgorithmModule, found)
