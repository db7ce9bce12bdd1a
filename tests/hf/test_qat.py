"""From a dense model to one that learns as it will be read, and on to the packed checkpoint of the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import llmquant
from llmquant.errors import CheckpointError, QuantizationError, RecipeError
from llmquant.hf.qat import fake_layers, qat_state
from llmquant.nn.fake_linear import FakeLinear
from tests.engine.conftest import byte_tokenizer, save_tiny, tiny_llama

pytestmark = pytest.mark.usefixtures("reference_kernels")
TOKENS = torch.arange(40)[None] * 5 % 251


def recipe(scheme: str = "int4-g32", match: Any = "linear", **changes: Any) -> dict[str, Any]:
    qat = {"ranges": "lsq", "loss": {"kl": 0.0, "cross_entropy": 1.0}} | changes
    return {"version": 1, "name": "mine", "rules": [{"match": match, "scheme": scheme}], "qat": qat}


def train(model: Any, steps: int = 3) -> list[float]:
    """Losses."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


SCHEMES = ["int4-g32", "int3-g16-asym", "int8", "int4-tensor", "w8a8-dynamic", "w8a8-static"]
OTHERS = ["frozen", "minmax", "moving-average", "scales-only"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("scheme", "ranges"), [*((name, "lsq") for name in SCHEMES), *(("int3-g16-asym", ranges) for ranges in OTHERS)]
)
def test_what_is_trained_is_what_is_packed(scheme: str, dtype: torch.dtype, ranges: str) -> None:
    model: Any = tiny_llama()
    llmquant.prepare_qat(model.to(dtype), recipe(scheme, ranges=ranges))
    losses = train(model)
    assert losses[-1] < losses[0]
    trained = logits(model)
    llmquant.convert_qat(model)
    assert not fake_layers(model)
    assert torch.equal(logits(model), trained)


@pytest.mark.parametrize("ranges", ["lsq", "scales-only"])
@pytest.mark.parametrize("scheme", ["int8", "int4-g32-asym"])
def test_tied_tables_learn_as_one(tmp_path: Path, scheme: str, ranges: str) -> None:
    tiny_llama(tie_word_embeddings=True).save_pretrained(tmp_path / "dense")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    llmquant.prepare_qat(model, recipe(scheme, ["linear", "embedding"], ranges=ranges))
    head, table = model.lm_head, model.model.embed_tokens
    assert isinstance(head, FakeLinear)
    train(model)
    assert head.weight is table.weight
    assert head.weight_scale_change is table.weight_scale_change
    trained = logits(model)
    model.save_pretrained(tmp_path / "half-way")
    assert not any("lm_head" in name for name in load_file(tmp_path / "half-way/model.safetensors"))
    llmquant.convert_qat(model).save_pretrained(tmp_path / "out")
    assert torch.equal(logits(model), trained)
    assert torch.equal(logits(llmquant.load(tmp_path / "out")), trained)


LORA = {"rank": 4, "alpha": 16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("scheme", "ranges"),
    [*((name, "lsq") for name in SCHEMES), *(("int3-g16-asym", ranges) for ranges in OTHERS[:3])],
)
def test_low_rank_changes_are_packed_too(scheme: str, dtype: torch.dtype, ranges: str) -> None:
    model: Any = tiny_llama()
    llmquant.prepare_qat(model.to(dtype), recipe(scheme, ranges=ranges, lora=LORA))
    weights = {name: layer.base().clone() for name, layer in fake_layers(model).items()}
    losses = train(model)
    assert losses[-1] < losses[0]
    assert all(torch.equal(layer.base(), weights[name]) for name, layer in fake_layers(model).items())
    trained = logits(model)
    llmquant.convert_qat(model)
    assert torch.equal(logits(model), trained)


def test_low_rank_changes_of_tied_tables_and_conv1d(tmp_path: Path) -> None:
    tiny_llama(tie_word_embeddings=True).save_pretrained(tmp_path / "dense")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    llmquant.prepare_qat(model, recipe("int8", ["linear", "embedding"], lora=LORA))
    train(model)
    assert model.lm_head.lora_b is model.model.embed_tokens.lora_b
    assert bool(model.lm_head.lora_b.any())
    trained = logits(model)
    llmquant.convert_qat(model).save_pretrained(tmp_path / "out")
    assert torch.equal(logits(llmquant.load(tmp_path / "out")), trained)
    config = GPT2Config(n_layer=1, n_embd=64, n_head=4, vocab_size=257, n_positions=64, bos_token_id=0, eos_token_id=0)
    turned: Any = GPT2LMHeadModel(config).eval()
    llmquant.prepare_qat(turned, recipe(lora=LORA) | {"portable": False})
    assert tuple(turned.transformer.h[0].attn.c_attn.lora_b.shape) == (192, 4)
    train(turned)
    trained = logits(turned)
    assert torch.equal(logits(llmquant.convert_qat(turned)), trained)


def test_low_rank_training_resumes() -> None:
    def prepared() -> Any:
        return llmquant.prepare_qat(tiny_llama(), recipe(lora=LORA))

    model = prepared()
    first = logits(model)
    assert torch.equal(first, logits(llmquant.prepare_qat(tiny_llama(), recipe())))  # B is zero
    train(model)
    again = prepared()
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again), logits(model))
    assert not torch.equal(logits(again), first)
    train(model)
    train(again)
    assert torch.equal(logits(again), logits(model))


