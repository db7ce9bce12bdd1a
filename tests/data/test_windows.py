"""Windows against a direct loop over the token stream."""

from __future__ import annotations

import copy
import hashlib
import struct

import pytest
from tokenizers import processors
from transformers import LlamaConfig, PreTrainedTokenizerFast

from llmquant.data.calibration import context_limit
from llmquant.data.windows import SEPARATOR, make_windows
from llmquant.errors import DataError


def _stream(documents: list[str], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return [token for text in documents for token in tokenizer(text + SEPARATOR, add_special_tokens=False).input_ids]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("length", "stride"), [(16, None), (16, 5), (16, 1), (16, 15), (2, None), (2, 1)])
def test_windows_equal_a_direct_loop(tokenizer, plain_tokenizer, text, bos, length, stride) -> None:
    used = tokenizer if bos else plain_tokenizer
    documents = [text[:150], text[150:190]]
    windows = make_windows(documents, used, source="t", length=length, stride=stride)
    stream = _stream(documents, used)
    body = length - bos
    step = stride or body
    rows, masks, seen = [], [], set()
    for begin in range(0, len(stream) - body + 1, step):
        rows.append([0] * bos + stream[begin : begin + body])
        mask = []
        for place in range(1, length):
            at = begin + place - bos
            mask.append(at not in seen)
            seen.add(at)
        masks.append(mask)
    assert windows.ids.tolist() == rows
    assert windows.scored.tolist() == masks
    assert windows.protocol.scored_tokens == sum(map(sum, masks))
    assert (windows.protocol.windows, windows.protocol.prefix_tokens) == (len(rows), bos)
    packed = b"".join(struct.pack("<q", token) for row in rows for token in row)
    assert windows.protocol.data_hash == "sha256:" + hashlib.sha256(packed).hexdigest()


def test_full_stride_without_bos_leaves_first_tokens_unscored(plain_tokenizer, text) -> None:
    windows = make_windows([text], plain_tokenizer, source="t", length=10, stride=10)
    assert windows.scored.all()
    assert windows.protocol.scored_tokens == 9 * len(windows)


@pytest.mark.parametrize("max_windows", [1, 3, 7])
def test_limited_windows_are_the_first_ones(tokenizer, text, max_windows) -> None:
    documents = [text, text[::-1], text * 20]
    every = make_windows(documents, tokenizer, source="t", length=32, stride=20)
    few = make_windows(documents, tokenizer, source="t", length=32, stride=20, max_windows=max_windows)
    assert few.ids.tolist() == every.ids[:max_windows].tolist()
    assert few.scored.tolist() == every.scored[:max_windows].tolist()
    assert (few.protocol.text_tokens, every.protocol.text_tokens) == (None, len(_stream(documents, tokenizer)))


def test_limit_tokenises_only_what_it_needs(text) -> None:
    calls: list[int] = []

    class Counting:
        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            calls.append(len(text))
            return {"input_ids": list(range(len(text)))}

    windows = make_windows([text * 1000], Counting(), source="t", length=16, max_windows=2)  # type: ignore[arg-type]
    assert windows.ids.shape == (2, 16)
    assert sum(calls) < 1000


def test_length_follows_the_context(tokenizer, text) -> None:
    assert make_windows([text], tokenizer, source="t", context=64).protocol.length == 64
    assert make_windows([text], tokenizer, source="t", context=9999).protocol.length == 512
    assert context_limit(LlamaConfig(max_position_embeddings=77)) == 77
    with pytest.raises(DataError, match="65 tokens exceed the model's context of 64"):
        make_windows([text], tokenizer, source="t", length=65, context=64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "at least 2 tokens"),
        ({"length": 16, "stride": 16}, "stride must lie between 1 and 15"),
        ({"length": 16, "stride": 0}, "stride must lie between"),
        ({"length": 16, "max_windows": 0}, "at least 1"),
        ({"length": 4096}, "702 tokens, shorter than one window of 4095"),
    ],
)
def test_bad_options_are_refused(tokenizer, text, options, message) -> None:
    with pytest.raises(DataError, match=message):
        make_windows([text], tokenizer, source="t", **options)


@pytest.mark.parametrize("stride", [None, 5])
def test_a_prefix_of_several_tokens_is_there_once_and_not_scored(plain_tokenizer, text, stride) -> None:
    tokenizer = copy.deepcopy(plain_tokenizer)
    special = [("<s>", 0), ("<unk>", 1)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <unk> $A <s>", special_tokens=special
    )
    windows = make_windows([text], tokenizer, source="t", length=16, stride=stride)
    plain = make_windows([text], plain_tokenizer, source="t", length=14, stride=stride)
    assert windows.ids[:, :2].tolist() == [[0, 1]] * len(plain)
    assert windows.ids[:, 2:].tolist() == plain.ids.tolist()
    assert windows.scored[:, 0].tolist() == [False] * len(plain)
    assert windows.scored[0, 1:].all()
    assert windows.scored[:, 2:].tolist() == plain.scored.tolist()
    assert windows.protocol.prefix_tokens == 2
    assert windows.protocol.scored_tokens == windows.scored.sum()
    with pytest.raises(DataError, match="at least 3 tokens"):
        make_windows([text], tokenizer, source="t", length=2)


def test_missing_tokenizer_is_refused(text) -> None:
    with pytest.raises(DataError, match="no tokenizer"):
        make_windows([text], None, source="t")
