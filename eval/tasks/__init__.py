"""Tasks of EleutherAI's lm-evaluation-harness on our model objects, and the statistics of two models' answers.

The harness (`lm_eval`, the extra `llmquant[eval]`) is imported when a task is asked for, since that takes seconds.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec

from llmquant.errors import DataError


def require() -> None:
    """Import the harness.

    Raises:
        DataError: where it is not installed.
    """
    if find_spec("lm_eval") is None:
        raise DataError("tasks need the package lm-eval, which is not installed: pip install 'llmquant[eval]'")
    before = set(os.environ)
    import_module("lm_eval")
    for name in set(os.environ) - before:  # it sets HF_XET_HIGH_PERFORMANCE for the whole process
        del os.environ[name]
