"""What other people's code raises becomes one kind of our errors; what is no fault of a file passes."""

from __future__ import annotations

import pytest
import torch

from llmquant.compat.border import first_line, foreign
from llmquant.errors import CheckpointError, DataError, PlanError


@pytest.mark.parametrize("error", [KeyError("x"), OSError("x"), RecursionError("x"), AssertionError("x")])
def test_whatever_is_raised_is_translated(error: Exception) -> None:
    with (
        pytest.raises(DataError, match=rf"^cannot load it \({type(error).__name__}: ") as caught,
        foreign("cannot load it", DataError),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [MemoryError("x"), torch.OutOfMemoryError("x"), PlanError("x"), KeyboardInterrupt()])
def test_too_little_memory_and_our_own_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, foreign("cannot load it"):
        raise error
    assert caught.value is error


def test_first_line() -> None:
    assert first_line(ValueError("\n  \n the reason \nmore")) == "the reason"
    assert first_line(CheckpointError("")) == "no reason given"
    assert len(first_line(ValueError("x" * 9000))) == 500
