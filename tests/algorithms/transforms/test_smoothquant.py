"""SmoothQuant: equation 4, one scale for all that read a norm, and bits that stay as they were in 16 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmquant.algorithms.transforms import smoothquant
from llmquant.algorithms.transforms.base import Block
from llmquant.errors import QuantizationError, RecipeError
from llmquant.models.edits import Edit
from llmquant.models.skeleton import decoder_blocks
from llmquant.statistics.base import LayerStatistics
from tests.algorithms.transforms.conftest import logits, transformed
from tests.architectures.tiny import tiny_model

SMOLLM2 = Path("/work/data/smollm2-135m")
ATTENTION = [f"self_attn.{name}_proj" for name in "qkv"]


def first_block(model_type: str) -> tuple[Block, dict[str, LayerStatistics]]:
    path, blocks = decoder_blocks(tiny_model(model_type, dtype=torch.float32))
    block = Block(f"{path}.0", blocks[0])
    width = 64
    largest = torch.linspace(0.1, 30, width)
    return block, {name: LayerStatistics({"absmax": largest}, 9) for name in smoothquant.reads(block)}


def by_name(edits: list[Edit]) -> dict[str, Tensor]:
    return {edit.name: edit.by for edit in edits if edit.by is not None}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_equation_4(model_type: str, alpha: float) -> None:
    block, statistics = first_block(model_type)
    found = by_name(smoothquant.fit(block, statistics, smoothquant.Options(alpha=alpha, powers_of_two=False)))
    layers = ATTENTION if model_type == "llama" else ["attn.c_attn"]
    weights = [block.module.get_parameter(f"{name}.weight").double() for name in layers]
    rows = torch.cat(weights if model_type == "llama" else [weight.T for weight in weights])
    inputs = statistics[block.full(layers[0])].values["absmax"].double()
    scales = inputs**alpha / rows.abs().amax(0) ** (1 - alpha)
    for name in layers:
        torch.testing.assert_close(found[block.full(f"{name}.weight")], scales)
    norm = "input_layernorm" if model_type == "llama" else "ln_1"
    torch.testing.assert_close(found[block.full(f"{norm}.weight")], 1 / scales)
    assert (block.full(f"{norm}.bias") in found) == (model_type == "gpt2")
    if model_type == "gpt2":
        torch.testing.assert_close(found[block.full(f"{norm}.bias")], 1 / scales)


def test_powers_of_two_are_the_nearest() -> None:
    block, statistics = first_block("llama")
    exact, rounded = (
        by_name(smoothquant.fit(block, statistics, smoothquant.Options(powers_of_two=flag))) for flag in (False, True)
    )
    for name, scales in rounded.items():
        assert torch.equal(scales.log2(), scales.log2().round())
        assert ((scales / exact[name]).log2().abs() <= 0.5 + 1e-9).all()


def test_norms_with_an_offset_only_grow() -> None:
    block, statistics = first_block("gemma2")
    edits = smoothquant.fit(block, statistics, smoothquant.Options())
    assert {edit.name.rpartition(".")[0] for edit in edits if edit.offset == 1} == {
        block.full("input_layernorm"), block.full("pre_feedforward_layernorm"),
    }  # fmt: skip
    assert all(edit.by is not None and bool((edit.by >= 1).all()) for edit in edits if edit.offset)


def test_one_norm_that_attention_and_mlp_read_has_one_scale() -> None:
    block, statistics = first_block("phi")
    edits = smoothquant.fit(block, statistics, smoothquant.Options())
    scales = {edit.name: edit.by for edit in edits if edit.kind == "scale_in"}
    assert {name.removeprefix("model.layers.0.") for name in scales} == {
        *(f"{name}.weight" for name in ATTENTION), "mlp.fc1.weight",
    }  # fmt: skip
    assert len(smoothquant.reads(block)) == 1
    assert all(
        torch.equal(by, edits[0].by.reciprocal())
        for by in scales.values()
        if by is not None and edits[0].by is not None
    )


def test_inputs_that_were_never_seen_and_weights_of_zero_keep_their_scale() -> None:
    block, statistics = first_block("llama")
    statistics[block.full(ATTENTION[0])].values["absmax"][3] = 0
    for name in ATTENTION:
        block.module.get_parameter(f"{name}.weight").data[:, 5] = 0
    scales = by_name(smoothquant.fit(block, statistics, smoothquant.Options()))[block.full("self_attn.q_proj.weight")]
    assert scales[[3, 5]].tolist() == [1, 1]
    assert bool(scales.isfinite().all())


def test_what_cannot_be_used_is_refused() -> None:
    block, statistics = first_block("llama")
    with pytest.raises(QuantizationError, match=r"needs the largest inputs of model.layers.0.self_attn.q_proj"):
        smoothquant.fit(block, {}, smoothquant.Options())
    with pytest.raises(RecipeError, match=r"alpha is a share in 0 to 1, not 1.5"):
        smoothquant.Options(alpha=1.5)
    statistics[block.full(ATTENTION[0])].values["absmax"][3] = float("inf")
    with pytest.raises(QuantizationError, match=r"largest inputs of model.layers.0.self_attn.q_proj holds 1 values"):
        smoothquant.fit(block, statistics, smoothquant.Options())


def test_norms_whose_output_is_used_elsewhere_are_left_alone() -> None:
    for model_type, changes, reason in [
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "no norm has a weight that linear layers alone"),
        ("opt", {"do_layer_norm_before": False}, "no norm has a weight that linear layers alone read"),
        ("olmo", {}, "in OlmoDecoderLayer no norm has a weight"),
        ("mixtral", {}, "which layers read which norm is not known of MixtralDecoderLayer"),
    ]:
        path, blocks = decoder_blocks(tiny_model(model_type, **changes))
        assert reason in (smoothquant.why_not(Block(f"{path}.0", blocks[0])) or "")


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3", "phi", "opt"])
def test_in_16_bits_not_a_bit_of_the_logits_changes(model_type: str) -> None:
    plain = tiny_model(model_type, dtype=torch.float32)
    edited = tiny_model(model_type, dtype=torch.float32)
    edits = transformed(edited, "smoothquant")
    assert any(edit.by is not None and bool((edit.by != 1).any()) for edit in edits)
    assert torch.equal(logits(edited.bfloat16()), logits(plain.bfloat16()))


def divergence(one: Tensor, other: Tensor) -> float:
    """Mean KL divergence in nats per token."""
    log_p, log_q = one.double().log_softmax(-1), other.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()


@pytest.mark.parametrize("powers_of_two", [True, False])
@pytest.mark.parametrize("model_type", ["gemma2", "nemotron", "llama"])
def test_stored_in_16_bits_it_costs_no_more_than_the_cast(model_type: str, powers_of_two: bool) -> None:
    model = tiny_model(model_type, dtype=torch.float32)
    reference = logits(model)
    cast = divergence(reference, logits(tiny_model(model_type, dtype=torch.float32).bfloat16()).float())
    transformed(model, "smoothquant", powers_of_two=powers_of_two)
    stored = divergence(reference, logits(model.bfloat16()).float())
    # Two draws of rounding errors of one size; where scales are powers of two and norms are plain, the same draw.
    assert stored <= (cast if powers_of_two and model_type == "llama" else 1.5 * cast)


def test_smoothing_helps_where_inputs_have_outliers() -> None:
    model = tiny_model("llama", dtype=torch.float32)
    _, blocks = decoder_blocks(model)
    block = blocks[0]
    norm = block.get_parameter("input_layernorm.weight")
    norm.data[7] = 50.0
    layer = block.get_submodule("self_attn.q_proj")
    taken: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, args: taken.append(args[0].flatten(0, 1)))

    def error_of_8_bits() -> float:
        """Of inputs rounded per token and weights rounded per channel, as in W8A8."""
        logits(model)
        inputs, weight = taken[-1].detach(), layer.get_parameter("weight").detach()
        step = inputs.abs().amax(1, keepdim=True) / 127
        rounded = (inputs / step).round() * step
        width = weight.abs().amax(1, keepdim=True) / 127
        product = rounded @ ((weight / width).round() * width).T
        exact = inputs @ weight.T
        return ((product - exact).norm() / exact.norm()).item()

    before = error_of_8_bits()
    transformed(model, "smoothquant")
    assert error_of_8_bits() < 0.5 * before


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.exists(), reason=f"needs SmolLM2-135M in {SMOLLM2}")
def test_smollm2_computes_the_same_bits() -> None:
    from transformers import AutoModelForCausalLM

    plain, edited = (AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval() for _ in range(2))
    edits = transformed(edited, "smoothquant")
    assert len(edits) == 30 * (2 + 5)
    float32 = logits(plain)
    assert (logits(edited) - float32).abs().max() <= 1e-3 * float32.abs().max()
    cast, stored = logits(plain.bfloat16()), logits(edited.bfloat16())
    assert torch.equal(cast, stored)
    assert 0 < divergence(float32, cast.float()) == divergence(float32, stored.float())
