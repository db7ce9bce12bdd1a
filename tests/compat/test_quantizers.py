"""The door into transformers' compressed-tensors quantizer."""

from __future__ import annotations

import copy
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.quantizers import quantizer_compressed_tensors
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING, AutoHfQuantizer
from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION
from transformers.utils.quantization_config import CompressedTensorsConfig as OriginalConfig

from llmquant.compat.late_import import after_import
from llmquant.compat.quantizers import (
    METHOD,
    CompressedTensorsConfig,
    CompressedTensorsQuantizer,
    add_quantizer,
    mark_as_packed,
    remove_decompression,
    replaced_experts,
    take_over,
    weights_tied,
)
from llmquant.errors import CheckpointError
from llmquant.formats.compressed_tensors.config import quantization_config
from llmquant.spec import Scheme

STORED = quantization_config({"model.layers.0.mlp.up_proj": Scheme.parse("int4-g32-asym")}, ["lm_head"])


class Everything(CompressedTensorsQuantizer):
    def refuse_config(self, stored):
        return None if stored.get("format") == "pack-quantized" else "unknown format"

    def swap(self, model, stored, files):
        return "cannot swap" if getattr(model, "refuse", False) else None


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, METHOD, None)  # both are put back after the test
    monkeypatch.setitem(AUTO_QUANTIZATION_CONFIG_MAPPING, METHOD, None)
    take_over(Everything)


def test_config_is_kept_word_for_word() -> None:
    stored = STORED | {"llmquant": {"note": "extra keys survive"}, "dequantize": True}
    config = CompressedTensorsConfig.from_dict({"quantization_config": stored})
    assert config.to_dict() == stored == json.loads(config.to_json_string())
    assert copy.deepcopy(config).to_dict() == stored
    assert not config.dequantize  # advice to others
    assert config.original().dequantize is True
    config.dequantize = False  # the user's wish goes above the stored key
    assert config.original().dequantize is False
    assert config.is_quantization_compressed
    before = json.dumps(stored)
    config.to_dict()["ignore"].append("other")
    config.use_optimized_inference = True
    assert config.original().use_optimized_inference is True
    config.original().quantization_config.ignore.append("other")
    assert json.dumps(config.to_dict()) == before


def test_wishes_and_what_nobody_knows() -> None:
    config, unused = CompressedTensorsConfig.from_dict(
        {"quantization_config": STORED}, return_unused_kwargs=True, dequantize=True, device_map="auto"
    )
    assert config.dequantize
    assert unused == {"device_map": "auto"}
    assert config.to_diff_dict() == STORED


def test_config_class_has_the_name_that_transformers_compares() -> None:
    assert CompressedTensorsConfig.__name__ == OriginalConfig.__name__


@pytest.mark.usefixtures("taken")
def test_what_the_user_asks_for_goes_to_the_original() -> None:
    merge = AutoHfQuantizer.merge_quantization_configs
    kept = AutoHfQuantizer.from_config(merge(dict(STORED), None))
    assert kept.packed
    with pytest.warns(UserWarning, match="You passed `quantization_config`"):
        merged = merge(dict(STORED), OriginalConfig(dequantize=True))
    asked = AutoHfQuantizer.from_config(merged)
    assert not asked.packed
    assert asked.quantization_config.dequantize is True
    assert type(asked.quantization_config) is OriginalConfig
    assert asked.is_qat_trainable
    assert asked.is_trainable
    assert kept.is_trainable  # with adapters
    assert not kept.is_qat_trainable


def test_whose_wish_it_is_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = CompressedTensorsConfig(STORED)
    config.use_optimized_inference = True
    assert not Everything(config).packed
    assert not Everything(CompressedTensorsConfig({**STORED, "format": "naive-quantized"})).packed
    assert not Everything(OriginalConfig.from_dict(copy.deepcopy(STORED))).packed
    levels = [record.levelno for record in caplog.records if "does not stay packed" in record.message]
    assert levels == [logging.INFO, logging.WARNING, logging.WARNING]
    assert "made by other code" in caplog.text


def test_only_what_does_not_stay_packed_needs_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    declined = Everything(CompressedTensorsConfig({**STORED, "format": "naive-quantized"}))
    for name in {"compressed_tensors", *(name for name in sys.modules if name.startswith("compressed_tensors."))}:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(quantizer_compressed_tensors, "is_compressed_tensors_available", lambda: False)
    kept = Everything(CompressedTensorsConfig(STORED))
    kept.validate_environment()
    assert kept.packed
    assert not kept.is_qat_trainable
    with pytest.raises(ImportError, match="compressed-tensors"):
        declined.validate_environment()
    with pytest.raises(CheckpointError, match=r"packed \(unknown format\), and .* pip install compressed-tensors"):
        Everything(CompressedTensorsConfig({**STORED, "format": "naive-quantized"}))


SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
                         "num_attention_heads": 1, "num_key_value_heads": 1}  # fmt: skip


