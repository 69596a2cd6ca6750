"""A sweep is held against the configs that it leads to, before anything is started: no trial fails an hour later."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping

from distrl.config import Config
from distrl.envs.make import describe_env
from distrl.errors import UserError, did_you_mean
from distrl.execution.resources import cpu_count
from distrl.reports.sweeps import POPULATION
from distrl.runs.plan import Plan, plan_run
from distrl.runs.sweep import Sweep
from distrl.runs.sweep_metrics import Metric, find_metric
from distrl.runs.sweep_spaces import Overrides, Space, told
from distrl.schema import Setting, settings
from distrl.tracking.where import check_tracking, tracking_uri

RANDOM_POINTS = 20
PACKAGES = {"optuna": ("optuna", "optuna"), "pb2": ("sklearn", "pb2")}  # of whom: module, extra of distrl
NOT_SEARCHED = {
    "seed": "seeds.tune says with which seeds each trial runs",
    "run_dir": "runs of a sweep lie in its directory",
    "sweep_dir": "a sweep has one directory",
    "storage": "a sweep's runs are kept nowhere else",
    "init_from": "put it into the base config",
    "stop.env_steps": "budget.env_steps says how long a run is",
    "stop.seconds": "a run that ends by the clock cannot be repeated; budget.env_steps says how long it is",
}
NOT_LEARNT = ("cluster", "track", "checkpoint")
NOTHING = Space(uniform=(0, 1))


def check_sweep(sweep: Sweep, sweep_dir: str) -> Metric:
    """Check all that can be checked without starting anything. Returns the metric; raises `UserError`; makes no file."""
    _check_packages(sweep)
    _check_runners(sweep)
    _check_keys(sweep)
    base = sweep.base_config()
    if base.storage is not None:
        raise UserError(
            "storage is for single runs; those of a sweep are kept nowhere else. Leave it out of the base config."
        )
    if base.track.mlflow:
        check_tracking(tracking_uri(base, sweep_dir))
    _check_budget(sweep, base)
    metric = find_metric(sweep.metric, base, describe_env(base.env))
    plans = [(point, _plan(sweep, point)) for point in [{}, *_points(sweep)]]
    _check_lengths(sweep, plans)
    if sweep.scheduler in POPULATION:
        _check_population(sweep, plans)
    return metric


def trial_count(sweep: Sweep) -> int:
    """How many configs are tried."""
    if sweep.budget.trials is not None:
        return sweep.budget.trials
    return len(sweep.space.grid())


def _points(sweep: Sweep) -> Iterable[Overrides]:
    """The corners, 20 random points, and of a grid all that there are."""
    space = sweep.space
    points = space.grid() if sweep.searcher == "grid" else space.corners()
    return [*points, *(space.random(sweep.seed, -1 - number & 0xFFFFFFFF) for number in range(RANDOM_POINTS))]


def _plan(sweep: Sweep, point: Overrides) -> Plan:
    try:
        config = sweep.config(point)
        return plan_run(config.model_copy(update={"track": config.track.model_copy(update={"mlflow": False})}))
    except UserError as error:
        if not point:
            raise
        raise UserError(f"search: no trial can have {told(point)}: {error}") from None


def _check_packages(sweep: Sweep) -> None:
    for what, chosen in (("searcher", sweep.searcher), ("scheduler", sweep.scheduler)):
        module, extra = PACKAGES.get(chosen, ("json", ""))
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"{what} is {chosen}, which needs the package {module!r}, and that is not installed. Install it with "
                f"pip install 'distrl[{extra}]', or set {what}={'random' if what == 'searcher' else 'halving'}."
            )


def _check_runners(sweep: Sweep) -> None:
    """What this machine can never hold is refused; of a cluster it is known when it is joined."""
    if sweep.base_config().cluster.address != "local":
        return
    each, cpus = 1 + sweep.trial.runners, cpu_count()
    if each > cpus:
        raise UserError(
            f"trial.runners={sweep.trial.runners} takes {each} CPUs for each trial (one for the trial, one for each runner); "
            f"this machine has {cpus}. Set trial.runners to at most {cpus - 1}; it changes only the speed."
        )


def _check_keys(sweep: Sweep) -> None:
    """Each key is a setting, and one that can be searched."""
    names = {sweep.base_config().algorithm.name, *(_algorithms(sweep))}
    known = {setting.key: setting for name in names for setting in settings(name)}
    for key in sweep.search:
        if key in NOT_SEARCHED:
            raise UserError(f"search.{key}: it is not searched: {NOT_SEARCHED[key]}. Leave it out.")
        section = key.partition(".")[0]
        if section in NOT_LEARNT:
            raise UserError(f"search.{key}: {section} changes nothing that is learnt. Set it in the base config.")
        if not _known(key, known):
            hint = did_you_mean(key, known) or " Keys are those of a config: 'distrl config' shows them."
            raise UserError(f"search: unknown key {key!r}.{hint}")
    for key in sweep.search:
        if below := [other for other in sweep.search if other.startswith(f"{key}.")]:
            raise UserError(
                f"search.{below[0]} lies within search.{key}, which is searched whole. Leave one of them out."
            )


def _algorithms(sweep: Sweep) -> list[str]:
    """Those that are searched."""
    whole = [
        value.get("name") for value in sweep.search.get("algorithm", NOTHING).values or [] if isinstance(value, dict)
    ]
    return [str(name) for name in (*whole, *(sweep.search.get("algorithm.name", NOTHING).values or [])) if name]


def _known(key: str, known: Mapping[str, Setting]) -> bool:
    """Whether it is a setting, or within one that holds what a user likes, such as env.kwargs."""
    parts = key.split(".")
    above = [".".join(parts[:count]) for count in range(1, len(parts))]
    return key in known or any(name in known and known[name].rule == "mapping" for name in above)


def _check_budget(sweep: Sweep, base: Config) -> None:
    budget = sweep.budget
    if base.stop.env_steps is None:
        raise UserError("The base config sets no stop.env_steps: set budget.env_steps, which says how long a run is.")
    if sweep.searcher == "grid":
        points = len(sweep.space.grid())
        if budget.trials is not None and budget.trials < points:
            raise UserError(
                f"budget.trials is {budget.trials}, and the grid has {points} points. Set budget.trials to {points}, leave "
                "it out, or set searcher=random."
            )
    elif budget.trials is None:
        raise UserError(
            f"budget.trials is missing; searcher={sweep.searcher} has no end of its own. Set budget.trials=32."
        )


def _check_lengths(sweep: Sweep, plans: Iterable[tuple[Overrides, Plan]]) -> None:
    for point, plan in plans:
        config = plan.config
        least = config.rollout.env_steps
        assert config.stop.env_steps is not None
        if config.stop.env_steps < least:
            raise UserError(
                f"budget.env_steps={config.stop.env_steps:,} cannot hold one trial: with {told(point)} a single iteration "
                f"takes {least:,} env steps. Set budget.env_steps to many times that."
            )


def rungs(sweep: Sweep, config: Config, metric: Metric, trials: int) -> list[float]:
    """Shares of a run after which it is compared, ascending; [] where it is not.

    At each there is a score: an evaluation's result comes as late as the next one begins.
    """
    if sweep.scheduler in POPULATION:
        count = sweep.population.generations
        return [generation / count for generation in range(1, count)]
    if sweep.scheduler not in ("asha", "halving"):
        return []
    total = config.iterations
    assert total is not None
    first = 2 * config.evaluation_every + 1 if metric.at_a_rung.evaluated else 1
    most = int(math.log(max(trials, 1), sweep.eta) + 1e-9)
    shares = [sweep.eta**-level for level in range(most, 0, -1)]
    return [share for share in shares if math.ceil(total * share) >= first]


def _check_population(sweep: Sweep, plans: list[tuple[Overrides, Plan]]) -> None:
    """What a population changes on the way must be the same learner with other numbers."""
    if sweep.searcher != "random":
        raise UserError(f"scheduler is {sweep.scheduler}, which changes configs by itself. Set searcher=random.")
    if trial_count(sweep) < 4:
        raise UserError(
            f"scheduler is {sweep.scheduler}, whose worst quarter takes over what the best one has learnt; "
            f"budget.trials is {sweep.budget.trials}. Set it to 4 or more."
        )
    iterations = plans[0][1].config.iterations
    if iterations is None or iterations < sweep.population.generations:
        raise UserError(
            f"population.generations is {sweep.population.generations}, and a run has {iterations} iterations. Set it to at "
            "most that, or budget.env_steps higher."
        )
    shapes = plans[0][1].policy.describe()
    for point, plan in plans[1:]:
        if plan.policy.describe() != shapes:
            raise UserError(
                f"scheduler is {sweep.scheduler}, and {told(point)} makes another network or policy, which cannot take over "
                "weights. Search it with scheduler=halving."
            )
    for key, space in sweep.search.items():
        if not key.startswith("algorithm.") or key == "algorithm.name" or space.when:
            raise UserError(
                f"scheduler is {sweep.scheduler}, which changes keys of algorithm while a run goes on; search.{key} is "
                "none, or has a condition. Search it with scheduler=halving."
            )
        if sweep.scheduler == "pb2" and space.kind not in ("uniform", "loguniform"):
            raise UserError(f"scheduler is pb2, which is for ranges; search.{key} is {space.kind}. Set scheduler=pbt.")
