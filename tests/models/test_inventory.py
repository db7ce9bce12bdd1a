"""Matrices: how modules hold them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from llmquant.engine.layer import dense_weight, quantize_layer
from llmquant.models.inventory import ModuleInfo
from llmquant.models.skeleton import take_inventory
from llmquant.recipe.checks import Decision
from llmquant.recipe.load import load_recipe
from llmquant.recipe.plan import MatrixRow, rows_of
from llmquant.spec import Scheme
from tests.architectures.tiny import tiny_model

INT4 = load_recipe({"version": 1, "rules": [{"match": "linear", "scheme": "int4-g32"}]})
STACK = ModuleInfo("layers.3.mlp.experts.down_proj", "experts", (4, 32, 64), 4 * 32 * 64 + 4 * 64, 3, turned=True)


def test_a_stack_is_its_experts() -> None:
    rows = list(rows_of(Decision(STACK, 0, Scheme.parse("int4-g32")), INT4, torch.float16))
    assert [row.name for row in rows] == [f"layers.3.mlp.experts.down_proj.{index}" for index in range(4)]
    assert sum(row.bytes_before for row in rows) == 2 * STACK.parameters  # biases once
    parameter = torch.randn(STACK.shape)
    for index, row in enumerate(rows):
        assert isinstance(row, MatrixRow)
        assert row.matrix.shape == (64, 32)
        assert row.matrix.stored_shape == (32, 64)
        assert row.matrix.block == 3
        assert row.bits_per_weight == 4 + 16 / 32
        result = quantize_layer(row, parameter, None, torch.float32)
        step = result.quantized.scales.abs().max()
        assert dense_weight(row, result.quantized).sub(parameter[index]).abs().max() <= step


def test_what_turns() -> None:
    def of(model_type: str, leaf: str, **changes: Any) -> ModuleInfo:
        inventory = take_inventory(tiny_model(model_type, **changes))
        return next(module for module in inventory.modules if module.name.endswith(leaf))

    (fused,) = of("gpt2", "attn.c_attn").matrices
    assert fused.turned
    assert fused.stored_shape == fused.shape[::-1]
    assert not of("llama", "q_proj").matrices[0].turned
    assert all(matrix.turned for matrix in of("gpt_oss", "experts.down_proj").matrices)
    experts = of("mixtral", "experts.down_proj")
    assert [matrix.index for matrix in experts.matrices] == list(range(experts.shape[0]))
    assert not any(matrix.turned for matrix in experts.matrices)
    assert experts.matrices[0].shape == experts.shape[1:]
    assert of("gpt2", "wte").matrices[0].table
    assert of("gpt2", "ln_f").matrices == ()


def test_a_view_and_back() -> None:
    matrix = STACK.matrices[2]
    parameter = torch.randn(STACK.shape)
    assert torch.equal(matrix.held(matrix.of(parameter)), parameter[2])
    straight = replace(matrix, turned=False, index=None)
    assert torch.equal(straight.of(parameter[2]), parameter[2])
