"""Protocols by name: which text, how it becomes windows, so that a perplexity can stand beside published ones.

"tokens" is our own: any text, document by document, each window begun as the model meets a text. "wikitext2" and "c4"
are those of GPTQ (Frantar et al. 2023, arXiv 2210.17323; https://github.com/IST-DASLab/gptq, datautils.py), which most
papers on quantization repeat: rows joined to one text, cut into windows of 2,048 tokens, no BOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.data.text import read_documents, read_rows, read_text
from llmquant.data.windows import DEFAULT_LENGTH, Protocol, Windows, make_windows
from llmquant.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A protocol that lays rows of a data set end to end and reads them as one text."""

    text: str  # where it comes from unless a file is named
    glue: str  # between rows
    rows: int | None = None  # only the first
    windows: int | None = None  # only the first


LENGTH = 2048
JOINED = {
    "wikitext2": Joined(text="hub:Salesforce/wikitext:wikitext-2-raw-v1:test", glue="\n\n"),
    "c4": Joined(text="hub:allenai/c4:en:validation", glue=" ", rows=1100, windows=256),
}
PROTOCOLS = ("tokens", *JOINED)
DEFAULT_TEXT = "builtin:python"


def windows_of(
    protocol: str,
    text: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    length: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    context: int | None = None,
    bos: bool | None = None,
) -> Windows:
    """The windows of one of `PROTOCOLS`, read from `text` or, without one, from where the protocol takes it.

    The rest is as in `make_windows`; a number that is given goes before the protocol's.

    Raises:
        DataError: if there is no such text, or as `make_windows`.
    """
    joined = JOINED.get(protocol)
    if joined is None:
        source = text or DEFAULT_TEXT
        documents = read_documents(source, split="eval" if source.startswith("builtin:") else "test")
        length = length or min(DEFAULT_LENGTH, context or DEFAULT_LENGTH)
        return make_windows(
            documents, tokenizer, source=source, length=length, stride=stride, max_windows=max_windows,
            context=context, bos=bos,
        )  # fmt: skip
    source = text or joined.text
    windows = make_windows(
        [joined.glue.join(islice(_rows(source), joined.rows))], tokenizer, source=source, separator="",
        length=length or min(LENGTH, context or LENGTH), stride=stride, max_windows=max_windows or joined.windows,
        context=context, bos=bool(bos),
    )  # fmt: skip
    return replace(windows, protocol=replace(windows.protocol, name=protocol))


def departures(protocol: Protocol) -> list[str]:
    """In words, how these windows differ from those of the published protocol that they are called by."""
    joined, found = JOINED.get(protocol.name), []
    if joined is None:
        return found
    if protocol.length != LENGTH:
        why = f"cut from {LENGTH} to the model's context or the length asked for"
        found.append(f"windows of {protocol.length}, {why if protocol.length < LENGTH else f'not {LENGTH}'}")
    known = None if protocol.text_tokens is None else protocol.text_tokens // (protocol.length - protocol.prefix_tokens)
    whole = min((count for count in (joined.windows, known) if count is not None), default=None)
    if whole is None or protocol.windows < whole:
        found.append(f"only the first {protocol.windows} windows{f' of {whole}' if whole else ''}")
    return found


def _rows(source: str) -> Sequence[str]:
    """Rows as the data set has them. A .txt file is the joined text already; WikiText's own file has a row a line."""
    if source.startswith("builtin:"):
        raise DataError(f"{source} is no text of a published protocol; name a file, or leave the text out")
    if not source.endswith(".raw"):
        return list(read_rows(source))
    lines = read_text(Path(source)).split("\n")
    return [f"{line}\n" if line.strip() else "" for line in lines[:-1]]
