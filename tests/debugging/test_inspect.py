"""`inspect`: a healthy folder, damaged ones, folders of other formats, and what the command line makes of them."""

import json
import math
import shutil

import pytest
import torch

import llmquant
from llmquant.api import quantize
from llmquant.cli.main import main
from llmquant.errors import CheckpointError
from tests.debugging.conftest import RECIPE

DOWN = "model.layers.1.mlp.down_proj"


def kinds(health):
    return [each.kind for each in health.findings]


def test_a_healthy_folder(healthy):
    health = llmquant.inspect(healthy)
    assert not health.findings
    assert not health.damaged
    assert [each.name for each in health.weights[:2]] == sorted(each.name for each in health.weights)[:2]
    assert len(health.weights) == 21
    files = sum(tensor.stat().st_size for tensor in healthy.glob("*.safetensors"))
    assert 0.9 * files < health.bytes_quantized + health.bytes_kept < files  # headers aside
    assert health.kept == 9  # two norms in each of three blocks and one behind them, embedding, head
    (down,) = [each for each in health.weights if each.name == DOWN]
    assert (down.shape, down.scheme, down.scales.count, down.scales.dtype) == ((64, 96), "int4-g32", 192, "bfloat16")


@pytest.mark.parametrize(
    ("value", "kind"), [(math.nan, "scale-nan"), (math.inf, "scale-infinite"), (0.0, "scale-zero")]
)
def test_a_scale_that_is_none_is_damage_and_named_first(plant, value, kind):
    def spoil(scales):
        scales[3, 1] = value
        return scales

    health = llmquant.inspect(plant({f"{DOWN}.weight_scale": spoil}))
    first = health.findings[0]
    assert (first.kind, first.where, first.severity) == (kind, (DOWN,), "damaged")
    assert first.what.startswith("1 of 192 scales")
    assert health.damaged


def test_a_zero_scale_over_zero_codes_is_no_damage(plant):
    spoiled = plant({f"{DOWN}.weight_scale": torch.zeros_like, f"{DOWN}.weight_packed": lambda x: x * 0 - 0x77777778})
    assert not llmquant.inspect(spoiled).damaged  # 0x88888888: all codes are zero


def test_a_kept_tensor_with_nan_is_damage(plant):
    def spoil(weight):
        weight[0] = math.nan
        return weight

    health = llmquant.inspect(plant({"model.layers.2.input_layernorm.weight": spoil}))
    assert kinds(health) == ["not-finite"]
    assert health.findings[0].where == ("model.layers.2.input_layernorm.weight",)


def test_a_weight_that_does_not_decode_is_named_and_the_others_are_looked_at(plant):
    health = llmquant.inspect(plant({f"{DOWN}.weight_scale": lambda scales: scales[:-1]}))
    assert kinds(health) == ["unreadable"]
    assert len(health.weights) == 20


def test_dead_channels(plant):
    def kill(packed):
        packed[17] = -0x77777778
        return packed

    health = llmquant.inspect(plant({f"{DOWN}.weight_packed": kill}))
    assert kinds(health) == ["dead-rows"]
    assert "1 of 64 output channels have only weights of zero: 17" in health.findings[0].what
    assert not health.damaged


def test_two_names_for_one_weight(plant, healthy):
    def other(suffix):
        from safetensors import safe_open

        name = f"model.layers.2.mlp.down_proj.{suffix}"
        file = json.loads((healthy / "model.safetensors.index.json").read_text())["weight_map"][name]
        with safe_open(healthy / file, "pt") as tensors:
            return tensors.get_tensor(name)

    parts = ("weight_packed", "weight_scale")
    health = llmquant.inspect(plant({f"{DOWN}.{part}": lambda _, part=part: other(part) for part in parts}))
    assert kinds(health) == ["copies"]
    assert set(health.findings[0].where) == {DOWN, "model.layers.2.mlp.down_proj"}


def test_one_layer_of_fewer_bits(dense, tmp_path):
    recipe = {**RECIPE, "rules": [*RECIPE["rules"], {"match": DOWN, "scheme": "int2-g32"}]}
    health = llmquant.inspect(quantize(dense, recipe, tmp_path / "out").folder)
    assert kinds(health) == ["narrower"]
    assert health.findings[0].where == (DOWN,)


def test_a_folder_of_another_format(dense, tmp_path):
    rules = [{"match": "linear", "scheme": "int4-g32"}]
    out = quantize(dense, {"version": 1, "rules": rules, "format": "gguf"}, tmp_path / "out").folder
    health = llmquant.inspect(out)
    assert len(health.weights) == 21
    assert not health.findings


def test_a_folder_of_another_tool_has_no_provenance(healthy, tmp_path):
    out = tmp_path / "foreign"
    shutil.copytree(healthy, out)
    (out / "llmquant.json").unlink()
    assert len(llmquant.inspect(out).weights) == 21


def test_what_is_not_quantized_is_refused(dense):
    with pytest.raises(CheckpointError, match="not quantized"):
        llmquant.inspect(dense)


def test_the_command_line(plant, healthy, tmp_path, capsys):
    assert main(["inspect", str(healthy)]) == 0
    assert "nothing stands out" in (text := capsys.readouterr().out)
    assert "model.layers.{0..2}.mlp.down_proj" in text
    spoiled = plant({f"{DOWN}.weight_scale": lambda scales: scales * math.nan})
    assert main(["inspect", str(spoiled), "-q", "--all", "--json", str(tmp_path / "found.json")]) == 1
    text = capsys.readouterr().out
    assert text.startswith(f"damaged: {DOWN}: 192 of 192 scales are NaN")
    assert "model.layers.2.mlp.down_proj" in text
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["damaged"]
    assert found["findings"][0]["kind"] == "scale-nan"
