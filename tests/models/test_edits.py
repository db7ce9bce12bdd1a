"""Edits: what each does to a tensor, that chains of them leave a model's function as it was, and that they are data."""

from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from llmquant.errors import OutputError, QuantizationError
from llmquant.models.edits import (
    Edit,
    apply_edits,
    edited_config,
    edited_value,
    edits_from_bytes,
    edits_to_bytes,
    fold_norm,
    untie,
)
from tests.architectures.tiny import tiny_model

BLOCK = "model.layers.0."


def edited(tensor: Tensor, *edits: Edit) -> Tensor:
    value = edited_value("w", edits, {"w": tensor}.get)
    assert value is not None
    return value


def orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(32).view(2, 16)).logits


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("experts", [(), (3,)], ids=["matrix", "experts"])
def test_out_acts_on_what_a_layer_puts_out_and_in_on_what_it_gets(turned: bool, experts: tuple[int, ...]) -> None:
    weight = torch.randn(*experts, 4, 6, dtype=torch.float64)
    x = torch.randn(*experts, 6, 1, dtype=torch.float64)
    y = weight @ x
    out, into = torch.rand(4, dtype=torch.float64) + 0.5, torch.rand(6, dtype=torch.float64) + 0.5
    whole, pieces = orthogonal(4), orthogonal(3)

    def forward(edit: Edit, x: Tensor) -> Tensor:
        stored = edited(weight.mT if turned else weight, edit)
        return (stored.mT if turned else stored) @ x

    def make(kind: Any, by: Tensor) -> Edit:
        return Edit(kind, "w", by, turned=turned)

    torch.testing.assert_close(forward(make("scale_out", out), x), out[:, None] * y)
    torch.testing.assert_close(forward(make("scale_in", 1 / into), into[:, None] * x), y)
    torch.testing.assert_close(forward(make("rotate_out", whole), x), whole @ y)
    rotated = (pieces @ x.unflatten(-2, (2, 3))).flatten(-3, -2)
    torch.testing.assert_close(forward(make("rotate_in", pieces), rotated), y)


def test_vectors_have_outputs_only() -> None:
    bias, by = torch.randn(4), torch.rand(4)
    assert torch.equal(edited(bias, Edit("scale_out", "w", by)), bias.double() * by.double())
    shifted = edited(bias, Edit("scale_out", "w", by, offset=1.0))
    torch.testing.assert_close(shifted + 1, (bias.double() + 1) * by.double())
    turn = orthogonal(2)
    rotated = edited(bias, Edit("rotate_out", "w", turn))
    torch.testing.assert_close(rotated, (turn @ bias.double().view(2, 2, 1)).flatten())
    with pytest.raises(QuantizationError, match=r"'scale_in' by \[4\] does not fit the shape \[4\]"):
        edited(bias, Edit("scale_in", "w", by))


def test_what_does_not_fit_is_refused() -> None:
    weight = torch.randn(4, 6)
    for edit in (
        Edit("scale_out", "w", torch.rand(6)),
        Edit("scale_in", "w", torch.rand(4)),
        Edit("rotate_in", "w", torch.rand(4, 4)),
        Edit("rotate_out", "w", torch.rand(2, 4)),
        Edit("add", "w", torch.rand(4)),
    ):
        with pytest.raises(QuantizationError, match="does not fit the shape"):
            edited(weight, edit)
    with pytest.raises(QuantizationError, match="w: an edit 'add' of a tensor that is not there"):
        edited_value("w", [Edit("add", "w", torch.rand(4))], lambda _: None)
    with pytest.raises(ValueError, match=r"an edit is one of scale_out, .* not 'scale'"):
        Edit("scale", "w", torch.rand(4))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="an edit 'scale_in' of w needs a tensor"):
        Edit("scale_in", "w")


def test_a_chain_is_rounded_once() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64).bfloat16()
    layer = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    layer.weight.data.copy_(weight)
    by = torch.rand(64, dtype=torch.float64) + 0.5
    apply_edits(layer, [Edit("scale_in", "weight", by), Edit("scale_in", "weight", 1 / by)])
    assert torch.equal(layer.weight, weight)
    assert not torch.equal((weight * by.bfloat16()) * (1 / by).bfloat16(), weight)
    widened = nn.Linear(64, 64, bias=False)
    widened.weight.data.copy_(weight)
    apply_edits(widened, [Edit("scale_in", "a.weight", by)], prefix="a", dtype=torch.bfloat16)
    assert torch.equal(widened.weight, (weight.double() * by).bfloat16().float())


