"""Messages are bounded, whatever is put into them."""

import pickle

import pytest

from llmquant import errors


@pytest.mark.parametrize("kind", [errors.LlmquantError, errors.RecipeError, errors.OutputError, errors.PatternError])
def test_a_message_of_megabytes_is_cut(kind: type[errors.LlmquantError]) -> None:
    short, long = kind("what was got"), kind("x" * 10_000_000)
    assert str(short) == "what was got"
    assert len(str(long)) < errors.MAX_MESSAGE + 100
    assert "more characters" in str(long)
    assert str(pickle.loads(pickle.dumps(long))) == str(long)
