"""Small checkpoints with a tokenizer and a calibration text, made on the spot."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmquant.algorithms import transforms


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and a BOS token in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<s>": 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", clean_up_tokenization_spaces=False)


def tiny_llama(**changes) -> LlamaForCausalLM:
    """Three blocks; every projection takes groups of 32."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vocab_size": 257, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    config = LlamaConfig(**(sizes | changes), dtype=torch.bfloat16)
    return LlamaForCausalLM(config).bfloat16().eval()


def save_tiny(folder: Path) -> Path:
    """A tiny Llama and its tokenizer in a folder."""
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A sharded bf16 Llama with a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder, max_shard_size="100KB")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """Plain text of about 20 kB."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(f"{i} times {i + 1} makes {i * (i + 1)}; so it goes on and on." for i in range(400)))
    return path


@pytest.fixture(scope="session")
def gptq_recipe(text_file):
    """A calibrated recipe for the tiny checkpoint."""
    return {
        "version": 1,
        "name": "test-gptq",
        "rules": [{"match": "linear", "scheme": "int4-g32"}, {"match": "mlp.down", "scheme": "int8-g32"}],
        "rounding": {"method": "gptq"},
        "calibration": {"dataset": str(text_file), "samples": 12, "length": 48},
    }


@pytest.fixture
def equalize(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The transform of docs/extending.md, which needs no data, as an installed one; its name."""
    page = (repository / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    (code,) = [block for block in blocks if "NEEDS = frozenset()" in block]
    folder = tmp_path / "transforms"
    folder.mkdir()
    (folder / "equalize.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(transforms, "__path__", [*transforms.__path__, str(folder)])
    yield "equalize"
    sys.modules.pop("llmquant.algorithms.transforms.equalize", None)
    if hasattr(transforms, "equalize"):
        delattr(transforms, "equalize")
