"""What goes wrong in a worker, in one line; and what no worker can go on after."""

from __future__ import annotations


class DeadContextError(RuntimeError):
    """The GPU refuses this process from now on."""


def said(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
