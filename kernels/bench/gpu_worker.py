"""`python -m llmquant.kernels.bench.gpu_worker`: one measuring process, started by gpu_watch.py."""

from __future__ import annotations

import os
import sys
from typing import Any

from llmquant.kernels.bench.gpu_cases import Plan
from llmquant.kernels.bench.gpu_session import Before, DeadContextError, Session, Tell, said
from llmquant.kernels.bench.gpu_timing import Stopwatch
from llmquant.kernels.bench.gpu_watch import serve

_SECONDS = 0.35  # for all rounds of a cell
_DEAD = 3  # exit code: another process has to go on


def run(task: dict[str, Any], tell: Tell) -> None:
    """Do what is left of a run."""
    before = Before(*(frozenset(task[name]) for name in ("done", "excluded", "wrong")))
    try:
        plan = Plan.read(task["plan"])
        Session(plan, tell, task["deadline"], before, None if plan.dry else Stopwatch(_SECONDS)).run()
    except DeadContextError as error:
        print(said(error), file=sys.stderr, flush=True)
        os._exit(_DEAD)  # what clears up at a usual exit would call the GPU, which answers nobody


if __name__ == "__main__":
    serve(run)
