"""Adapters of peft around packed layers: they learn, are saved alone, and never change what is packed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

import llmquant
from llmquant.errors import QuantizationError
from llmquant.hf import register
from llmquant.hf.fuse import is_fused, unfuse
from llmquant.hf.lora import PackedLoraLinear
from llmquant.kernels.cpu import native
from llmquant.nn.storage import PackedStorage
from tests.engine.conftest import tiny_llama
from tests.hf.test_qat import TOKENS, logits, train

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


def test_peft_may_come_before_llmquant_or_after() -> None:
    """And looking whether there is a peft, as transformers does, imports nothing and ends no wait."""
    check = "from llmquant.nn.linear import PackedLinear; assert PackedLinear in peft.LoraConfig()._custom_modules"
    look = "import importlib.util, sys; importlib.util.find_spec('peft'); assert 'peft' not in sys.modules"
    code = f"import llmquant, llmquant.hf\nllmquant.hf.register()\n{look}\nimport peft\n{check}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    complete = LoraConfig.__post_init__
    register()
    assert LoraConfig.__post_init__ is complete
