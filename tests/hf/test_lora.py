"""Adapters of peft: beside packed layers they never change what is packed, in rounded ones they are packed too."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel, Trainer, TrainingArguments

import llmquant
from llmquant.errors import CheckpointError, QuantizationError
from llmquant.hf import register
from llmquant.hf.fuse import is_fused, unfuse
from llmquant.hf.lora import FakeLoraLinear, PackedLoraLinear
from llmquant.hf.qat import qat_state, select_trained
from llmquant.kernels.cpu import native
from llmquant.nn.storage import PackedStorage
from tests.engine.conftest import tiny_llama
from tests.hf.test_qat import TOKENS, logits, recipe, train
from tests.training.conftest import prepared

# peft still reads names of transformers' that are about to go.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
SCHEMES = ["int4-g32", "int3-g16-asym", "w8a8-dynamic"]


def packed(folder: Path, scheme: str = "int4-g32", match: Any = "linear", dtype: Any = "auto", **changes: Any) -> Any:
    """A quantized model that was written and loaded."""
    recipe = {"version": 1, "name": "mine", "rules": [{"match": match, "scheme": scheme}]}
    if not (folder / "packed").exists():
        tiny_llama(**changes).save_pretrained(folder / "dense")
        llmquant.quantize(folder / "dense", recipe, folder / "packed")
    return llmquant.load(folder / "packed", dtype=dtype)


def adapted(model: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(**({"r": 4, "target_modules": "all-linear"} | changes)))


def bits(model: Any) -> dict[str, torch.Tensor]:
    """What is stored of the packed layers."""
    return {
        f"{name.removesuffix('.base_layer').rpartition('model.layers')[2]}.{key}": tensor.clone()
        for name, module in model.named_modules() if isinstance(module, PackedStorage)
        for key, tensor in module.state_dict().items()
    }  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_adapters_learn_beside_integers(scheme: str, tmp_path: Path) -> None:
    model = packed(tmp_path, scheme)
    stored = bits(model)
    fused, kernels = logits(model), native.library() is not None and scheme == "int4-g32"
    assert any(map(is_fused, model.modules())) == kernels
    unfuse(model)
    wanted = logits(model)
    model = adapted(packed(tmp_path, scheme))
    layers = [module for module in model.modules() if isinstance(module, PackedLoraLinear)]
    assert len(layers) == 21
    assert torch.equal(logits(model), wanted)  # B is zero, and fused layers notice the adapters
    losses = train(model, 8)
    assert losses[-1] < losses[0] - 0.1
    assert all(layer.lora_A["default"].weight.grad is None for layer in layers)
    assert not torch.equal(logits(model), wanted)
    with model.disable_adapter():
        assert torch.equal(logits(model), fused)
    now = bits(model)
    assert now.keys() == stored.keys()
    assert all(torch.equal(now[key], stored[key]) for key in stored)
    assert torch.equal(logits(model.unload()), fused)


def test_gradients_are_those_of_the_dense_layers(tmp_path: Path) -> None:
    ours = adapted(packed(tmp_path, dtype=torch.float32))
    dense = adapted(llmquant.load(tmp_path / "packed", packed=False, dtype=torch.float32))
    dense.load_state_dict({key: value for key, value in ours.state_dict().items() if "lora_" in key}, strict=False)
    for model in (ours, dense):
        for module in model.modules():
            if hasattr(module, "lora_B"):
                nn.init.constant_(module.lora_B["default"].weight, 0.01)
        model(TOKENS, labels=TOKENS).loss.backward()
    wanted = {name: p.grad for name, p in dense.named_parameters() if p.requires_grad}
    assert len(wanted) == 42
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is not None) == (name in wanted)
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=2e-3, atol=1e-5)


def test_adapters_are_saved_alone_and_loaded(tmp_path: Path) -> None:
    model = adapted(packed(tmp_path), target_modules=["q_proj", "down_proj"])
    train(model)
    trained = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    again: Any = PeftModel.from_pretrained(packed(tmp_path), tmp_path / "adapter")
    assert torch.equal(logits(again), trained)
    by_transformers = packed(tmp_path)
    by_transformers.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(by_transformers), trained)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_the_trainer(checkpointing: bool, tmp_path: Path) -> None:
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=6, per_device_train_batch_size=1, learning_rate=1e-2, logging_steps=1,
        report_to=[], save_strategy="steps", save_steps=3, use_cpu=True, bf16=True, disable_tqdm=True,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    data: Any = [{"input_ids": TOKENS[0], "labels": TOKENS[0]}] * 8
    with pytest.raises(ValueError, match="attach trainable adapters"):
        Trainer(packed(tmp_path), arguments, train_dataset=data)
    trainer = Trainer(adapted(packed(tmp_path)), arguments, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    resumed = Trainer(adapted(packed(tmp_path)), arguments, train_dataset=data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-3"))
    assert torch.equal(logits(resumed.model), logits(trainer.model))


def test_tables_stay_and_a_tied_head_may_be_named(tmp_path: Path) -> None:
    model = packed(tmp_path, "int8", ["linear", "embedding"], tie_word_embeddings=True)
    wanted = logits(model)
    model = adapted(model)
    assert not isinstance(model.get_base_model().lm_head, PackedLoraLinear)
    model = adapted(packed(tmp_path), target_modules=["lm_head"])
    assert torch.equal(logits(model), wanted)
    losses = train(model, 5)
    assert losses[-1] < losses[0]
    with model.disable_adapter():
        assert torch.equal(logits(model), wanted)
    with pytest.raises(ValueError, match=r"PackedEmbedding.*not supported"):
        adapted(packed(tmp_path), target_modules=["embed_tokens"])


def start(kind: str, folder: Path) -> Any:
    return packed(folder, dtype=torch.float32) if kind == "packed" else prepared()


@pytest.mark.parametrize("kind", ["packed", "rounded"])
def test_several_adapters_side_by_side(kind: str, tmp_path: Path) -> None:
    base = start(kind, tmp_path)
    unfuse(base)
    untouched = logits(base)
    model = adapted(base)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    trained = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        train(model)
        trained[name] = logits(model)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    assert not any(torch.equal(both, one) for one in (*trained.values(), untouched))
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), untouched, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "adapters")
    again: Any = PeftModel.from_pretrained(start(kind, tmp_path), tmp_path / "adapters")
    again.load_adapter(tmp_path / "adapters" / "second", "second")
    for name, wanted in trained.items():
        again.set_adapter(name)
        assert torch.equal(logits(again.eval()), wanted)
    again.delete_adapter("default")
    assert torch.equal(logits(again), trained["second"])


@pytest.mark.parametrize("whole", ["norm", "lm_head", "embed_tokens"])
@pytest.mark.parametrize("kind", ["packed", "rounded"])
@pytest.mark.usefixtures("reference_kernels")
def test_modules_trained_whole_beside_an_adapter(kind: str, whole: str, tmp_path: Path) -> None:
    model = adapted(start(kind, tmp_path), target_modules=["v_proj", "up_proj"], modules_to_save=[whole])
    before = logits(model)
    train(model)
    trained = logits(model.eval())
    assert not torch.equal(trained, before)
    model.save_pretrained(tmp_path / "adapter")
    again: Any = PeftModel.from_pretrained(start(kind, tmp_path), tmp_path / "adapter")
    assert torch.equal(logits(again.eval()), trained)
    if kind == "rounded":
        assert torch.equal(logits(llmquant.convert_qat(model)), trained)


def test_what_integers_cannot_do_is_refused(tmp_path: Path) -> None:
    model = adapted(packed(tmp_path))
    train(model)
    trained = logits(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(QuantizationError, match=r"cannot be merged.*Keep the adapter.*16-bit model"):
            merge()
    assert torch.equal(logits(model), trained)
    for start in ("pissa", "olora", "orthogonal"):
        with pytest.raises(QuantizationError, match=f"'{start}' starts from a dense weight"):
            adapted(packed(tmp_path), init_lora_weights=start)
    with pytest.raises(ValueError, match="use_dora"):
        adapted(packed(tmp_path), use_dora=True)
    with pytest.raises(QuantizationError, match="no dense parameter"):
        adapted(packed(tmp_path), target_modules=[], target_parameters=["q_proj.weight_shape"])


ROUNDED = ["int4-g32", "int3-g32", "int3-g16-asym", "w8a8-dynamic", "w8a8-static"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", ROUNDED)
@pytest.mark.usefixtures("reference_kernels")
def test_merged_into_rounded_weights_bit_for_bit(scheme: str, dtype: torch.dtype) -> None:
    model: Any = tiny_llama()
    llmquant.prepare_qat(model.to(dtype), recipe(scheme))
    model.train()
    logits(model)  # static inputs are seen
    model.eval()
    rounded = logits(model)
    model = adapted(model)
    assert {type(layer) for layer in model.modules() if hasattr(layer, "lora_A")} == {FakeLoraLinear}
    assert torch.equal(logits(model), rounded)
    losses = train(model)
    assert losses[-1] < losses[0]
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    trained = logits(model)
    if scheme != "w8a8-static":
        with model.disable_adapter():
            assert torch.equal(logits(model), rounded)
    assert torch.equal(logits(model), trained)
    packed = llmquant.convert_qat(model)
    assert isinstance(packed, PreTrainedModel)
    assert not any(hasattr(module, "lora_A") for module in packed.modules())
    assert torch.equal(logits(packed), trained)


@pytest.mark.usefixtures("reference_kernels")
def test_ways_to_merge(tmp_path: Path) -> None:
    def prepared() -> Any:
        return llmquant.prepare_qat(tiny_llama(), recipe())

    model = adapted(prepared(), r=8)
    rounded = logits(prepared())
    train(model)
    trained = logits(model)
    model.save_pretrained(tmp_path)
    again: Any = PeftModel.from_pretrained(prepared(), tmp_path)
    assert torch.equal(logits(again), trained)
    again.merge_adapter()
    assert torch.equal(logits(again), trained)
    again.unmerge_adapter()
    assert (logits(again) - trained).abs().max() < 0.1 * (rounded - trained).abs().max()
    assert torch.equal(logits(copy.deepcopy(model).merge_and_unload(safe_merge=True)), trained)
    assert torch.equal(logits(copy.deepcopy(model).unload()), rounded)
    by_transformers = prepared()
    by_transformers.load_adapter(str(tmp_path))
    assert torch.equal(logits(by_transformers), trained)
    with pytest.raises(CheckpointError, match=r"q_proj has an adapter that transformers.*get_peft_model"):
        llmquant.convert_qat(by_transformers)
    packed = llmquant.convert_qat(model)
    assert torch.equal(logits(packed), trained)
    packed.save_pretrained(tmp_path / "out")
    found, wanted = bits(llmquant.load(tmp_path / "out")), bits(packed)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted | found)


@pytest.mark.usefixtures("reference_kernels")
def test_scales_and_norms_may_learn_beside_an_adapter() -> None:
    model = adapted(llmquant.prepare_qat(tiny_llama().float(), recipe()))
    select_trained(model, qat_state(model).qat)
    trained = {
        name.rpartition(".")[0].rpartition(".")[2]: name for name, p in model.named_parameters() if p.requires_grad
    }
    assert any("norm" in name for name in trained)
    before = {name: p.clone() for name, p in model.named_parameters()}
    train(model)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {"lora_A", "lora_B", "weight_scale_change", "norm"} <= {key for name in moved for key in name.split(".")}
    assert not any(name.endswith("base_layer.weight") for name in moved)
    wanted = logits(model)
    assert torch.equal(logits(llmquant.convert_qat(model)), wanted)


@pytest.mark.usefixtures("reference_kernels")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_what_cannot_be_rounded_together_is_refused(tmp_path: Path) -> None:
    def prepared(**changes: Any) -> Any:
        return llmquant.prepare_qat(tiny_llama(), recipe(**changes))

    with pytest.raises(QuantizationError, match="lora_dropout=0"):
        adapted(prepared(), lora_dropout=0.1)
    with pytest.raises(QuantizationError, match="codes never change"):
        adapted(prepared(ranges="scales-only"))
    with pytest.raises(QuantizationError, match=r"embedding.*takes no adapter"):
        adapted(prepared(match=["linear", "embedding"]), target_modules=["embed_tokens"])
    tiny_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    tied = LlamaForCausalLM.from_pretrained(tmp_path)
    llmquant.prepare_qat(tied, recipe("int8", ["linear", "embedding"]))
    with pytest.raises(QuantizationError, match="tied to an embedding"):
        adapted(tied, target_modules=["lm_head"])
    model = adapted(prepared(), init_lora_weights=False).eval()
    with pytest.raises(QuantizationError, match="cannot differ"):
        model(TOKENS.repeat(2, 1), adapter_names=["default", "__base__"])
    model = adapted(prepared(), init_lora_weights=False).eval()  # peft leaves its hooks after an error
    layer = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    layer.lora_A["default"].weight.data[0, 0] = torch.nan
    with pytest.raises(QuantizationError, match=r"layers\.1\.mlp\.down_proj.*not finite"):
        llmquant.convert_qat(model)
    layer.lora_A["default"].weight.data[0, 0] = 0
    wanted = logits(model)
    assert torch.equal(logits(llmquant.convert_qat(model)), wanted)  # nothing was lost


@pytest.mark.slow
def test_peft_may_come_before_llmquant_or_after() -> None:
    """And looking whether there is a peft, as transformers does, imports nothing and ends no wait."""
    check = "from llmquant.nn.linear import PackedLinear; assert PackedLinear in peft.LoraConfig()._custom_modules"
    look = "import importlib.util, sys; importlib.util.find_spec('peft'); assert 'peft' not in sys.modules"
    code = f"import llmquant, llmquant.hf\nllmquant.hf.register()\n{look}\nimport peft\n{check}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    complete = LoraConfig.__post_init__
    register()
    assert LoraConfig.__post_init__ is complete
