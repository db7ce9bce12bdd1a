"""Names of what runs; tests/nn/test_prepared.py and test_gpu_prepared.py run it."""

from __future__ import annotations

from llmquant.kernels.backend import embedding_name, reference_name


def test_what_is_not_prepared_is_named_with_what_unpacks_it() -> None:
    assert reference_name(4, "cpu").startswith("linear_int4: reference, ")
    assert reference_name(8, "cuda") == "linear_int8: reference, torch unpack"
    assert embedding_name(8, "cpu").startswith("embedding_int8: ")
