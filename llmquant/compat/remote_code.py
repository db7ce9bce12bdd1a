"""Code that a checkpoint brings along ("remote code"): it runs only where the caller says so.

Left alone, transformers asks on standard input, and whatever answers "y" runs it. Every call that could run such code
therefore passes `trust_remote_code` as True or False, inside a block that makes a refusal an error of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmquant.errors import CheckpointError

_PACKAGE = "transformers_modules"  # where transformers puts the modules that it fetched from checkpoints


@contextmanager
def remote_code_of(source: str | Path) -> Iterator[None]:
    """Name the way forward when something inside the block needs code of the checkpoint.

    Raises:
        CheckpointError: if the code is needed and not trusted, or trusted and lacks a package.
    """
    try:
        yield
    except ImportError as error:
        raise CheckpointError(f"{source}: a package is missing: {' '.join(str(error).split())}") from error
    except ValueError as error:
        if isinstance(error, CheckpointError) or "trust_remote_code" not in str(error):
            raise
        raise CheckpointError(
            f"{source}: needs code that comes with the checkpoint (auto_map in its configuration), which llmquant does "
            "not run unasked. Read that code; if you trust it, use --trust-remote-code (trust_remote_code=True in "
            "Python)"
        ) from error


def runs_remote_code(model: object) -> bool:
    """Whether the class of a loaded model came with its checkpoint, so that whoever loaded it trusts that code."""
    return type(model).__module__.split(".")[0] == _PACKAGE
