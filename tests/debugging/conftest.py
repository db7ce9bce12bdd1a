"""A tiny quantized folder, copies of it, and ways to plant a fault in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmquant.api import quantize
from tests.engine.conftest import byte_tokenizer, tiny_llama

RECIPE = {"version": 1, "name": "tiny-int4", "rules": [{"match": "linear", "scheme": "int4-g32"}]}


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with wider weights, so that its predictions are confident, and its tokenizer."""
    folder = tmp_path_factory.mktemp("dense")
    model = tiny_llama()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.data *= 12 if name == "lm_head.weight" else 5
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain text."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(f"{i} times {i + 1} makes {i * (i + 1)}; so it goes on and on." for i in range(40)))
    return path


@pytest.fixture(scope="session")
def healthy(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its projections in int4-g32."""
    out = tmp_path_factory.mktemp("healthy") / "out"
    quantize(dense, RECIPE, out)
    return out


@pytest.fixture
def plant(healthy: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies the folder and changes tensors of it, by their names."""

    def planted(changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Path:
        out = tmp_path / "planted"
        shutil.copytree(healthy, out)
        weight_map = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
        for name, change in changes.items():
            file = out / weight_map[name]
            tensors = load_file(file)
            tensors[name] = change(tensors[name]).contiguous()
            save_file(tensors, file, metadata={"format": "pt"})
        return out

    return planted
