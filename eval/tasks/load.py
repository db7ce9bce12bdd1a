"""From names to tasks of the harness: local files with our definitions, the user's own, and the harness's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetsError
from lm_eval.tasks import TaskManager

from llmquant.errors import DataError
from llmquant.eval.tasks.local import FAMILIES, Definition, definitions, family
from llmquant.eval.tasks.quiet import quiet
from llmquant.words import did_you_mean, listed

FEWSHOT_SEED = 1234  # the harness's own default


@dataclass(frozen=True, slots=True)
class Group:
    """Tasks whose scores are averaged: equally, or by their number of documents."""

    name: str
    members: tuple[str, ...]
    by_size: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """Tasks of the harness by name, with their data, and the groups that were asked for."""

    tasks: Mapping[str, Any]
    groups: tuple[Group, ...]


def load(names: Sequence[str], files: Mapping[str, str], include: Sequence[str]) -> Loaded:
    """The tasks of all names, with their data.

    Args:
        names: of tasks, groups, or patterns such as "mmlu_*".
        files: by name of task, the file or folder with its data.
        include: folders with definitions (YAML files of the harness), which come before the harness's own.

    Raises:
        DataError: for an unknown name, and for data that is not there or cannot be fetched.
    """
    return _load(tuple(dict.fromkeys(names)), tuple(sorted(files.items())), tuple(include))


@lru_cache(maxsize=1)  # asked for before models are loaded, needed when they are
def _load(names: tuple[str, ...], files: tuple[tuple[str, str], ...], include: tuple[str, ...]) -> Loaded:
    given = dict(files)
    if missing := [folder for folder in include if not Path(folder).is_dir()]:
        raise DataError(f"there is no folder {missing[0]}; it should hold definitions of tasks")
    if strange := [name for name in given if family(name) is None]:
        raise DataError(
            f"a file is given for {strange[0]!r}{did_you_mean(strange[0], FAMILIES)}. Only files of {listed(FAMILIES)} "
            "are known; for another task, name the file in a definition of yours, in a folder that you include"
        )
    tasks: dict[str, Any] = {}
    groups: list[Group] = []
    others: list[str] = []
    for name in names:
        path = given.get(name, given.get(family(name) or ""))
        if path is None:
            others.append(name)
            continue
        found = {each.config["task"]: _task(each) for each in definitions(name, Path(path))}
        tasks |= found
        groups += [Group(name, tuple(found), by_size=False)] if name == "blimp" else []
    if others:
        more = _of_harness(others, include)
        tasks, groups = {**tasks, **more.tasks}, [*groups, *more.groups]
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return Loaded(tasks, tuple(groups))


def _task(definition: Definition) -> Any:
    """A task over rows in memory: nothing is written to the cache of `datasets`."""
    split = definition.config.get("test_split") or definition.config["validation_split"]
    rows = datasets.DatasetDict({split: datasets.Dataset.from_list(definition.rows)})
    with quiet():
        built = TaskManager(include_defaults=False).load([{**definition.config, "custom_dataset": lambda **_: rows}])
    return built["tasks"][definition.config["task"]]


def _of_harness(names: Sequence[str], include: Sequence[str]) -> Loaded:
    with quiet():
        manager = TaskManager(include_path=[str(Path(each).resolve()) for each in include], include_defaults=False)
        if any(not manager.match_tasks([name]) for name in names):  # reading the harness's 14,000 takes a while
            manager = TaskManager(include_path=[str(Path(each).resolve()) for each in include])
        wanted = [match for name in names for match in _matches(name, manager)]
        try:
            found = manager.load(wanted)
        except (KeyError, ValueError, TypeError, OSError, DatasetsError) as error:
            hints = [f"{name}=FILE" for name in dict.fromkeys(map(family, names)) if name]
            hint = f"; without a network, name the data: {listed(hints)}" if hints else ""
            raise DataError(f"the tasks {listed(names)} cannot be loaded: {error}{hint}") from error
    groups = tuple(
        Group(name, tuple(task.task_name for task in group.get_all_tasks()), _by_size(group))
        for name, group in found.get("groups", {}).items()
        if name in wanted
    )
    return Loaded(found["tasks"], groups)


def _matches(name: str, manager: TaskManager) -> list[str]:
    found = manager.match_tasks([name])
    if not found:
        raise DataError(f"there is no task {name!r}{did_you_mean(name, manager.all_tasks)}")
    return found


def _by_size(group: Any) -> bool:
    return any(each.weight_by_size for each in group.aggregate_metric_list or ())