def test_conv1d_keeps_its_orientation_until_it_is_packed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=64, n_head=4, vocab_size=257, n_positions=64, bos_token_id=256, eos_token_id=256
    )
    model: Any = GPT2LMHeadModel(config).eval()
    llmquant.prepare_qat(model, recipe(train="quantized") | {"portable": False})
    shape = model.transformer.h[0].attn.c_attn.weight.shape
    assert tuple(shape) == (64, 192)
    train(model)
    trained = logits(model)
    model.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)  # a dense model as it was, whose weights lie between codes
    assert torch.equal(logits(llmquant.convert_qat(model)), trained)


def test_the_first_forward_is_that_of_the_rounded_model(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{i} times {i + 1} makes {i * (i + 1)}; so it goes on and on." for i in range(200)))
    calibrated = recipe("int3-g32") | {
        "rounding": {"method": "gptq"}, "calibration": {"dataset": str(text), "samples": 4, "length": 32},
    }  # fmt: skip
    dense = tiny_llama()
    model = llmquant.prepare_qat(tiny_llama(), calibrated, tokenizer=byte_tokenizer())
    del calibrated["qat"]
    packed = llmquant.quantize(dense, calibrated, tokenizer=byte_tokenizer())
    assert torch.equal(logits(model), logits(packed))


def test_by_from_pretrained_and_in_plain_transformers(tmp_path: Path) -> None:
    """What plain transformers loads is the trained model, bit for bit."""
    save_tiny(tmp_path / "dense")
    config = llmquant.RecipeConfig(recipe())
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config)
    assert not getattr(model, "is_quantized", False)
    assert not hasattr(model.config, "quantization_config")
    train(model)
    trained = logits(model)
    llmquant.convert_qat(model).save_pretrained(tmp_path / "out")
    torch.save((TOKENS, trained), tmp_path / "trained.pt")
    plain = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "tokens, trained = torch.load(sys.argv[1] + '/trained.pt')\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1] + '/out')\n"
        "assert 'llmquant' not in sys.modules\n"
        "with torch.no_grad(): assert torch.equal(model(tokens).logits, trained)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", plain, str(tmp_path)], check=True)


def test_saved_half_way_it_is_dense_and_goes_on(tmp_path: Path) -> None:
    model = llmquant.prepare_qat(tiny_llama(), recipe())
    train(model)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again = llmquant.prepare_qat(tiny_llama(), recipe())
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(logits(again), logits(model))
    train(model)
    train(again)
    assert torch.equal(logits(again), logits(model))


def test_what_is_trained() -> None:
    def names(model: Any) -> set[str]:
        return {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}

    for which, more in (("quantized", set()), ("norms", {"norm"}), ("all", {"norm", "embed_tokens", "lm_head"})):
        model = llmquant.prepare_qat(tiny_llama().float(), recipe(train=which))
        assert names(model) == {"weight", "weight_scale_change"}
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        for part in ("norm", "embed_tokens", "lm_head"):
            assert any(part in name for name in trained) == (part in more)
    for which, more in (("quantized", set()), ("norms", {"norm"})):
        model = llmquant.prepare_qat(tiny_llama().float(), recipe(train=which, lora=LORA))
        assert names(model) - {"weight"} == {"lora_a", "lora_b", "weight_scale_change"}
        weights = {name for name, p in model.named_parameters() if p.requires_grad and name.endswith(".weight")}
        assert all("norm" in name for name in weights)
        assert bool(weights) == bool(more)
    coarse = llmquant.prepare_qat(tiny_llama(), recipe(train="all"))  # steps would be lost in 16 bits
    assert not any(p.requires_grad for p in coarse.parameters() if p.dtype != torch.float32)


def test_scales_are_stored_as_told() -> None:
    model = llmquant.prepare_qat(tiny_llama().float(), recipe(), dtype=torch.bfloat16)
    train(model)
    weights = {name: layer.quantized().dequantize() for name, layer in fake_layers(model).items()}
    llmquant.convert_qat(model, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    for name, weight in weights.items():
        packed: Any = model.get_submodule(name)
        assert packed.weight_scale.dtype == torch.bfloat16
        assert torch.equal(packed.dequantize(), weight)


def test_refusals() -> None:
    with pytest.raises(RecipeError, match="does not train"):
        llmquant.prepare_qat(tiny_llama(), "int4-g32")
    with pytest.raises(RecipeError, match="llmquant qat MODEL"):
        llmquant.quantize(tiny_llama(), recipe())
    with pytest.raises(RecipeError, match=r"for a folder or a hub id; save the model"):
        llmquant.quantize(tiny_llama(), "int4-g32-high")
    with pytest.raises(CheckpointError, match="not prepared"):
        llmquant.convert_qat(tiny_llama())
    model = llmquant.prepare_qat(tiny_llama(), recipe())
    with pytest.raises(CheckpointError, match="convert_qat"):
        llmquant.prepare_qat(model, recipe())
    layer: Any = model.model.layers[1].mlp.down_proj
    layer.fake_quant = False
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj.*fake_quant_after_n_steps"):
        llmquant.convert_qat(model)
    layer.fake_quant = True
    layer.weight.data[0, 0] = torch.nan
    with pytest.raises(QuantizationError, match=r"layers\.1\.mlp\.down_proj: weights are not finite"):
        llmquant.convert_qat(model)
    layer.weight.data[0, 0] = 0
    assert qat_state(model).qat.ranges == "lsq"
    llmquant.convert_qat(model)  # nothing was lost


def test_static_inputs_must_have_been_seen() -> None:
    model = llmquant.prepare_qat(tiny_llama(), recipe("w8a8-static"))
    with pytest.raises(QuantizationError, match="scale of inputs is not known"):
        llmquant.convert_qat(model)
