"""Documents to token windows: the protocol beside every number.

Documents are tokenised one by one without special tokens, each followed by a separator, and laid end to end. Windows
of `length` tokens start every `stride` text tokens; where the tokenizer puts something in front of a text, such as a
BOS token, each window begins with it. Each text token is scored at most once: a later window scores only the tokens
that no earlier window scored, and a token without any context is never scored. The incomplete window at the end is
dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmquant.data.calibration import SEPARATOR, encode, text_prefix, tokens_hash
from llmquant.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_LENGTH = 512
_CHARACTERS_PER_TOKEN = 16  # generous: a long text is tokenised no further than a limit on windows needs


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the text became scored tokens."""

    source: str  # the user's word for the text, such as a file name
    length: int  # tokens in a window, `prefix_tokens` included
    stride: int  # text tokens between the starts of neighbouring windows
    prefix_tokens: int  # that the tokenizer puts in front of a text; each window begins with them; 1 is BOS
    separator: str  # put after each document
    documents: int
    windows: int
    scored_tokens: int  # tokens whose log-probability counts; at most `length - 1` in a window
    data_hash: str  # "sha256:" and the hash of all window token ids (row by row, little-endian int64)
    name: str = "tokens"  # of the protocol, see `llmquant.data.protocols`
    text_tokens: int | None = None  # of the whole text; None if it was not read to its end


@dataclass(frozen=True, slots=True)
class Windows:
    """Token windows and what is scored in them."""

    ids: Tensor  # (windows, length) int64
    scored: Tensor  # (windows, length - 1) bool; position t stands for the prediction of token t + 1
    protocol: Protocol

    def __len__(self) -> int:
        return self.ids.shape[0]


def make_windows(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    source: str,
    length: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    context: int | None = None,
    bos: bool | None = None,
    separator: str = SEPARATOR,
) -> Windows:
    """Tokenise documents (see `llmquant.data.text.read_documents`) with the baseline's tokenizer into windows.

    A window has `length` tokens: 512 if None, or the model's `context` limit where that is smaller. Without `stride`
    windows do not overlap. `max_windows` keeps only the first; `source` is the user's word for the text. Each window
    begins as the tokenizer begins a text; with `bos` True by its BOS token, with False by nothing.

    Raises:
        DataError: if the tokenizer is missing or has no BOS token, a number is out of range, or the text is shorter
            than one window.
    """
    if tokenizer is None:
        raise DataError(
            "the model folder has no tokenizer, and perplexity needs one; copy the baseline's tokenizer files there"
        )
    prefix = _prefix(tokenizer, bos)
    length = _checked_length(length, context, len(prefix))
    body = length - len(prefix)
    stride = body if stride is None else stride
    if not 1 <= stride <= body:
        raise DataError(f"stride must lie between 1 and {body} (the text tokens of a window), not {stride}")
    if max_windows is not None and max_windows < 1:
        raise DataError(f"max_windows must be at least 1, not {max_windows}")
    needed = None if max_windows is None else body + (max_windows - 1) * stride
    tokens, all_read = _tokenise(documents, tokenizer, needed, separator)
    if tokens.numel() < body:
        raise DataError(
            f"{source}: the text has {tokens.numel()} tokens, shorter than one window of {body}; "
            "give a longer text or a smaller length"
        )
    ids = tokens.unfold(0, body, stride)[:max_windows].clone()
    ids = torch.cat([torch.tensor(prefix, dtype=ids.dtype).expand(len(ids), -1), ids], dim=1)
    scored = torch.ones(len(ids), length - 1, dtype=torch.bool)
    scored[:, : max(len(prefix) - 1, 0)] = False  # the prefix itself is no text
    scored[1:, : max(length - 1 - stride, 0)] = False  # an earlier window scored them
    protocol = Protocol(
        source=source,
        length=length,
        stride=stride,
        prefix_tokens=len(prefix),
        separator=separator,
        documents=len(documents),
        windows=len(ids),
        scored_tokens=int(scored.sum()),
        data_hash=f"sha256:{tokens_hash(ids)}",
        text_tokens=tokens.numel() if all_read else None,
    )
    return Windows(ids, scored, protocol)


def _prefix(tokenizer: PreTrainedTokenizerBase, bos: bool | None) -> list[int]:
    if bos is None:
        return text_prefix(tokenizer)
    if bos and tokenizer.bos_token_id is None:
        raise DataError("--bos: the tokenizer has no BOS token; leave it out")
    return [int(tokenizer.bos_token_id)] if bos else []  # pyright: ignore[reportArgumentType]  # never a list


def _checked_length(length: int | None, context: int | None, prefix: int) -> int:
    if length is None:
        return min(DEFAULT_LENGTH, context or DEFAULT_LENGTH)
    if length < (least := max(2, prefix + 1)):
        raise DataError(f"a window needs at least {least} tokens to score one, not {length}")
    if context is not None and length > context:
        raise DataError(
            f"windows of {length} tokens exceed the model's context of {context}; use a length of at most {context}"
        )
    return length


def _tokenise(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, needed: int | None, separator: str
) -> tuple[Tensor, bool]:
    """All tokens, or at least the first `needed` ones; and whether they are all."""
    tokens: list[int] = []
    all_read = True
    for document in documents:
        if needed is not None and len(tokens) >= needed:
            all_read = False
            break
        text = document + separator
        if needed is not None and len(text) > (limit := _CHARACTERS_PER_TOKEN * (needed - len(tokens) + 1)):
            head = encode(tokenizer, text[:limit])
            if len(tokens) + len(head) > needed:  # the last token before the cut may be wrong, and is not used
                tokens += head[:-1]
                all_read = False
                continue
        tokens += encode(tokenizer, text)
    return torch.tensor(tokens, dtype=torch.int64), all_read
