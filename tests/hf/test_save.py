"""`save_pretrained` of a packed model leaves results of `llmquant.quantize` as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import llmquant
from llmquant.errors import CheckpointError
from llmquant.hf.recipe import RecipeConfig


@pytest.mark.parametrize("how", ["from the folder", "by a recipe"])
def test_a_result_is_not_saved_over(dense_folder: Callable[[str], Path], tmp_path: Path, how: str) -> None:
    source, made = dense_folder("llama"), tmp_path / "made"
    llmquant.quantize(source, "int4-g32", made)
    before = {file.name: file.read_bytes() for file in made.iterdir()}
    if how == "by a recipe":
        model = AutoModelForCausalLM.from_pretrained(source, quantization_config=RecipeConfig("int8"))
    else:
        model = llmquant.load(made)
    with pytest.raises(CheckpointError, match=r"made holds a result of llmquant\.quantize"):
        model.save_pretrained(made)
    assert {file.name: file.read_bytes() for file in made.iterdir()} == before
    model.save_pretrained(tmp_path / "saved")
    model.save_pretrained(str(tmp_path / "saved"))  # its own folder, without an llmquant.json
    assert type(llmquant.load(tmp_path / "saved")) is type(model)
