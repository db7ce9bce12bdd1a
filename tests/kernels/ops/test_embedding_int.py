"""The op `llmquant::embedding_int`: rows of the dequantized weight, bit for bit, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llmquant.kernels.cpu import native
from llmquant.kernels.ops.dequantize import dequantize
from llmquant.kernels.ops.embedding_int import OP
from llmquant.spec import BITS

SCHEMES = [("", 33), ("-asym", 33), ("-g8", 40), ("-g11-asym", 33), ("-tensor", 9), ("-tensor-asym", 9)]


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("scheme", "width"), SCHEMES)
def test_rows_of_the_weight(
    make_packed: Callable, monkeypatch: pytest.MonkeyPatch, bits: int, scheme: str, width: int, library: bool
) -> None:
    if not library:
        monkeypatch.setattr(native, "library", lambda: None)
    p = make_packed(f"int{bits}{scheme}", 45, width, torch.bfloat16)
    weight = p.weight64()
    for ids in (torch.randint(45, (2, 7)), torch.arange(45), torch.tensor(44), torch.zeros(0, 3, dtype=torch.int32)):
        got = OP(ids, p.packed, p.scale, p.zero, bits, width, torch.bfloat16)
        assert got.shape == (*ids.shape, width)
        assert got.dtype == torch.bfloat16
        assert torch.equal(got.double(), weight[ids.long()])
    wide = OP(torch.arange(45), p.packed, p.scale, p.zero, bits, width, torch.float32)
    assert torch.equal(wide, dequantize(p.packed, p.scale, p.zero, bits, width, torch.float32))


def test_float64_scales_take_the_torch_path(make_packed: Callable) -> None:
    p = make_packed("int4-g8-asym", 20, 24, torch.float64)
    ids = torch.tensor([3, 19, 0])
    assert torch.equal(OP(ids, p.packed, p.scale, p.zero, 4, 24, torch.float64), p.weight64()[ids])


@pytest.mark.parametrize("row", [5, -1])
def test_ids_that_are_no_rows_are_refused(make_packed: Callable, row: int) -> None:
    p = make_packed("int8", 5, 16)
    with pytest.raises(IndexError):
        OP(torch.tensor([row]), p.packed, p.scale, p.zero, 8, 16, torch.float32)


def test_wrong_tensors_are_refused(make_packed: Callable) -> None:
    p = make_packed("int8", 5, 16)
    with pytest.raises(RuntimeError, match="ids are int64 or int32"):
        OP(torch.tensor([1.0]), p.packed, p.scale, p.zero, 8, 16, torch.float32)
    with pytest.raises(RuntimeError, match="a weight with 24 inputs"):
        OP(torch.tensor([1]), p.packed, p.scale, p.zero, 8, 24, torch.float32)


def test_registration(make_packed: Callable) -> None:
    p = make_packed("int4-g8-asym", 20, 24)
    arguments = (torch.tensor([[3, 19]]), p.packed, p.scale, p.zero, 4, 24, torch.float32)
    torch.library.opcheck(OP, arguments)
