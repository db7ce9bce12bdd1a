"""The door into transformers' compressed-tensors quantizer."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING, AutoHfQuantizer
from transformers.utils.quantization_config import CompressedTensorsConfig as OriginalConfig

from llmquant.compat.late_import import after_import
from llmquant.compat.quantizers import (
    METHOD,
    CompressedTensorsConfig,
    CompressedTensorsQuantizer,
    add_quantizer,
    remove_decompression,
    take_over,
    tied,
)
from llmquant.formats.compressed_tensors import quantization_config
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
    assert not kept.is_qat_trainable


@pytest.mark.usefixtures("taken")
def test_declined_config_and_declined_model(caplog: pytest.LogCaptureFixture) -> None:
    declined = AutoHfQuantizer.from_config(STORED | {"format": "naive-quantized"})
    assert not declined.packed
    assert "does not stay packed: unknown format" in caplog.text
    late = AutoHfQuantizer.from_config(dict(STORED) | {"dequantize": True})
    assert late.packed
    assert late.get_load_operations() == {}
    model: Any = nn.Module()
    model.refuse = True
    late._process_model_before_weight_loading(model, checkpoint_files=None)
    assert not late.packed
    assert "cannot swap" in caplog.text
    assert late.get_load_operations()


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
    with tied(model):
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
    after_import("late_package.inner", lambda: seen.append(sys.modules["late_package.inner"].value))
    import late_package  # pyright: ignore[reportMissingImports]

    assert seen == []
    import late_package.inner  # pyright: ignore[reportMissingImports]

    assert seen == [1]
    assert sys.meta_path == finders
    after_import("late_package.inner", lambda: seen.append(late_package.inner.value + 1))
    assert seen == [1, 2]
    del sys.modules["late_package.inner"], sys.modules["late_package"]
