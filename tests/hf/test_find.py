"""Which modules of a model a checkpoint stores packed."""

from __future__ import annotations

import pytest

from llmquant.formats.compressed_tensors.config import quantization_config
from llmquant.hf.find import NotPackable, find_packed
from llmquant.spec import Scheme
from tests.architectures.tiny import tiny_model

INT8 = Scheme.parse("int8-g32")
HEAD, TABLE = "lm_head", "model.embed_tokens"


def stored(*names: str) -> dict:
    return quantization_config(dict.fromkeys(names, INT8), [], embeddings=True)


def keys(*names: str) -> list[str]:
    return [f"{name}.weight_{part}" for name in names for part in ("packed", "scale", "shape")]


def test_of_a_tied_pair_the_embedding_is_packed() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    assert find_packed(model, stored(TABLE), keys(TABLE)) == {TABLE: INT8}
    assert find_packed(model, stored(HEAD, TABLE), keys(HEAD, TABLE)) == {TABLE: INT8}
    with pytest.raises(NotPackable, match=f"{HEAD} is packed, but shares the weight of {TABLE}, which is not"):
        find_packed(model, stored(HEAD), keys(HEAD))


def test_apart_each_is_packed_for_itself() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    assert find_packed(model, stored(HEAD), keys(HEAD)) == {HEAD: INT8}
    assert find_packed(model, stored(HEAD, TABLE), keys(HEAD, TABLE)) == {HEAD: INT8, TABLE: INT8}