def test_edits_leave_the_function_of_a_model_as_it_was() -> None:
    model = tiny_model("llama", dtype=torch.float64, tie_word_embeddings=True)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    before = logits(model)
    norm, mlp, attention = model.get_parameter("model.norm.weight"), f"{BLOCK}mlp.", f"{BLOCK}self_attn."
    by, turn = torch.rand(128) + 0.5, orthogonal(32)
    edits = [
        *untie("lm_head.weight", "model.embed_tokens.weight"),
        *fold_norm("model.norm.weight", norm.detach(), ["lm_head.weight"]),
        Edit("scale_out", f"{mlp}up_proj.weight", 1 / by.double()),
        Edit("scale_in", f"{mlp}down_proj.weight", by),
        Edit("rotate_out", f"{attention}v_proj.weight", turn),
        Edit("rotate_in", f"{attention}o_proj.weight", turn),
    ]
    embedding = model.get_parameter("model.embed_tokens.weight").clone()
    apply_edits(model, edits)
    assert torch.equal(model.get_parameter("model.embed_tokens.weight"), embedding)
    assert not torch.equal(model.get_parameter("lm_head.weight"), embedding)
    assert torch.equal(model.get_parameter("model.norm.weight"), torch.ones(64))
    after = logits(model)
    assert (after - before).abs().max() <= 1e-12 * before.abs().max()


def test_a_block_alone_takes_its_own_edits() -> None:
    model = tiny_model("llama", dtype=torch.float32)
    other = model.get_parameter("model.layers.1.mlp.up_proj.weight").clone()
    edits = [
        Edit("scale_out", "model.layers.1.mlp.up_proj.weight", torch.full((128,), 2.0)),
        Edit("scale_out", f"{BLOCK}mlp.up_proj.weight", torch.full((128,), 2.0)),
        Edit("set", f"{BLOCK}mlp.up_proj.bias", torch.arange(128)),
        *untie("lm_head.weight", "model.embed_tokens.weight"),
    ]
    block = model.get_submodule(BLOCK[:-1])
    weight = block.get_parameter("mlp.up_proj.weight").clone()
    block.get_submodule("mlp.gate_proj").to("meta")
    apply_edits(block, [*edits, Edit("scale_in", f"{BLOCK}mlp.gate_proj.weight", torch.ones(64))], prefix=BLOCK[:-1])
    assert torch.equal(block.get_parameter("mlp.up_proj.weight"), 2 * weight)
    assert torch.equal(block.get_parameter("mlp.up_proj.bias"), torch.arange(128).float())
    assert torch.equal(model.get_parameter("model.layers.1.mlp.up_proj.weight"), other)


def test_a_tied_parameter_stays_tied() -> None:
    model = tiny_model("llama", dtype=torch.float32, tie_word_embeddings=True)
    apply_edits(model, [Edit("scale_in", "model.embed_tokens.weight", torch.full((64,), 2.0))])
    assert model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")


def test_values_that_the_stored_dtype_cannot_hold_are_refused() -> None:
    layer = nn.Linear(4, 4, dtype=torch.float16)
    layer.weight.data.fill_(1)
    with pytest.raises(QuantizationError, match=r"weight: .* magnitude 1e\+05, which torch.float16 cannot hold"):
        apply_edits(layer, [Edit("scale_in", "weight", torch.full((4,), 1e5))])
    assert bool((layer.weight == 1).all())


def test_edits_are_data() -> None:
    edits = [
        Edit("scale_out", "norm.weight", torch.rand(5, dtype=torch.float64), offset=1.0),
        Edit("rotate_in", "a.weight", orthogonal(4), turned=True),
        *untie("lm_head.weight", "embed.weight"),
        Edit("config", "text_config.x", value=[1, {"y": None}]),
    ]
    data = edits_to_bytes(edits)
    assert edits_to_bytes(edits) == data
    again = edits_from_bytes(data)
    for one, other in zip(again, edits, strict=True):
        assert (one.kind, one.name, one.turned, one.offset, one.value) == (
            other.kind, other.name, other.turned, other.offset, other.value,
        )  # fmt: skip
        assert (one.by is None and other.by is None) or torch.equal(one.by, other.by)  # pyright: ignore
    assert edits_from_bytes(edits_to_bytes([])) == []
    config = {"tie_word_embeddings": True, "text_config": {"z": 0}}
    assert edited_config(config, edits) == {
        "tie_word_embeddings": False, "text_config": {"z": 0, "x": [1, {"y": None}]},
    }  # fmt: skip
    assert config == {"tie_word_embeddings": True, "text_config": {"z": 0}}


def test_views_of_one_memory_are_stored_each_in_its_shape() -> None:
    whole = torch.rand(4, dtype=torch.float64)
    shared = [Edit("scale_out", "a", whole), Edit("scale_out", "b", whole), Edit("scale_out", "c", whole[:2])]
    data = edits_to_bytes(shared)
    for one, other in zip(edits_from_bytes(data), shared, strict=True):
        assert one.by is not None
        assert other.by is not None
        assert torch.equal(one.by, other.by)
    assert len(safetensors.torch.load(data)) == 2  # what is the same is stored once


def test_damaged_edits_are_refused() -> None:
    data = edits_to_bytes([Edit("scale_out", "w", torch.rand(5))])
    unknown = data.replace(b"scale_out", b"scale_up!")
    empty = json.dumps({}).encode()
    for damaged in (data[:-3], b"", unknown, len(empty).to_bytes(8, "little") + empty):
        with pytest.raises(OutputError, match="the edits of an earlier run are damaged"):
            edits_from_bytes(damaged)
