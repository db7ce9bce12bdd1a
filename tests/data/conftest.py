"""The character tokenizers and the text of the evaluation's tests."""

from tests.engine.conftest import text_file
from tests.eval.conftest import plain_tokenizer, text, tokenizer

__all__ = ["plain_tokenizer", "text", "text_file", "tokenizer"]
