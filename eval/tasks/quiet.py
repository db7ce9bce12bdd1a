"""The harness and `datasets` without their bars and log lines, which would tear up our own display."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import lm_eval.api.task
import lm_eval.models.huggingface
from tqdm import tqdm

_DRAWING = (lm_eval.api.task, lm_eval.models.huggingface)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block only errors are logged, and no bar is drawn; then all is as before."""
    logger, drawn = logging.getLogger("lm_eval"), not datasets.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    for module in _DRAWING:
        vars(module)["tqdm"] = _silent
    try:
        yield
    finally:
        for module in _DRAWING:
            vars(module)["tqdm"] = tqdm
        logger.setLevel(level)
        if drawn:
            datasets.enable_progress_bars()


def _silent(*args: Any, **given: Any) -> Any:
    return tqdm(*args, **{**given, "disable": True})
