"""Packed embeddings and heads, tied or not: every way in and out gives the same bits and one copy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig

import llmquant
from llmquant.engine.prepare import prepare
from llmquant.engine.run import run
from llmquant.errors import CheckpointError
from llmquant.formats.compressed_tensors.readers import readers
from llmquant.hf.recipe import RecipeConfig
from llmquant.nn.embedding import PackedEmbedding
from llmquant.nn.linear import PackedLinear
from llmquant.recipe.load import load_recipe
from llmquant.spec import Scheme
from tests.hf.conftest import TOKENS, edit_quantization, logits, schemes_in_blocks, write_packed
from tests.hf.test_packed import load_strict
from tests.hf.test_recipe import assert_same_folder, assert_same_tensors, tokenizer

# Compared bit for bit with dense layers.
pytestmark = pytest.mark.usefixtures("reference_kernels")

Folder = Callable[[str], Path]

EMBEDDINGS = {
    "llama": ["model.embed_tokens"],
    "qwen3-tied": ["model.embed_tokens"],
    "gemma3-tied": ["model.embed_tokens"],
    "gpt2": ["transformer.wte", "transformer.wpe"],
}


def recipe(embedding: str, linear: str | None = "int4-g32", **more: Any) -> dict[str, Any]:
    rules = [{"match": "linear", "scheme": linear}] if linear else []
    rule = {"match": ["embedding", "lm_head"], "scheme": embedding, "rounding": {"method": "rtn"}}
    return {"version": 1, "rules": [*rules, rule], "portable": False, **more}


def dense_twin(dense: Path, out: Path, embedding: str, linear: str | None, name: str) -> Any:
    """A packed checkpoint that was written without the engine, and the dense model that it must equal."""
    model = AutoModelForCausalLM.from_pretrained(dense)
    schemes = schemes_in_blocks(model, linear) if linear else {}
    for module in EMBEDDINGS[name] + ([] if model.config.tie_word_embeddings else ["lm_head"]):
        schemes[module] = Scheme.parse(embedding)
    return write_packed(dense, out, schemes)


CASES = [
    ("llama", "int8", "int4-g32"),
    ("llama", "int4-g32-asym", "int4-g32-asym"),
    ("qwen3-tied", "int8", "int4-g32"),
    ("qwen3-tied", "int3-g16-asym", "int8"),
    ("qwen3-tied", "int4-tensor", None),
    ("gemma3-tied", "int4-g32", "int4-g32"),
    ("gpt2", "int8", "int4-g32"),
]


@pytest.mark.parametrize(("name", "embedding", "linear"), CASES)
def test_every_way_gives_the_same(
    dense_folder: Folder, tmp_path: Path, name: str, embedding: str, linear: str | None
) -> None:
    dense = dense_folder(name)
    fake = dense_twin(dense, tmp_path / "twin", embedding, linear, name)
    given = recipe(embedding, linear)
    streamed = run(prepare(dense, load_recipe(given)), tmp_path / "streamed").folder  # verifies itself
    assert_same_tensors(streamed, tmp_path / "twin")

    on_the_fly = AutoModelForCausalLM.from_pretrained(dense, dtype="auto", quantization_config=RecipeConfig(given))
    on_the_fly.save_pretrained(tmp_path / "saved")
    assert_same_folder(tmp_path / "saved", streamed)

    model = load_strict(streamed)
    for loaded in (model, on_the_fly):
        tables = {n for n, m in loaded.named_modules() if isinstance(m, PackedEmbedding)}
        assert tables == set(EMBEDDINGS[name])
        assert type(loaded.lm_head) is PackedLinear
        shared = loaded.lm_head.weight_packed is loaded.get_input_embeddings().weight_packed
        assert shared == fake.config.tie_word_embeddings
        assert not any(parameter.requires_grad for n, parameter in loaded.named_parameters() if "weight_" in n)
        assert torch.equal(logits(loaded), logits(fake))

    dequantized = llmquant.load(streamed, packed=False)
    assert type(dequantized.get_input_embeddings()) is type(fake.get_input_embeddings())
    assert (dequantized.lm_head.weight is dequantized.get_input_embeddings().weight) == shared
    assert torch.equal(logits(dequantized), logits(fake))
    if name != "gpt2":  # its Conv1D became Linear
        dequantized.save_pretrained(tmp_path / "dense")
        assert torch.equal(logits(load_strict(tmp_path / "dense")), logits(fake))


def test_the_tie_survives_what_users_do(dense_folder: Folder, tmp_path: Path) -> None:
    fake = dense_twin(dense_folder("qwen3-tied"), tmp_path / "q", "int8", "int4-g32", "qwen3-tied")
    model = load_strict(tmp_path / "q")
    for other in (copy.deepcopy(model), model.to("cpu")):
        assert other.lm_head.weight_packed is other.get_input_embeddings().weight_packed
    model.tie_weights()
    assert torch.equal(logits(model), logits(fake))
    greedy = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(TOKENS, **greedy), fake.generate(TOKENS, **greedy))
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(TOKENS, use_cache=False).logits, logits(fake))
    assert model.get_memory_footprint() < 0.6 * fake.get_memory_footprint()


def test_disk_offload(dense_folder: Folder, tmp_path: Path) -> None:
    fake = dense_twin(dense_folder("qwen3-tied"), tmp_path / "q", "int8", "int4-g32", "qwen3-tied")
    places = {"model.embed_tokens": "disk", "model.layers": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu",
              "lm_head": "disk"}  # fmt: skip
    model = load_strict(tmp_path / "q", device_map=places, offload_folder=tmp_path / "offload")
    assert torch.equal(logits(model), logits(fake))


@pytest.mark.parametrize("name", ["llama", "qwen3-tied"])
def test_blocks_are_calibrated_behind_the_packed_embedding(dense_folder: Folder, tmp_path: Path, name: str) -> None:
    """gptq must see what the quantized embedding gives, the same streamed and in memory."""
    dense = tmp_path / "dense"
    AutoModelForCausalLM.from_pretrained(dense_folder(name), dtype="auto").save_pretrained(dense)
    tokenizer().save_pretrained(dense)
    (tmp_path / "text.txt").write_text(" ".join(f"w{i * i % 89 + 1}" for i in range(900)))
    calibration = {"dataset": str(tmp_path / "text.txt"), "samples": 8, "length": 32}
    more = {"rounding": {"method": "gptq"}, "calibration": calibration}
    folders = {}
    for embedding in ("int2", "keep"):
        given = recipe(embedding, **more)
        folders[embedding] = run(prepare(dense, load_recipe(given)), tmp_path / embedding).folder
        model = AutoModelForCausalLM.from_pretrained(dense, dtype="auto", quantization_config=RecipeConfig(given))
        model.save_pretrained(tmp_path / f"{embedding}-saved")
        assert_same_folder(tmp_path / f"{embedding}-saved", folders[embedding])
        assert torch.equal(logits(load_strict(folders[embedding])), logits(model))
    first = [load_strict(folder).model.layers[0].mlp.down_proj.weight_packed for folder in folders.values()]
    assert not torch.equal(*first)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("name", ["llama", "qwen3-tied", "gemma3-tied"])
def test_one_scheme_for_all_is_read_by_compressed_tensors(dense_folder: Folder, tmp_path: Path, name: str) -> None:
    """As the plan says, from transformers 5.23 on; with two schemes it says no. Where it cannot, the reader fails."""
    prepared = prepare(dense_folder(name), load_recipe(recipe("int4-g32") | {"portable": True}))
    assert readers(prepared.plan)["transformers"].ok
    assert "packed embeddings need transformers 5.23" in readers(prepared.plan)["transformers"].note
    assert not readers(prepared.plan)["vLLM on GPU"].ok
    mixed = prepare(dense_folder(name), load_recipe(recipe("int8")))
    assert "share one scheme" in readers(mixed.plan)["transformers"].note
    out = run(prepared, tmp_path / "q").folder
    asked: Any = {"dtype": "auto", "quantization_config": CompressedTensorsConfig(dequantize=True)}
    if Version(transformers.__version__) < Version("5.23"):
        with pytest.raises(AttributeError, match="has no attribute 'weight'"):
            AutoModelForCausalLM.from_pretrained(out, **asked)
        return
    plain = AutoModelForCausalLM.from_pretrained(out, **asked)
    assert type(plain.get_input_embeddings()).forward is not PackedEmbedding.forward
    assert torch.equal(logits(plain), logits(load_strict(out)))


def test_a_second_copy_of_the_tied_weight_is_dropped(dense_folder: Folder, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    dense = tmp_path / "dense"
    AutoModelForCausalLM.from_pretrained(dense_folder("qwen3-tied"), dtype="auto").save_pretrained(dense)
    tensors = load_file(dense / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    given = load_recipe(recipe("int8"))
    sources = {"one": dense, "other": dense_folder("qwen3-tied")}
    one, other = (run(prepare(source, given), tmp_path / name).folder for name, source in sources.items())
    assert_same_folder(one, other)
    tensors["lm_head.weight"] += 1
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        run(prepare(dense, given), tmp_path / "different")


def test_a_target_does_not_make_a_stored_embedding_packed(dense_folder: Folder, tmp_path: Path) -> None:
    dense = dense_folder("llama")
    fake = write_packed(dense, tmp_path / "q", schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int8"))
    edit_quantization(
        tmp_path / "q",
        lambda stored: (
            stored["config_groups"]["group_0"].update(targets=["Linear", "Embedding"]),
            stored.update(ignore=[]),
        ),
    )
    model = load_strict(tmp_path / "q")
    assert not any(isinstance(module, PackedEmbedding) for module in model.modules())
    assert torch.equal(logits(model), logits(fake))


def test_computed_positions_are_no_table(tmp_path: Path) -> None:
    """OPT's positions add an offset to their row numbers: `embedding` does not mean them, and none are kept packed."""
    config = OPTConfig(vocab_size=96, hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4,
                       max_position_embeddings=64, word_embed_proj_dim=64, pad_token_id=1)  # fmt: skip
    torch.manual_seed(3)
    OPTForCausalLM(config).bfloat16().save_pretrained(tmp_path / "opt")
    out = run(prepare(tmp_path / "opt", load_recipe(recipe("int8"))), tmp_path / "q").folder
    model = load_strict(out)
    assert {n for n, m in model.named_modules() if isinstance(m, PackedEmbedding)} == {"model.decoder.embed_tokens"}
    assert isinstance(model.model.decoder.embed_positions, nn.Embedding)
    edit_quantization(out, lambda stored: stored["config_groups"]["group_1"]["targets"].append("re:.*embed_positions"))
    assert torch.equal(logits(load_strict(out)), logits(model))
