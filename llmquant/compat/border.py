"""The border to code that is not ours: what it makes of damaged files, it says in thirteen kinds of exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import OutOfMemoryError

from llmquant.errors import CheckpointError, LlmquantError


@contextmanager
def foreign(what: str, kind: type[LlmquantError] = CheckpointError) -> Iterator[None]:
    """Turn whatever transformers and its libraries raise inside the block into one kind of our errors.

    Only calls of their code belong inside: what our own code raises by mistake shall be seen as it is. What is checked
    before has the better messages; this is for the rest. Too little memory is no fault of a checkpoint and passes.

    `what` was attempted, with the name of the files, as in "/models/x: cannot load it".

    Raises:
        LlmquantError: of `kind`, with the first line of what was raised.
    """
    try:
        yield
    except (LlmquantError, MemoryError, OutOfMemoryError):
        raise
    except Exception as error:
        raise kind(f"{what} ({type(error).__name__}: {first_line(error)})") from error


def first_line(error: Exception) -> str:
    """The first line of a message that is not empty, cut to what one can read."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:500] if lines else "no reason given"
