"""The file that says what a benchmark is made of: environments, rows, seeds.

A grid is written in TOML. Every name in it is checked, and an unknown one is refused with the
nearest that is known.
"""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ilrec_sb3.baselines import check_settings, find_algorithm
from ilrec_sb3.cells import DEMONSTRATIONS, PLANNERS, Task, cell_name
from recsim_env.errors import DataError, MissingDataError, near_miss
from recsim_env.settings import check_range, check_types, from_mapping

__all__ = ["DemonstrationSpec", "Grid", "GridEnvironment", "GridRow", "load_grid"]

SETTINGS = ("easyrl4rec",)
GROUPS = ("main", "ablation", "demonstrations", "sensitivity")
_EXPLORER_SESSIONS = 200
_SETTING_EPISODES = 100
_OFFLINE_STEPS = 10_000
_LONGEST_NAME = 120  # of a folder, in bytes: file systems take 255, and some are put around it
_MOST_SEED = 2**32 - 1  # of Stable-Baselines3
_FIXED = {
    "policy": "is always MlpPolicy",
    "env": "is the environment of the grid",
    "seed": 'belongs to "seeds"',
    "device": "belongs to the grid",
    "demonstrations": "belong to the row itself",
}
"""Constructor arguments that are no settings of a row, and why."""


@dataclass(frozen=True)
class GridEnvironment:
    """An environment of a grid.

    Attributes:
        dataset: Name of a dataset, a custom one included.
        options: Options of the dataset.
        termination: ``"category"``, ``"billp"``, ``"similarity"`` or ``"none"``.
        window: N of the category rule; None: the dataset's preset.
        max_repeats: M of the category rule; None: the dataset's preset.
        limit: Length limit of a session, in items.
        setting: ``"easyrl4rec"``: Coat as EasyRL4Rec plays it, which fixes all of the above;
            ``options`` are then those of `recsim_env.easyrl4rec.easyrl4rec_stage`.
        episodes: Sessions that each policy is judged by, in each test mode; None: the grid's, and
            100 in a setting.
        title: What the report calls it; None: its name.
    """

    dataset: str = "synthetic"
    options: Mapping[str, Any] = field(default_factory=dict)
    termination: str = "category"
    window: int | None = None
    max_repeats: int | None = None
    limit: int = 100
    setting: str | None = None
    episodes: int | None = None
    title: str | None = None

    def __post_init__(self) -> None:
        """Checks types and names."""
        check_types(self)
        check_range(self, "window", "max_repeats", "limit", "episodes", least=1)
        if self.setting is None:
            self._check_rule()
            return
        if self.setting not in SETTINGS:
            raise DataError(
                f"setting={self.setting!r} is not known; {near_miss(self.setting, SETTINGS)}."
            )
        bare = replace(self, setting=None, episodes=None, title=None, options={})
        if bare != GridEnvironment():
            raise DataError(
                f"setting={self.setting!r} came with a dataset, a rule or a limit of its own, and "
                "it fixes all of these: leave them out."
            )

    def _check_rule(self) -> None:
        """Refuses numbers of the category rule where another rule ends the sessions."""
        given = [name for name in ("window", "max_repeats") if getattr(self, name) is not None]
        if given and self.termination != "category":
            raise DataError(
                f"{' and '.join(given)} came with termination={self.termination!r}; only the rule "
                '"category" has such a number: leave it out.'
            )


@dataclass(frozen=True)
class DemonstrationSpec:
    """Which demonstrations a row learns from; at most one of the first five is given.

    Attributes:
        source: Part of the name of who demonstrated, such as ``"gpt-4-32k"``; sessions that the
            dataset does not carry are asked of its reader of recorded sessions.
        file: A trajectory file, relative to where the command is run.
        planner: One of `ilrec_sb3.cells.PLANNERS`, or ``"explorer"``, which plays on the train
            world model.
        algorithm: An algorithm that is trained on the train world model and plays there.
        parts: Others that are put together.
        steps: Of that training.
        sessions: How many sessions are taken at most; None: all that there are, and 200 where they
            are played for the purpose.
    """

    source: str | None = None
    file: str | None = None
    planner: str | None = None
    algorithm: str | None = None
    parts: tuple[DemonstrationSpec, ...] = ()
    steps: int | None = None
    sessions: int | None = None

    def __post_init__(self) -> None:
        """Checks types and names."""
        check_types(self)
        check_range(self, "steps", "sessions", least=1)
        kinds = ("source", "file", "planner", "algorithm", "parts")
        given = [n for n in kinds if getattr(self, n)]
        if len(given) > 1:
            raise DataError(
                f"demonstrations came with {' and '.join(given)}; give one of them, or none for "
                "those that the dataset carries."
            )
        if self.planner is not None and self.planner not in (*PLANNERS, "explorer"):
            known = near_miss(self.planner, (*PLANNERS, "explorer"))
            raise DataError(f"The planner {self.planner!r} is not known; {known}.")
        if self.algorithm is not None:
            find_algorithm(self.algorithm)
        elif self.steps is not None:
            raise DataError("demonstrations came with steps, which belong to an algorithm.")

    @property
    def played(self) -> int:
        """How many sessions are played where they are played for the purpose."""
        return self.sessions or _EXPLORER_SESSIONS

    @classmethod
    def parse(cls, value: Any) -> DemonstrationSpec:
        """Reads ``"all"``, ``"explorer"``, a table of the fields, or a list of such.

        Raises:
            DataError: For anything else.
        """
        if isinstance(value, DemonstrationSpec):
            return value
        if value == "all":
            return cls()
        if value == "explorer":
            return cls(planner="explorer")
        if isinstance(value, Mapping):
            return from_mapping(cls, value)
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            return cls(parts=tuple(map(cls.parse, value)))
        raise DataError(
            f'demonstrations={value!r} came; expected "all", "explorer", a table such as '
            '{ source = "gpt-4-32k", sessions = 30 }, or a list of such.'
        )


