"""What a packed folder must hold: names, dtypes and shapes, from the headers, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer
from transformers.utils.quantization_config import CompressedTensorsConfig

from llmquant.compat.quantizers import METHOD
from llmquant.errors import CheckpointError
from llmquant.hf.stored import check_stored
from llmquant.hf.swap import swap_packed
from llmquant.kernels.backend import w8a8_name
from llmquant.kernels.cpu import native
from llmquant.models.safetensors_header import TensorInfo
from llmquant.nn.accuracy import kernels_used
from llmquant.nn.int8_linear import Int8Linear
from tests.hf.conftest import TOKENS, edit_quantization, logits, schemes_in_blocks, write_packed

Folder = Callable[[str], Path]
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def packed(dense_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dense, out = dense_folder("llama-bias"), tmp_path_factory.mktemp("packed")
    write_packed(dense, out, schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32-asym"))
    return out


def changed(packed: Path, out: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(packed / "model.safetensors")
    change(tensors)
    out.mkdir()
    (out / "config.json").write_bytes((packed / "config.json").read_bytes())
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (f"{UP}.weight_packed", torch.float32),
        (f"{UP}.weight_packed", torch.int64),
        (f"{UP}.weight_zero_point", torch.float16),
        (f"{UP}.weight_scale", torch.float8_e4m3fn),
        (f"{UP}.weight_scale", torch.int8),
        (f"{UP}.weight_shape", torch.float64),
        (f"{UP}.bias", torch.int32),
        ("model.norm.weight", torch.int16),
        ("model.embed_tokens.weight", torch.float8_e5m2),
    ],
)
def test_wrong_dtype(packed: Path, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    out = changed(packed, tmp_path / "q", lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(CheckpointError, match=f"{name} is {str(dtype).removeprefix('torch.')}"):
        AutoModelForCausalLM.from_pretrained(out, dtype="auto")


def test_wider_floats_are_right(packed: Path, tmp_path: Path) -> None:
    names = ("model.norm.weight", f"{UP}.weight_scale", f"{UP}.bias")
    out = changed(packed, tmp_path / "q", lambda t: t.update({name: t[name].float() for name in names}))
    AutoModelForCausalLM.from_pretrained(out, dtype="auto")


@pytest.mark.parametrize("name", [f"{UP}.weight_packed", f"{UP}.weight_scale", f"{UP}.bias", "model.norm.weight"])
def test_wrong_shape(packed: Path, tmp_path: Path, name: str) -> None:
    out = changed(packed, tmp_path / "q", lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    with pytest.raises(CheckpointError, match=f"{name} is .*wanted"):
        AutoModelForCausalLM.from_pretrained(out, dtype="auto")


def test_wrong_sizes_beside_a_weight(packed: Path, tmp_path: Path) -> None:
    out = changed(packed, tmp_path / "q", lambda tensors: tensors[f"{UP}.weight_shape"].add_(1))
    with pytest.raises(CheckpointError, match=r"weight_shape says \[97, 65\]"):
        AutoModelForCausalLM.from_pretrained(out, dtype="auto")


@pytest.mark.parametrize("name", ["model.norm.weight", f"{UP}.bias", f"{UP}.weight_zero_point", "lm_head.weight"])
def test_missing(packed: Path, tmp_path: Path, name: str) -> None:
    out = changed(packed, tmp_path / "q", lambda tensors: tensors.__delitem__(name))
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        AutoModelForCausalLM.from_pretrained(out, dtype="auto")


def test_no_packed_weight_has_a_place(packed: Path, tmp_path: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".layers." in name]:
            tensors[name.replace(".layers.", ".blocks.")] = tensors.pop(name)

    with pytest.raises(CheckpointError, match=r"none of the 14 packed weights .* belongs to a module of Llama"):
        AutoModelForCausalLM.from_pretrained(changed(packed, tmp_path / "q", rename), dtype="auto")


def test_a_config_that_does_not_know_its_weights(packed: Path, tmp_path: Path) -> None:
    out = changed(packed, tmp_path / "q", lambda _: None)
    edit_quantization(out, lambda stored: stored["ignore"].append("re:.*up_proj"))
    with pytest.raises(CheckpointError, match=r"up_proj is packed, but the quantization_config .* does not say how"):
        AutoModelForCausalLM.from_pretrained(out, dtype="auto")


SIZES: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
                         "num_attention_heads": 1, "num_key_value_heads": 1}  # fmt: skip


def on_meta(kind: Callable[[Any], PreTrainedModel], stored_as: str = "LlamaForCausalLM") -> Any:
    """A model of which nothing is loaded yet, of a checkpoint that holds a `stored_as`."""
    with torch.device("meta"):
        model = kind(LlamaConfig(**SIZES, architectures=[stored_as]))
    model.model.register_buffer("offset", torch.zeros(2, device="meta"))
    model.model.register_buffer("position_ids", torch.zeros(4, dtype=torch.int64, device="meta"))
    return model


def headers(model: PreTrainedModel, **other: tuple[torch.dtype, tuple[int, ...]]) -> dict[str, TensorInfo]:
    """Those of a checkpoint that holds all of a model, and tensors whose names have _ for dots as they are said."""
    state = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    state |= {name: other[name.replace(".", "_")] for name in state if name.replace(".", "_") in other}
    return {name: TensorInfo(name, dtype, shape, Path("f"), 0, 0) for name, (dtype, shape) in state.items()}


def without(tensors: dict[str, TensorInfo], *names: str) -> dict[str, TensorInfo]:
    return {name: info for name, info in tensors.items() if name not in names}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_of_16_bits_or_more_is_right(dtype: torch.dtype) -> None:
    model = on_meta(LlamaForCausalLM)
    check_stored(model, headers(model, model_norm_weight=(dtype, (32,))))


def test_integers_that_are_no_codes_may_be_of_another_width() -> None:
    model = on_meta(LlamaForCausalLM)
    check_stored(model, headers(model, model_position_ids=(torch.int32, (4,))))
    with pytest.raises(CheckpointError, match=r"model.position_ids is float32 \[4\], wanted int64"):
        check_stored(model, headers(model, model_position_ids=(torch.float32, (4,))))


def test_tensors_that_are_merged_have_shapes_of_their_own() -> None:
    with torch.device("meta"):
        model = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2))
    tensors = without(headers(model), *(name for name in model.state_dict() if ".mlp.experts." in name))
    moe = "model.layers.0.block_sparse_moe.experts"
    for name in (f"{moe}.{expert}.w{part}.weight" for expert in range(2) for part in (1, 2, 3)):
        tensors[name] = TensorInfo(name, torch.float32, (32, 32), Path("f"), 0, 0)
    check_stored(model, tensors)


def test_what_is_new_to_a_checkpoint_and_what_is_not() -> None:
    model = on_meta(LlamaForSequenceClassification)
    tensors = headers(model)
    model.score.register_buffer("scale", torch.zeros(1, device="meta"))
    model.again = model.score  # one tensor under two names
    check_stored(model, without(tensors, "score.weight"))
    check_stored(model, headers(model, score_weight=(torch.float32, (7, 32))))  # transformers has its own word on it
    for name in ("model.norm.weight", "model.offset"):
        with pytest.raises(CheckpointError, match=f"lacks {name} of LlamaForSequenceClassification"):
            check_stored(model, without(tensors, name))


def test_what_a_class_stored_itself_is_not_new() -> None:
    model = on_meta(LlamaForSequenceClassification, "LlamaForSequenceClassification")
    with pytest.raises(CheckpointError, match=r"lacks score.weight of"):
        check_stored(model, without(headers(model), "score.weight"))
    model._keys_to_ignore_on_load_missing = [r"score\."]  # unless the class says that it needs none
    check_stored(model, without(headers(model), "score.weight"))


def test_what_predicts_tokens_is_never_new() -> None:
    model = on_meta(LlamaForCausalLM, "LlamaForImageTextToText")
    model.added = nn.Linear(2, 2, device="meta")
    tensors = headers(model)
    check_stored(model, without(tensors, "added.weight", "added.bias"))
    with pytest.raises(CheckpointError, match=r"lacks lm_head.weight of"):
        check_stored(model, without(tensors, "lm_head.weight"))


FOUR_BITS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def with_activations(stored: dict) -> dict:
    """A format that is left to compressed-tensors."""
    (group,) = stored["config_groups"].values()
    group["input_activations"] = FOUR_BITS
    return group


def frozen(stored: dict) -> None:
    stored["quantization_status"] = "frozen"


def some(stored: dict) -> None:
    with_activations(stored)["targets"] = ["re:.*layers.0.*down_proj$"]


@pytest.mark.parametrize(("change", "count"), [(frozen, 13), (some, 12)])
def test_what_the_original_loader_would_leave_random(
    dense_folder: Folder, tmp_path: Path, change: Callable[[dict], None], count: int
) -> None:
    pytest.importorskip("compressed_tensors")
    dense = dense_folder("llama")
    write_packed(dense, tmp_path / "q", schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32"))
    edit_quantization(tmp_path / "q", change)
    with pytest.raises(CheckpointError, match=f"proj.weight and {count} more weights packed, but .* it is not"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype="auto")


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-g32-asym"])
def test_what_the_original_loader_can_load(dense_folder: Folder, tmp_path: Path, scheme: str) -> None:
    pytest.importorskip("compressed_tensors")
    dense = dense_folder("llama")
    write_packed(dense, tmp_path / "q", schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), scheme))
    edit_quantization(tmp_path / "q", with_activations)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype="auto", output_loading_info=True)
    model, info = loaded
    assert not getattr(getattr(model, "hf_quantizer", None), "packed", False)
    assert not info["missing_keys"]


PREPARED = w8a8_name(native.library() is not None)


def mixed(name: str) -> str:
    return "int4-g32" if name.endswith("down_proj") else "w8a8-dynamic"


def write(dense: Path, out: Path, scheme: str | Callable[[str], str] = "w8a8-dynamic", *, static: bool = False) -> Any:
    """A checkpoint, and the dense model with the same weights."""
    fake = write_packed(dense, out, schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), scheme))
    if static:
        tensors = load_file(out / "model.safetensors")
        names = [key.removesuffix("_scale") for key in tensors if key.endswith("weight_scale")]
        tensors |= {name.removesuffix("weight") + "input_scale": torch.full((1,), 0.02).bfloat16() for name in names}
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})

        def change(stored: dict) -> None:
            stored["config_groups"]["group_0"]["input_activations"] |= {"strategy": "tensor", "dynamic": False}

        edit_quantization(out, change)
    return fake


def load(folder: Path, **kwargs: Any) -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **{"dtype": "auto"} | kwargs)
    model, info = loaded
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


@pytest.mark.parametrize(
    ("name", "scheme", "static"),
    [
        ("llama", "w8a8-dynamic", False),
        ("llama-bias", "w8a8-dynamic", True),
        ("llama", mixed, False),
        ("qwen3-tied", "w8a8-dynamic", False),
    ],
)
def test_equals_compressed_tensors_and_saves_the_same(
    dense_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, scheme: Any, static: bool
) -> None:
    fake = write(dense_folder(name), tmp_path / "q", scheme, static=static)
    model = load(tmp_path / "q")
    layers = {n for n, module in model.named_modules() if isinstance(module, Int8Linear)}
    linears = {n for n, module in fake.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    assert layers == {n for n in linears if scheme != mixed or "down_proj" not in n}
    assert kernels_used(model)[PREPARED] == len(layers)
    assert not any(parameter.requires_grad for n, parameter in model.named_parameters() if "scale" in n)
    model.save_pretrained(tmp_path / "again")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("q", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    stored = [json.loads((tmp_path / f / "config.json").read_text())["quantization_config"] for f in ("q", "again")]
    assert stored[0] == stored[1]
    assert torch.equal(logits(load(tmp_path / "again")), logits(model))
    # In float32 both compute the same but for the order of sums; a code may still fall on the other side of a half.
    ours = logits(load(tmp_path / "q", dtype=torch.float32))
    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, METHOD, CompressedTensorsHfQuantizer)
    monkeypatch.setitem(AUTO_QUANTIZATION_CONFIG_MAPPING, METHOD, CompressedTensorsConfig)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype=torch.float32)
    with torch.no_grad():
        theirs = plain(TOKENS).logits
    dense = logits(fake.float())
    assert (ours - theirs).norm() < 0.2 * (dense - theirs).norm()


def test_swap_packed_and_dequantize(dense_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = write(dense_folder("llama"), tmp_path / "q")
    wanted = logits(load(tmp_path / "q"))
    dense = load(tmp_path / "q").dequantize()
    assert torch.equal(logits(dense), logits(fake))
    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, METHOD, CompressedTensorsHfQuantizer)
    monkeypatch.setitem(AUTO_QUANTIZATION_CONFIG_MAPPING, METHOD, CompressedTensorsConfig)
    model = swap_packed(AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype="auto"))
    assert kernels_used(model) == {PREPARED: 14}
    assert torch.equal(logits(model), wanted)
    late = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype="auto")
    late(TOKENS)
    with pytest.raises(CheckpointError, match="first forward"):
        swap_packed(late)


@pytest.mark.parametrize("lost", ["input_scale", "weight_scale", "weight"])
def test_missing_tensors_are_errors(dense_folder: Folder, tmp_path: Path, lost: str) -> None:
    write(dense_folder("llama"), tmp_path / "q", static=True)
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    del tensors[f"model.layers.1.mlp.up_proj.{lost}"]
    save_file(tensors, tmp_path / "q" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj"):
        load(tmp_path / "q")


def test_asymmetric_activations_stay_with_compressed_tensors(
    dense_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake = write(dense_folder("llama"), tmp_path / "q")
    edit_quantization(
        tmp_path / "q", lambda stored: stored["config_groups"]["group_0"]["input_activations"].update(symmetric=False)
    )
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype="auto")
    assert not kernels_used(model)
    logits(model)  # makes it dense
    names = [name for name, module in fake.named_modules() if isinstance(module, nn.Linear)]
    assert all(torch.equal(model.get_submodule(name).weight, fake.get_submodule(name).weight) for name in names)
    assert "are quantized in a format that llmquant does not run" in caplog.text
