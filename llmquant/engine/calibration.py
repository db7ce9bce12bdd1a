"""Calibration windows: which tokens the statistics are collected on."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmquant.engine.text import read_documents
from llmquant.errors import DataError

if TYPE_CHECKING:
    from llmquant.recipe.schema import Calibration

_WINDOWS_PER_DOCUMENT = 4  # one long document must not fill the whole sample
_PIECE = 1 << 16  # characters: a book in one file is many documents, and is not tokenized whole


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """Attributes:
    windows: (samples, length) int64 token ids.
    sha256: hash of the token ids, which goes into the report and guards a resumed run.
    note: what had to be changed against the recipe, or "".
    """

    windows: Tensor
    sha256: str
    note: str = ""


def load_calibration(spec: Calibration, tokenizer: Any, *, context: int | None = None) -> CalibrationData:
    """Sample the windows that a recipe asks for.

    Each window is the beginning-of-text token (where the tokenizer adds one) and then text, as a model meets it at the
    start of a prompt; documents are drawn in an order fixed by the seed, at most four windows from each.

    Args:
        spec: the recipe's calibration block.
        tokenizer: a Hugging Face tokenizer.
        context: the longest input of the model; longer windows are cut to it, and the note says so.

    Raises:
        DataError: if the text is too short for a single window, or for as many as were asked.
    """
    length = min(spec.length, context) if context else spec.length
    note = "" if length == spec.length else f"windows cut from {spec.length} to the model's context of {length} tokens"
    documents = [
        document[i : i + _PIECE]
        for document in read_documents(spec.dataset, split=spec.split, column=spec.column)
        for i in range(0, len(document), _PIECE)
    ]
    random.Random(spec.seed).shuffle(documents)
    bos = bos_tokens(tokenizer)
    body = length - len(bos)
    wanted = spec.samples * body

    def collect(per_document: int | None) -> list[int]:
        rng, tokens = random.Random(spec.seed), []
        for document in documents:
            ids = encode(tokenizer, document)
            if per_document and len(ids) > per_document:
                start = rng.randrange(len(ids) - per_document + 1)
                ids = ids[start : start + per_document]
            tokens += bos + ids
            if len(tokens) >= wanted:
                break
        return tokens

    tokens = collect(_WINDOWS_PER_DOCUMENT * body)
    if len(tokens) < wanted:
        tokens = collect(None)
    if len(tokens) < wanted:
        raise DataError(
            f"{spec.dataset} gives {len(tokens)} tokens, but {spec.samples} samples of {length} need {wanted}; "
            "ask for fewer or shorter samples, or give more text"
        )
    rows = torch.tensor(tokens[:wanted], dtype=torch.int64).view(spec.samples, body)
    start = torch.tensor(bos, dtype=torch.int64).expand(spec.samples, -1)
    windows = torch.cat([start, rows], 1)
    return CalibrationData(windows, tokens_hash(windows), note)


def bos_tokens(tokenizer: Any) -> list[int]:
    """The beginning-of-text token as a list, empty where the tokenizer does not put one in front of a text."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return []
    return [bos] if tokenizer("a")["input_ids"][:1] == [bos] else []


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without special tokens, and without the warning about the context length."""
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def tokens_hash(tokens: Tensor) -> str:
    """SHA-256 of token ids (any shape) as little-endian int64."""
    return hashlib.sha256(tokens.to(torch.int64).contiguous().numpy().tobytes()).hexdigest()
