"""Layouts and numbers as vLLM has them."""

from __future__ import annotations

import torch

from llmquant.kernels.bench.peers.marlin import marlin_scales, marlin_zeros, scalar_type


def test_type_numbers_are_vllms() -> None:
    # uint4b8, uint8b128 and uint4 of vllm/scalar_type.py, 0.25.0
    assert [scalar_type(4, 8), scalar_type(8, 128), scalar_type(4, 0)] == [
        1125899907892224, 1125899923621888, 1125899906843648,
    ]  # fmt: skip


def test_marlin_order() -> None:
    grouped = marlin_scales(torch.arange(128).view(2, 64), grouped=True)
    assert grouped[0, :10].tolist() == [0, 8, 16, 24, 32, 40, 48, 56, 1, 9]
    assert marlin_scales(torch.arange(64).view(1, 64), grouped=False)[0, :9].tolist() == [0, 1, 8, 9, 16, 17, 24, 25, 2]
    zeros = torch.zeros(64, 3, dtype=torch.int8)
    zeros[16, 1] = 7  # third in Marlin's order, and so, interleaved, second in its word
    words = marlin_zeros(zeros)
    assert tuple(words.shape) == (3, 8)
    assert words[0, 0] == -0x77777778  # code 0 is stored as 8
    assert words[1, 0] ^ words[0, 0] == (8 ^ 15) << 4