def llama4() -> PreTrainedModel:
    config = Llama4TextConfig(**SMALL, num_local_experts=2, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    with torch.device("meta"):
        return Llama4ForCausalLM(config)


def test_experts_are_replaced_where_nothing_stays_packed() -> None:
    declined = Everything(CompressedTensorsConfig({**STORED, "format": "naive-quantized"}))
    kept, late = (Everything(CompressedTensorsConfig(STORED)) for _ in range(2))
    for quantizer, replaced in ((kept, False), (declined, True)):
        model = llama4()
        assert replaced_experts(model) == ["model.layers.0.feed_forward.experts"]
        quantizer._convert_model_for_quantization(model)
        assert bool(replaced_experts(model)) != replaced
    model: Any = llama4()
    model.refuse = True
    late._convert_model_for_quantization(model)  # transformers does this first
    late._process_model_before_weight_loading(model)
    assert not replaced_experts(model)


def test_experts_that_others_replace_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES_TO_PATCH_FOR_QUANTIZATION, "Linear", {"quantization_methods": ["bitsandbytes"]})
    assert replaced_experts(nn.Sequential(nn.Linear(1, 1))) == []


def test_a_declined_model_is_prepared_by_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[object] = []
    original = quantizer_compressed_tensors.CompressedTensorsHfQuantizer
    monkeypatch.setattr(original, "validate_environment", lambda self, *_, **__: checked.append(self))
    scheme = {"model.layers.0.mlp.up_proj": Scheme.parse("int4-g32")}  # others need not make it dense at once
    late = Everything(CompressedTensorsConfig(quantization_config(scheme, ["lm_head"])))
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(**SMALL))
    model.refuse = True
    late._process_model_before_weight_loading(model)
    assert checked == [late]
    assert hasattr(model.model.layers[0].mlp.up_proj, "weight_packed")


def test_a_marked_model_passes_as_quantized() -> None:
    quantizer = Everything(CompressedTensorsConfig(STORED))
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(**SMALL))
    model.model.config = copy.deepcopy(model.config)  # as in composite models
    mark_as_packed(model, quantizer)
    assert model.config._is_quantized
    assert model.model.config._is_quantized
    assert model.config.quantization_config is quantizer.quantization_config
    assert model.hf_quantizer is quantizer
    assert model.is_quantized
    assert model.quantization_method == METHOD


def looks_for_packed_experts(quantizer: CompressedTensorsQuantizer) -> bool:
    config = Qwen3MoeConfig(**SMALL, num_experts=2, moe_intermediate_size=32)
    with torch.device("meta"):
        converters = get_model_conversion_mapping(Qwen3MoeForCausalLM(config), hf_quantizer=quantizer)
    return any("_packed" in pattern for converter in converters for pattern in converter.source_patterns)


@pytest.mark.usefixtures("taken")
def test_declined_config_and_declined_model(caplog: pytest.LogCaptureFixture) -> None:
    declined = AutoHfQuantizer.from_config(STORED | {"format": "naive-quantized"})
    assert not declined.packed
    assert "does not stay packed: unknown format" in caplog.text
    late = AutoHfQuantizer.from_config(dict(STORED) | {"dequantize": True})
    assert late.packed
    assert not looks_for_packed_experts(late)
    model: Any = nn.Module()
    model.refuse = True
    late._process_model_before_weight_loading(model, checkpoint_files=None)
    assert not late.packed
    assert "cannot swap" in caplog.text
    assert looks_for_packed_experts(late)


def test_added_quantizer_has_no_config_class() -> None:
    add_quantizer("only-in-memory", Everything)
    try:
        assert AutoHfQuantizer.supports_quant_method({"quant_method": METHOD})
        assert not AutoHfQuantizer.supports_quant_method({"quant_method": "only-in-memory"})
    finally:
        del AUTO_QUANTIZER_MAPPING["only-in-memory"]


def test_tied_ties_for_a_while() -> None:
    config = LlamaConfig(vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1)
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config)
    model.lm_head.weight = apart = nn.Parameter(model.lm_head.weight.detach().clone())
    with weights_tied(model):
        assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight is apart


def test_remove_decompression() -> None:
    calls: list[int] = []
    model: Any = nn.Identity()
    remove_decompression(model)
    model.ct_decompress_hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    remove_decompression(model)
    model(1)
    assert not calls
    assert not hasattr(model, "ct_decompress_hook")


def test_after_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_package").mkdir()
    (tmp_path / "late_package" / "__init__.py").write_text("")
    (tmp_path / "late_package" / "inner.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[int] = []
    finders = list(sys.meta_path)

    def see() -> None:
        seen.append(sys.modules["late_package.inner"].value)

    for _ in range(2):  # the second changes nothing
        after_import("late_package.inner", see)
    import late_package  # pyright: ignore[reportMissingImports]

    assert seen == []
    import late_package.inner  # pyright: ignore[reportMissingImports]

    assert seen == [1]
    assert sys.meta_path == finders
    after_import("late_package.inner", lambda: seen.append(late_package.inner.value + 1))
    assert seen == [1, 2]
    del sys.modules["late_package.inner"], sys.modules["late_package"]
