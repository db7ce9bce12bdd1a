"""`llmquant.hf.load.load`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmquant.api import quantize
from llmquant.engine.output.folder import JOURNAL, PROVENANCE
from llmquant.errors import CheckpointError, RecipeError
from llmquant.hf.load import load
from llmquant.nn.accuracy import kernels_used
from tests.hf.conftest import logits, schemes_in_blocks, write_packed

# Compared bit for bit with dense layers.
pytestmark = pytest.mark.usefixtures("reference_kernels")

Folder = Callable[[str], Path]


def test_packed_dense_and_unquantized(dense_folder: Folder, tmp_path: Path) -> None:
    dense = dense_folder("llama")
    fake = write_packed(
        dense, tmp_path / "q", schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32")
    )
    packed, plain, unquantized = load(tmp_path / "q"), load(tmp_path / "q", packed=False), load(str(dense))
    assert packed.dtype == torch.bfloat16
    assert sum(kernels_used(packed).values()) == 14
    assert not kernels_used(plain)
    assert torch.equal(logits(packed), logits(fake))
    assert torch.equal(logits(plain), logits(fake))
    assert not kernels_used(unquantized)


def test_folder_that_is_not_there_or_not_safe(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="loading a pickle can run any code"):
        load(str(tmp_path))


def test_a_folder_that_changed_is_refused_on_demand(
    dense_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two swapped layers have the right names, dtypes and shapes: only their digests tell."""
    rules = [{"match": "linear", "scheme": "int4-g32"}]
    folder = quantize(dense_folder("llama"), {"version": 1, "name": "test", "rules": rules}, tmp_path / "q").folder
    load(folder, verify=True)
    assert not caplog.text
    one, other = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.gate_proj"
    file = next(file for file in folder.glob("*.safetensors") if f"{one}.weight_packed" in load_file(file))
    tensors = load_file(file)
    for part in ("weight_packed", "weight_scale"):
        tensors[f"{one}.{part}"], tensors[f"{other}.{part}"] = tensors[f"{other}.{part}"], tensors[f"{one}.{part}"]
    save_file(tensors, file, {"format": "pt"})
    (folder / JOURNAL).write_text("{}\n")  # killed after all was done
    load(folder)
    with pytest.raises(CheckpointError, match=r"mlp\.(up|gate)_proj\.weight_.*: its bytes, dtype or shape differ"):
        load(folder, verify=True)
    for name in (JOURNAL, PROVENANCE):
        (folder / name).unlink()
    load(folder, verify=True)
    assert f"have no digest to compare with, as {PROVENANCE} is missing" in caplog.text


def test_what_a_folder_lacks_is_named(dense_folder: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    shutil.copytree(dense_folder("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has no tensor for model\.norm\.weight, which transformers filled"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load(folder)


def test_unfinished_run(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / JOURNAL).write_text("{}\n")
    for source in (tmp_path / "out", partial):
        with pytest.raises(CheckpointError, match="unfinished run; continue it with llmquant quantize --resume"):
            load(source)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e5m2, "complex64", "nonsense", "nn", ""])
def test_a_dtype_that_no_model_has_is_no_fault_of_the_folder(tmp_path: Path, dtype: str | torch.dtype) -> None:
    with pytest.raises(RecipeError, match="cannot compute in the dtype"):
        load(tmp_path, dtype=dtype)


def test_a_format_that_is_not_run_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    made = '{"recipe": {"name": "a", "format": "gguf"}, "layers": {"a": {"loss": 0.5}}}'
    (tmp_path / "llmquant.json").write_text(made)
    with pytest.raises(
        CheckpointError, match="in the format gguf, which llmquant writes and verifies but does not run"
    ):
        load(tmp_path)


def test_options_of_from_pretrained_go_through(dense_folder: Folder, tmp_path: Path) -> None:
    folder = quantize(dense_folder("llama"), "int4-g32", tmp_path / "q").folder
    for name in ("eager", "sdpa"):
        assert load(folder, attn_implementation=name).config._attn_implementation == name
    with pytest.raises(CheckpointError, match="cannot load it; it takes no such attn_implementation='nonsense', or"):
        load(folder, attn_implementation="nonsense")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("quantization_config", "says itself how it is quantized.* RecipeConfig"),
        ("load_in_4bit", r"quantize with llmquant\.quantize"),
        ("torch_dtype", "called dtype"),
        ("use_safetensors", "pickle"),
        ("atn_implementation", "did you mean 'attn_implementation'"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_read(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load(tmp_path, **{name: None})  # pyright: ignore[reportArgumentType]
