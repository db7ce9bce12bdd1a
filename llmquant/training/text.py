"""Text as the rows that are trained on, and those that are held out."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llmquant.data.text import read_documents
from llmquant.data.windows import Windows, make_windows
from llmquant.errors import DataError

HELD_OUT, MOST_HELD_OUT = 0.05, 64  # share of what is trained on, and how many windows are enough
Row = dict[str, Tensor]


@dataclass(frozen=True)
class TrainingText:
    """Rows of `input_ids` and `labels`, each (length,) int64; a label of -100 does not count."""

    train: list[Row]
    valid: list[Row]
    about: dict[str, Any]  # for llmquant.json

    @property
    def identity(self) -> dict[str, Any]:
        """What of it two runs must have in common: the tokens, not where they lie."""
        return {name: value for name, value in self.about.items() if not name.endswith("text")}

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return len(self.train[0]["input_ids"])


def load_rows(
    text: str, valid: str | None, tokenizer: Any, *, length: int, context: int | None, wanted: int | None = None
) -> TrainingText:
    """Cut texts (see `read_documents`) into windows as evaluation does.

    Without a text for validation the last windows of `text` are held out: a twentieth, at least 1 and at most 64.
    Of "builtin:python" that is the split for training, in a mixed order.
    Windows longer than the model's context are cut to it. `text` is read no further than `wanted` windows need.

    Raises:
        DataError: if there is no such text, or it is too short.
    """
    length = min(length, context or length)
    enough = None if wanted is None else wanted + _held_out(wanted)
    windows = make_windows(_documents(text), tokenizer, source=text, length=length, max_windows=enough)
    rows = _rows(windows)
    about = {"text": text, "sha256": windows.protocol.data_hash, "length": length}
    if valid is not None:
        held = make_windows(read_documents(valid), tokenizer, source=valid, length=length, max_windows=MOST_HELD_OUT)
        about |= {"valid_text": valid, "valid_sha256": held.protocol.data_hash}
        held_rows = _rows(held)
    elif len(rows) < 2:
        raise DataError(
            f"{text}: the text has one window of {length} tokens, and one more is needed to hold out; give a longer "
            "text, a smaller length, or another text for validation"
        )
    else:
        count = _held_out(min(len(rows), wanted or len(rows)))
        rows, held_rows = rows[:-count], rows[-count:]
    return TrainingText(rows, held_rows, about | {"windows": len(rows), "valid_windows": len(held_rows)})


def _documents(text: str) -> list[str]:
    if text != "builtin:python":
        return read_documents(text)
    documents = read_documents(text, split="train")
    random.Random(0).shuffle(documents)  # modules by name: those of asyncio would come first, and often alone
    return documents


def _held_out(rows: int) -> int:
    return min(MOST_HELD_OUT, max(1, round(HELD_OUT * rows)))


def _rows(windows: Windows) -> list[Row]:
    labels = windows.ids.clone()
    labels[:, 1:][~windows.scored] = -100
    return [{"input_ids": ids, "labels": row} for ids, row in zip(windows.ids, labels, strict=True)]
