"""Calibration windows: which tokens the statistics are collected on."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmquant.compat.config import whole_number
from llmquant.data.text import read_documents
from llmquant.errors import DataError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from llmquant.recipe.schema import Calibration

SEPARATOR = "\n\n"  # between pieces, as evaluation puts it between documents
_CHARACTERS_PER_PIECE = 4 * 4  # by the tokens of a window: four windows, about four characters in a token


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """`note` is what the user should know: that the text is a built-in one, what was changed against the recipe."""

    windows: Tensor  # (samples, length) int64 token ids
    sha256: str  # of the token ids, which goes into the report and guards a resumed run
    note: str = ""


def load_calibration(spec: Calibration, tokenizer: Any, *, context: int | None = None) -> CalibrationData:
    """Sample the windows that a recipe's calibration block asks for.

    Each window is the beginning-of-text token (or whatever the tokenizer adds, if anything) and then text, as a model
    meets it at the start of a prompt; it stands nowhere else, whatever the text spells out, for none of the windows
    that a model is evaluated or used on has it inside. Documents are cut into pieces of about four windows, so that a
    long one does not fill the whole sample, and the pieces are drawn in an order fixed by the seed and laid end to end.
    Windows longer than `context`, the longest input of the model, are cut to it, and the note says so.

    Raises:
        DataError: if the text is too short for the windows that were asked, or the context for any text.
    """
    length = min(spec.length, context) if context else spec.length
    notes = []
    if spec.dataset.startswith("builtin:"):
        notes.append(f"calibrating on the built-in text {spec.dataset}; text like the model will see is better")
    if length != spec.length:
        notes.append(f"windows cut from {spec.length} to the model's context of {length} tokens")
    prefix = text_prefix(tokenizer)
    body = length - len(prefix)
    if body < 1:
        raise DataError(
            f"windows of {length} tokens (the model takes {context} at once) have no place for text behind the "
            f"{len(prefix)} that the tokenizer puts in front of it; ask for longer samples"
        )
    wanted = spec.samples * body
    size = body * _CHARACTERS_PER_PIECE
    documents = read_documents(spec.dataset, split=spec.split, column=spec.column)
    pieces = [document[i : i + size] for document in documents for i in range(0, len(document), size)]
    random.Random(spec.seed).shuffle(pieces)
    tokens: list[int] = []
    for piece in pieces:
        tokens += [token for token in encode(tokenizer, piece + SEPARATOR) if token not in prefix]
        if len(tokens) >= wanted:
            break
    else:
        raise DataError(
            f"{spec.dataset} gives {len(tokens)} tokens of text, but {spec.samples} samples of {length} need {wanted}; "
            "ask for fewer or shorter samples, or give more text"
        )
    rows = torch.tensor(tokens[:wanted], dtype=torch.int64, device="cpu").view(spec.samples, body)
    start = torch.tensor(prefix, dtype=torch.int64, device="cpu").expand(spec.samples, -1)
    windows = torch.cat([start, rows], 1)
    return CalibrationData(windows, tokens_hash(windows), "; ".join(notes))


def context_limit(config: PretrainedConfig) -> int | None:
    """The most tokens a model takes at once, or None where its configuration names no limit."""
    return whole_number(config.get_text_config(), "max_position_embeddings")


def check_vocabulary(tokens: Tensor, model: PreTrainedModel) -> None:
    """Check that a model knows all token ids.

    Raises:
        DataError: if it does not: the tokenizer is another model's.
    """
    table: Any = model.get_input_embeddings()
    # A packed table has no weight to ask.
    rows = table.num_embeddings if hasattr(table, "num_embeddings") else table.weight.shape[0]
    largest = int(tokens.max())
    if largest >= rows:
        raise DataError(f"the tokenizer gives token {largest}, but the model knows {rows}; it belongs to another model")


def text_prefix(tokenizer: Any) -> list[int]:
    """What a tokenizer puts in front of a text: a beginning-of-text token, nothing, or several (GLM: [gMASK]<sop>)."""
    whole, text = list(tokenizer("a")["input_ids"]), encode(tokenizer, "a")
    ends = range(len(whole) - len(text) + 1)
    return whole[: next((end for end in ends if whole[end : end + len(text)] == text), 0)]


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without special tokens, and without the warning about the context length."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def tokens_hash(tokens: Tensor) -> str:
    """SHA-256 of token ids (any shape) as little-endian int64."""
    return hashlib.sha256(tokens.to(torch.int64).contiguous().numpy().tobytes()).hexdigest()
