"""What needs a fresh interpreter: importing late, and doing without the compressed-tensors package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.hf.conftest import TOKENS, edit_quantization, logits, schemes_in_blocks, write_packed

SCRIPT = """
import importlib.metadata, importlib.util, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "compressed_tensors":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.startswith("compressed_tensors") else find_spec(name, *rest)

from llmquant.hf import register
register()
assert "transformers" not in sys.modules and "torch" not in sys.modules, "llmquant.hf must be light"

import llmquant.hf.recipe  # ours may be what imports the quantizers of transformers
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import is_compressed_tensors_available
assert not is_compressed_tensors_available()

known, unknown, tokens, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(known, dtype="auto")
assert "compressed_tensors" not in sys.modules
with torch.no_grad():
    torch.save(model(torch.load(tokens)).logits, out)
model.save_pretrained(out + ".saved")
try:
    AutoModelForCausalLM.from_pretrained(unknown)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_without_the_compressed_tensors_package(
    dense_folder: Callable[[str], Path], tmp_path: Path, repository: Path
) -> None:
    dense = dense_folder("llama")
    schemes = schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32-asym")
    fake = write_packed(dense, tmp_path / "known", schemes)
    write_packed(dense, tmp_path / "unknown", schemes)
    edit_quantization(tmp_path / "unknown", lambda stored: stored.update(kv_cache_scheme={"num_bits": 8}))
    torch.save(TOKENS, tmp_path / "tokens")
    arguments = [tmp_path / "known", tmp_path / "unknown", tmp_path / "tokens", tmp_path / "logits"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        cwd=repository,
        env=os.environ | {"LLMQUANT_CPU_KERNELS": "reference"},  # the bits of the dense layer
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits"), logits(fake))
    assert "CheckpointError llmquant cannot keep this checkpoint packed" in done.stdout
    assert "kv_cache_scheme" in done.stdout
    assert "pip install compressed-tensors" in done.stdout


def test_the_quantizer_can_be_the_very_first_import() -> None:
    subprocess.run([sys.executable, "-c", "import llmquant.hf.packed"], check=True, timeout=300)
