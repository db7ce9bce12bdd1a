"""benchmarks/decode.py and its random models: they are checked before they are timed, and a failure costs a section."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from llmquant.hf.fuse import unfuse
from llmquant.nn.linear import PackedLinear
from llmquant.nn.storage import PackedStorage
from llmquant.spec import Scheme

MODELS = {"dense": ("keep", "keep"), "int4-g32": ("int4-g32", "keep"), "mixed": ("int8", "int4-g32")}


@pytest.fixture
def models(part: Any) -> dict[str, LlamaForCausalLM]:
    make = part("random_llama")
    shape = make.SHAPES["tiny"] | {"num_hidden_layers": 2, "intermediate_size": 512}
    cpu = torch.device("cpu")
    return {
        name: make.build(shape, *map(Scheme.parse, schemes), torch.float32, cpu) for name, schemes in MODELS.items()
    }


def test_all_models_come_from_the_same_weights(models: dict[str, Any]) -> None:
    dense = models["dense"].state_dict()
    for name in ("int4-g32", "mixed"):
        layers = {key: each for key, each in models[name].named_modules() if isinstance(each, PackedStorage)}
        assert len(layers) == 14 + (name == "mixed")
        for key, layer in layers.items():
            quantized = layer.quantized()
            steps = quantized.scales.abs().repeat_interleave(layer.in_features // quantized.scales.shape[1], 1)
            error = (layer.dequantize() - dense[f"{key}.weight"]).abs() / steps
            assert error.max() < 1.001  # half a step, and one beside the code that a symmetric grid does not have
            assert error.mean() < 0.26
    embedding = "model.embed_tokens.weight"
    torch.testing.assert_close(models["mixed"].state_dict()[embedding], dense[embedding], rtol=0, atol=0)
    assert abs(dense["lm_head.weight"].std().item() - 0.02) < 1e-3
    assert not torch.equal(dense["model.layers.0.mlp.up_proj.weight"], dense["model.layers.1.mlp.up_proj.weight"])


def test_schemes_with_quantized_activations_are_refused(part: Any) -> None:
    make, w8a8 = part("random_llama"), Scheme.parse("w8a8-dynamic")
    with pytest.raises(ValueError, match="w8a8-dynamic: random models have integer weights with float activations"):
        make.build(make.SHAPES["tiny"], w8a8, w8a8, torch.float32, torch.device("cpu"))


@torch.no_grad()
def test_the_check_finds_a_layer_that_is_off(
    part: Any, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check, model = part("yardstick"), models["int4-g32"].to(torch.bfloat16)
    prompt = torch.arange(24)[None] * 7
    good = check.check_logits(model, prompt, exact=True)
    assert good["ok"], good
    assert good["error_of_reference"] > 1e-4
    assert not any("forward" in each.__dict__ for each in model.modules() if isinstance(each, PackedStorage))
    unfuse(model)
    forward = PackedLinear.forward

    def off(layer: PackedLinear, x: torch.Tensor) -> torch.Tensor:
        return forward(layer, x) * (1.05 if layer is model.model.layers[1].mlp.down_proj else 1)

    monkeypatch.setattr(PackedLinear, "forward", off)
    assert not check.check_logits(model, prompt, exact=True)["ok"]


SMALL = ["--random", "tiny", "--device", "cpu", "--threads", "1", "--batches", "1", "2", "--new", "2", "--seconds", "0"]
LLAMA = """
import json, sys
assert json.loads(sys.argv[2])["shape"]["hidden_size"] == 128
print(json.dumps({"version": "1.2", "bytes": 5000}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps({"prefill_s": 0.5, "step_s": [0.25] * request["steps"]}), flush=True)
"""


def test_models_and_another_program_take_turns(part: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    played, script = tmp_path / "python", tmp_path / "played.py"
    script.write_text(LLAMA)
    played.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    played.chmod(0o755)
    path = tmp_path / "new" / "decode.json"
    asked = [*SMALL, "--models", "fp32", "int8", "--prompts", "8", "16", "--llama-python", str(played)]
    decode = part("decode")
    result = decode.run(decode.parse([*asked, "--json", str(path)]))
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert (result["failures"], result["skipped"]) == ([], [])
    assert [row["section"] for row in result["checks"]] == ["build and check fp32", "build and check int8"]
    assert result["checks"][1]["exact"]["error"] < 1e-3
    first, two, longer = result["reports"]
    cells = [(each["batch_size"], each["context"]) for report in (first, two, longer) for each in report["cells"]]
    assert cells == [(1, 8), (2, 8), (1, 16)]
    assert list(dict.fromkeys(row["name"] for row in first["rows"])) == ["fp32", "int8", "llama.cpp Q4_0"]
    assert {row["name"] for row in two["rows"]} == {"fp32", "int8"}, "llama.cpp reads one sequence"
    other = longer["rows"][-1]
    assert (median(other["cells"][0]["prefill"]), median(other["cells"][0]["decode"])) == (32, 4)
    assert other["parameter_bytes"] == 5000
    assert result["versions"]["llama-cpp-python"] == "1.2"
    assert str(played) not in path.read_text()
    shown = capsys.readouterr().out
    assert shown.count("llama.cpp Q4_0") == 2
    assert "batch 2, context 8" in shown


def test_what_is_wrong_is_not_timed(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = part("decode")
    monkeypatch.setattr(part("yardstick"), "check_logits", lambda model, ids, exact: {"ok": False})
    result = decode.run(decode.parse([*SMALL, "--models", "fp32", "int8", "--prompts", "8"]))
    assert [row["name"] for row in result["reports"][0]["rows"]] == ["fp32"]
    assert result["failures"] == ["build and check int8: the logits are wrong"]


def test_one_failure_costs_one_section(part: Any, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    run = part("decode").Run({"date": "today"}, path, budget=1000)

    def fail() -> dict[str, Any]:
        raise torch.cuda.OutOfMemoryError("no memory left")

    run.section("first", "reports", fail)
    assert json.loads(path.read_text())["failures"] == ["first: OutOfMemoryError: no memory left"], "written at once"
    run.section("second", "checks", lambda: {"ok": True})
    late = part("decode").Run({}, None, budget=-1)
    late.section("third", "reports", fail)
    assert run.result["checks"] == [{"section": "second", "ok": True}]
    assert (late.result["skipped"], late.result["failures"]) == (["third"], [])