@dataclass(frozen=True)
class GridRow:
    """A row of the tables: one policy.

    Attributes:
        algorithm: An algorithm, one of `ilrec_sb3.cells.PLANNERS`, or ``"demonstrations"``.
        label: Its name in the tables; None: the algorithm's.
        environments: Where it plays; None: everywhere.
        group: Which table it belongs to: "main", "ablation", "demonstrations" or "sensitivity".
        steps: Env steps to train for, gradient steps of an offline algorithm; None: the grid's.
        seeds: None: the grid's.
        settings: Constructor arguments.
        demonstrations: What an algorithm that takes them learns from, or what ``"demonstrations"``
            plays again.
        sweep: Constructor arguments and the values of each: one row for every combination, with the
            values in its label.
    """

    algorithm: str
    label: str | None = None
    environments: tuple[str, ...] | None = None
    group: str = "main"
    steps: int | None = None
    seeds: tuple[int, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    demonstrations: DemonstrationSpec | None = None
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks types and names."""
        if self.demonstrations is not None:
            spec = DemonstrationSpec.parse(self.demonstrations)
            object.__setattr__(self, "demonstrations", spec)
        check_types(self)
        check_range(self, "steps", least=1)
        _check_json(self.name, {**self.settings, **self.sweep})
        _as_tuple(self, "environments", "names")
        _as_tuple(self, "seeds", "whole numbers")
        _check_seeds(self.seeds)
        if self.group not in GROUPS:
            raise DataError(f"group={self.group!r} is not known; {near_miss(self.group, GROUPS)}.")
        for name, values in self.sweep.items():
            if not values:
                raise DataError(f"sweep.{name}={values!r} came; expected a list of values.")
        self._check_algorithm()

    def _check_algorithm(self) -> None:
        if self.trained:
            takes = find_algorithm(self.algorithm).demonstrated
            self._check_settings()
        else:
            takes = self.algorithm == DEMONSTRATIONS
            if self.settings or self.sweep or self.seeds or self.steps:
                raise DataError(
                    f"{self.name!r} came with settings, a sweep, seeds or steps, but "
                    f"{self.algorithm!r} is not trained: leave them out."
                )
        if self.demonstrations is not None and not takes:
            raise DataError(
                f"{self.name!r} came with demonstrations, but {self.algorithm!r} takes none: leave "
                "them out."
            )

    def _check_settings(self) -> None:
        """Refuses what the algorithm's constructor does not take, before anything is made."""
        swept = [(name, value) for name, values in self.sweep.items() for value in values]
        for name, value in (*self.settings.items(), *swept):
            if name in _FIXED:
                raise DataError(
                    f"{self.name!r} came with {name!r} among its settings, which {_FIXED[name]}: "
                    "leave it out there."
                )
            try:
                check_settings(self.algorithm, {name: value})
            except DataError as error:
                raise DataError(f"The row {self.name!r}: {error}") from error

    @property
    def name(self) -> str:
        """What the tables call it."""
        return self.label or self.algorithm

    @property
    def trained(self) -> bool:
        """Whether it is trained."""
        return self.algorithm not in (*PLANNERS, DEMONSTRATIONS)

    @property
    def takes_demonstrations(self) -> bool:
        """Whether it needs demonstrations."""
        if self.trained:
            return find_algorithm(self.algorithm).demonstrated
        return self.algorithm == DEMONSTRATIONS

    def swept(self) -> Iterator[GridRow]:
        """Yields the row for every combination of the values in ``sweep``; itself without any."""
        for values in itertools.product(*self.sweep.values()):
            chosen = dict(zip(self.sweep, values, strict=True))
            shown = "".join(f" {name}={_short(value)}" for name, value in chosen.items())
            yield replace(
                self, label=self.name + shown, settings={**self.settings, **chosen}, sweep={}
            )


@dataclass(frozen=True)
class Grid:
    """What a benchmark is made of.

    Attributes:
        name: Of the grid; its run is kept in ``runs/benchmark-NAME``.
        environments: By name.
        rows: In the order of the tables.
        title: Of the report; None: the name.
        steps: Env steps to train for.
        offline_steps: Gradient steps of offline algorithms.
        seeds: One training for each.
        episodes: Sessions that each policy is judged by, in each test mode.
        evaluation_seed: Draws their users; the same ones for every policy.
        curve_points: Evaluations along a training; 0 for none.
        curve_episodes: Sessions of each of these.
        models: Whether trained models are kept.
        device: "cpu", "cuda", "cuda:1" or "auto"; None: each algorithm's usual one.
    """

    name: str
    environments: Mapping[str, GridEnvironment]
    rows: tuple[GridRow, ...]
    title: str | None = None
    steps: int = 100_000
    offline_steps: int = _OFFLINE_STEPS
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    episodes: int = 500
    evaluation_seed: int = 1_000
    curve_points: int = 20
    curve_episodes: int = 64
    models: bool = True
    device: str | None = None

    def __post_init__(self) -> None:
        """Checks types, names and that no two cells share a folder."""
        check_types(self)
        check_range(self, "steps", "offline_steps", "episodes", "curve_episodes", least=1)
        check_range(self, "evaluation_seed", "curve_points", least=0)
        _as_tuple(self, "seeds", "whole numbers")
        _check_seeds(self.seeds)
        if cell_name(self.name, None) != self.name:
            raise DataError(
                f"name={self.name!r} came; expected letters, digits, - and _, as a folder is named "
                "after it."
            )
        if self.device is not None and not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise DataError(f"device={self.device!r} came; expected cpu, cuda, cuda:1 or auto.")
        if not self.environments or not self.rows:
            raise DataError(
                f"The grid {self.name!r} has {len(self.environments)} environments and "
                f"{len(self.rows)} rows; give at least one [environments.NAME] and one [[rows]]."
            )
        self._check_environments()
        swept = tuple(row for given in self.rows for row in given.swept())
        object.__setattr__(self, "rows", swept)
        for row in self.rows:
            for name in row.environments or ():
                if name not in self.environments:
                    raise DataError(
                        f"The row {row.name!r} plays in {name!r}, which is no environment of the "
                        f"grid; {near_miss(name, self.environments)}."
                    )
        self._check_rows()

    def _check_rows(self) -> None:
        """Refuses labels that cannot name a folder each."""
        folders: dict[tuple[str, str], str] = {}
        for _, task in self.tasks():
            other = folders.setdefault((task.environment, task.name.casefold()), task.label)
            if other != task.label:
                raise DataError(
                    f"The rows {other!r} and {task.label!r} would share a folder: give one of them "
                    "another label."
                )
            if len(task.name.encode()) > _LONGEST_NAME:
                raise DataError(
                    f"The label {task.label[:30] + '...'!r} came, too long for the name of a "
                    f"folder; give one of at most {_LONGEST_NAME - 20} letters."
                )
        names = [(row.name, name) for row in self.rows for name in self.places(row)]
        twice = sorted({name for name, place in names if names.count((name, place)) > 1})
        if twice:
            raise DataError(f"The row {twice[0]!r} came twice: give one of them another label.")

    def _check_environments(self) -> None:
        """Refuses names of environments that cannot name a folder each."""
        folders: dict[str, str] = {}
        for name, environment in self.environments.items():
            long = len(name.encode()) > _LONGEST_NAME
            if long or cell_name(name, None) != name:
                raise DataError(
                    f"An environment named {name!r} came; expected letters, digits, - and _, as a "
                    "folder is named after it, and a title for what the report calls it."
                )
            other = folders.setdefault(name.casefold(), name)
            if other != name:
                raise DataError(
                    f"The environments {other!r} and {name!r} would share a folder where letters' "
                    "case does not count: give one of them another name."
                )
            _check_json(name, environment.options)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grid:
        """Builds a grid from nested mappings, as TOML gives them.

        Raises:
            DataError: For a name that is no setting, or a value that does not fit.
        """
        nested = dict(values)
        environments, rows = nested.get("environments", {}), nested.get("rows", [])
        tables = isinstance(environments, Mapping) and isinstance(rows, (list, tuple))
        if not tables or not all(
            isinstance(table, Mapping) for table in (*environments.values(), *rows)
        ):
            raise DataError(
                "environments or rows of another form came; expected [environments.NAME] and "
                "[[rows]]."
            )
        nested["environments"] = {
            name: from_mapping(GridEnvironment, table) for name, table in environments.items()
        }
        for row in rows:
            if "algorithm" not in row:
                raise DataError(f"A row without an algorithm came ({dict(row)}): name one.")
        nested["rows"] = tuple(from_mapping(GridRow, row) for row in rows)
        if "name" not in nested:
            raise DataError('The grid has no name; begin it with name = "mine".')
        return from_mapping(cls, nested)

    def places(self, row: GridRow) -> tuple[str, ...]:
        """Returns the names of the environments that a row plays in."""
        return tuple(self.environments) if row.environments is None else row.environments

    def tasks(self) -> Iterator[tuple[GridRow, Task]]:
        """Yields the cells: what needs no training first, then seed by seed."""
        for name, row in itertools.product(self.environments, self.rows):
            if not row.trained and name in self.places(row):
                yield row, self._task(name, row, None)
        seeds = dict.fromkeys(s for r in self.rows if r.trained for s in self._seeds(r))
        for seed, name, row in itertools.product(seeds, self.environments, self.rows):
            if row.trained and name in self.places(row) and seed in self._seeds(row):
                yield row, self._task(name, row, seed)

    def _seeds(self, row: GridRow) -> tuple[int, ...]:
        return self.seeds if row.seeds is None else row.seeds

    def _task(self, name: str, row: GridRow, seed: int | None) -> Task:
        environment = self.environments[name]
        steps = 0
        if seed is not None:
            offline = find_algorithm(row.algorithm).offline
            steps = row.steps or (self.offline_steps if offline else self.steps)
        return Task(
            environment=name,
            label=row.name,
            algorithm=row.algorithm,
            group=row.group,
            seed=seed,
            steps=steps,
            settings=row.settings,
            episodes=environment.episodes
            or (self.episodes if environment.setting is None else _SETTING_EPISODES),
            evaluation_seed=self.evaluation_seed,
            curve_points=self.curve_points,
            curve_episodes=self.curve_episodes,
            device=self.device,
        )


def load_grid(path: str | Path) -> Grid:
    """Reads a grid file.

    Beside the settings of a `Grid` it may name others in ``include``, a list of files beside it,
    which hold rows and nothing else: they come before its own.

    Raises:
        DataError: It is no TOML, or says what cannot be understood.
    """
    file = Path(path)
    values = _read_toml(file)
    included = values.pop("include", [])
    if not isinstance(included, list) or not all(isinstance(name, str) for name in included):
        raise DataError(f"{file}: include={included!r} came; expected a list of file names.")
    rows = [row for name in included for row in _included_rows(file.parent / name)]
    own = values.get("rows", [])
    try:
        return Grid.from_dict({**values, "rows": [*rows, *own] if isinstance(own, list) else own})
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


def _included_rows(file: Path) -> list[Any]:
    values = _read_toml(file)
    if set(values) != {"rows"} or not isinstance(values["rows"], list):
        raise DataError(
            f"{file} came as rows to include, with {', '.join(map(repr, values)) or 'nothing'} in "
            "it; expected [[rows]] and nothing else."
        )
    return list(values["rows"])


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingDataError(
            f"{file} is not there; name a grid file, such as benchmarks/grids/smoke.toml."
        ) from error
    except IsADirectoryError as error:
        raise DataError(f"{file} is a folder; name a grid file in it.") from error
    except ValueError as error:
        raise DataError(f"{file} is not TOML ({error}); expected a grid of a benchmark.") from error


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_json(name: str, values: Mapping[str, Any]) -> None:
    """Refuses values that JSON, in which a run keeps them, does not have."""
    for setting, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{name!r} came with {setting}={value!r}; expected finite numbers, text, true or "
                "false, and lists and tables of these."
            ) from error


def _as_tuple(settings: Any, name: str, said: str) -> None:
    """Makes a list a tuple, having checked that something is in it, and nothing twice."""
    values = getattr(settings, name)
    if values is None:
        return
    if not values or len(set(values)) < len(values):
        raise DataError(f"{name}={values!r} came; expected a list of {said}, none twice.")
    object.__setattr__(settings, name, tuple(values))


def _check_seeds(seeds: Sequence[int] | None) -> None:
    if seeds is not None and not 0 <= min(seeds) <= max(seeds) <= _MOST_SEED:
        raise DataError(f"seeds={seeds!r} came; expected numbers of 0 or more, below 2^32.")
