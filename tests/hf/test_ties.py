"""Heads that share the packed weight of an embedding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import llmquant
from llmquant.hf.place import place_empty
from llmquant.kernels.cpu import native
from llmquant.nn.accuracy import kernels_used
from llmquant.nn.linear import PackedLinear
from llmquant.spec import Scheme
from tests.architectures.tiny import tiny_model
from tests.hf.conftest import TOKENS, logits, schemes_in_blocks, write_packed
from tests.hf.test_packed import load_strict


def test_a_head_keeps_its_own_bias() -> None:
    model: Any = tiny_model("gptj", tie_word_embeddings=True)
    bias = model.lm_head.bias
    assert bias is not None
    place_empty(model, {"transformer.wte": Scheme.parse("int8-g32")}, torch.bfloat16)
    assert isinstance(model.lm_head, PackedLinear)
    assert model.lm_head.bias is bias
    assert model.lm_head.weight_packed is model.transformer.wte.weight_packed


@pytest.mark.usefixtures("reference_kernels")
@pytest.mark.parametrize("trained", [False, True])
def test_a_bias_that_is_tied_stays_so(tmp_path: Path, trained: bool) -> None:
    """BERT's head has its bias by two names, of which files hold one."""
    model: Any = tiny_model("bert")
    recipe: Any = {"version": 1, "name": "mine", "rules": [{"match": ["linear", "embedding"], "scheme": "int8"}]}
    if trained:
        llmquant.convert_qat(llmquant.prepare_qat(model, recipe | {"qat": {}}))
    else:
        llmquant.quantize(model, recipe)
    model.save_pretrained(tmp_path / "out")
    loaded: Any = llmquant.load(tmp_path / "out")
    assert loaded.cls.predictions.decoder.bias is loaded.cls.predictions.bias
    assert torch.equal(logits(loaded), logits(model))
    loaded.save_pretrained(tmp_path / "again")
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("out", "again")]
    assert all(torch.equal(file["cls.predictions.bias"], model.cls.predictions.bias) for file in files)
    assert files[0].keys() == files[1].keys()
    loaded.dequantize().save_pretrained(tmp_path / "dense")


Folder = Callable[[str], Path]
needs_kernels = pytest.mark.skipif(native.library() is None, reason="needs the C++ kernels")


@pytest.fixture
def packed(dense_folder: Folder, tmp_path: Path) -> tuple[Path, Any]:
    """A packed Qwen3 with an int8 vocabulary, and its dense twin."""
    dense = dense_folder("qwen3-tied")
    schemes = schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32")
    fake = write_packed(dense, tmp_path / "q", schemes | {"model.embed_tokens": Scheme.parse("int8")})
    return tmp_path / "q", fake


def close(model: Any, fake: Any) -> bool:
    return torch.allclose(logits(model).float(), logits(fake).float(), atol=0.03)


def check(model: Any, folder: Path, again: Path) -> None:
    table, head = model.get_input_embeddings(), model.lm_head
    assert head.weight_prepared is not None
    assert table.head is head
    assert {name for name, _ in table.named_parameters()} == {"weight_shape"}
    assert max(parameter.numel() for name, parameter in model.named_parameters() if "norm" not in name) <= 2
    model.save_pretrained(again)
    before, after = (load_file(path / "model.safetensors") for path in (folder, again))
    assert before.keys() == after.keys()
    if model.dtype == torch.bfloat16:
        assert all(torch.equal(before[key], after[key]) for key in before)


@needs_kernels
def test_one_copy_whatever_users_do(packed: tuple[Path, Any], tmp_path: Path) -> None:
    folder, fake = packed
    model = load_strict(folder)
    assert "embedding_int8: rows of the prepared lm_head" in kernels_used(model)
    wanted = fake.get_input_embeddings()(TOKENS)
    steps: list[Callable[[], Any]] = [
        lambda: model,
        lambda: copy.deepcopy(model),
        model.tie_weights,
        lambda: model.load_state_dict(model.state_dict()),
        lambda: model.to(torch.float16),
        lambda: model.to(torch.float32),
    ]
    for step in steps:
        result = step()
        changed: Any = result if isinstance(result, torch.nn.Module) else model
        check(changed, folder, tmp_path / "again")
        rows = changed.get_input_embeddings()(TOKENS)
        assert rows.dtype == changed.dtype
        assert torch.allclose(rows.float(), wanted.float(), rtol=0.01)
        assert close(changed, fake)


@needs_kernels
def test_generates_compiles_and_becomes_dense(packed: tuple[Path, Any]) -> None:
    folder, fake = packed
    model = load_strict(folder)
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(TOKENS, use_cache=False).logits, logits(model))
    assert model.generate(TOKENS, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (2, 15)
    dense = model.dequantize()
    assert dense.lm_head.weight is dense.get_input_embeddings().weight
    assert torch.equal(logits(dense), logits(fake))
