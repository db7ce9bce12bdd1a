"""--tasks and what belongs to it: options of the metric `tasks`."""

from __future__ import annotations

import argparse
from typing import Any

from llmquant.cli import arguments
from llmquant.errors import DataError


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument(
        "--tasks", type=arguments.words, default=[], metavar="A,B",
        help="tasks of lm-evaluation-harness that both models answer, such as lambada,piqa,blimp,arc_easy",
    )  # fmt: skip
    parser.add_argument(
        "--task-data", type=_file, action="append", default=[], metavar="NAME=FILE",
        help="where the data of lambada, piqa or blimp lies, where no network is",
    )  # fmt: skip
    parser.add_argument(
        "--task-include", action="append", default=[], metavar="DIR", help="a folder with definitions of tasks (YAML)"
    )
    parser.add_argument("--task-limit", type=arguments.count, metavar="N", help="only each task's first documents")


def asked(args: argparse.Namespace) -> dict[str, Any]:
    """The metrics that --metric and --tasks ask for, by name.

    Raises:
        DataError: if something is said of tasks, but none is named.
    """
    metrics = dict(args.metric)
    if not args.tasks:
        if args.task_data or args.task_include or args.task_limit:
            raise DataError("--task-data, --task-include and --task-limit say how tasks run; name some: --tasks A,B")
        return metrics
    found = {"names": args.tasks, "files": dict(args.task_data), "include": args.task_include, "limit": args.task_limit}
    more = metrics.get("tasks")
    return {**metrics, "tasks": {**found, **(more if isinstance(more, dict) else {})}}


def _file(text: str) -> tuple[str, str]:
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted NAME=FILE, such as lambada=lambada_test.jsonl")
    return name, path
