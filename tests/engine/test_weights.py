"""Weights of one block at a time: those that a block shares with an earlier one come with it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ZambaConfig

from llmquant.engine.prepare import prepare
from llmquant.engine.weights import BlockWeights
from llmquant.recipe.load import load_recipe


def test_a_block_that_shares_weights_has_them_after_the_other_went(tmp_path: Path) -> None:
    config = ZambaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
        n_mamba_heads=2, mamba_d_state=8, mamba_dt_rank=8, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    recipe = load_recipe({"version": 1, "rules": [{"match": "linear", "scheme": "int8"}]})
    work = prepare(tmp_path, recipe).work()
    skeleton = work.model
    weights = BlockWeights(work, torch.device("cpu"))
    for index in range(4):
        weights.load(index)
        prefix = f"model.layers.{index}."
        wanted = {name: p for name, p in model.named_parameters(remove_duplicate=False) if name.startswith(prefix)}
        assert wanted
        assert all(torch.equal(skeleton.get_parameter(name), parameter) for name, parameter in wanted.items())
        weights.release(index)
    assert all(p.is_meta for name, p in skeleton.named_parameters() if ".layers." in name)
