"""The script of docs/qat.md, run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import TrainingArguments

import llmquant
from llmquant.hf.qat import fake_layers
from tests.engine.conftest import save_tiny
from tests.training.conftest import recipe

PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM
tokens, weights, logits = torch.load(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[2])
assert "llmquant" not in sys.modules
with torch.no_grad():
    assert torch.equal(model(tokens).logits, logits)
for name, weight in weights.items():
    assert torch.equal(model.get_submodule(name).weight, weight), name
"""


@pytest.mark.usefixtures("reference_kernels", "quiet")
def test_a_script_of_ones_own_saves_what_plain_transformers_loads(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (repository / "docs" / "qat.md").read_text(encoding="utf-8")
    (script,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "Trainer(" in block]
    assert len(script.strip().splitlines()) < 30
    text, chosen = tmp_path / "text.txt", tmp_path / "mine.yaml"
    text.write_text("\n".join(f"{i} times {i + 1} makes {i * (i + 1)}; so it goes on." for i in range(60)))
    chosen.write_text(yaml.safe_dump(recipe(learning_rate=0.2, scale_learning_rate=1e-2, loss={"kl": 1.0})))
    save_tiny(tmp_path / "dense")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py", "dense", "mine.yaml", "text.txt", "out"])
    monkeypatch.setattr(TrainingArguments, "__post_init__", _short(TrainingArguments.__post_init__))
    weights: dict[str, torch.Tensor] = {}
    convert = llmquant.convert_qat

    def keep(model: Any, dtype: torch.dtype) -> Any:
        for name, layer in fake_layers(model).items():
            weights[name] = layer.fake_weight(dtype).detach()
        return convert(model, dtype)

    monkeypatch.setattr(llmquant, "convert_qat", keep)
    space: dict[str, Any] = {}
    exec(compile(script, "script.py", "exec"), space)
    logs = [entry for entry in space["trainer"].state.log_history if "loss" in entry]
    assert logs[-1]["codes_flipped"] > 0
    assert logs[-1]["scale_drift"] > 0
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        logits = space["model"](tokens).logits
    torch.save((tokens, weights, logits), tmp_path / "trained.pt")
    subprocess.run([sys.executable, "-W", "ignore", "-c", PLAIN, "trained.pt", "out"], check=True)


def _short(post_init: Any) -> Any:
    """Four steps with a log of each, on the CPU, in place of what the script says."""

    def changed(self: Any) -> None:
        self.max_steps, self.logging_steps, self.use_cpu, self.save_strategy, self.disable_tqdm = 4, 1, True, "no", True
        post_init(self)

    return changed
