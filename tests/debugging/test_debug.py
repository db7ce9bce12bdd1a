"""`debug` on planted faults, its numbers against runs of whole models, and its edit against what that does."""

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import llmquant
from llmquant.api import quantize
from llmquant.cli.debug import print_report
from llmquant.cli.inspect import print_health
from llmquant.cli.main import main
from llmquant.debugging.page import render_page
from llmquant.errors import CheckpointError, QuantizationError
from llmquant.recipe.load import load_recipe
from llmquant.words import number
from tests.debugging.conftest import RECIPE
from tests.engine.conftest import byte_tokenizer, tiny_llama
from tests.eval.shown import parsed

DOWN = "model.layers.1.mlp.down_proj"
ASKED: dict[str, Any] = {"length": 40, "max_windows": 8, "units": 3}


@pytest.fixture(scope="module")
def report(healthy, dense, text_file):
    return llmquant.debug(healthy, dense, text=str(text_file), **ASKED)


def scaled(scales):
    return scales * 1.5


def scaled_in_two_channels(scales):
    scales[5:7] *= 2
    return scales


def killed(packed):
    packed[17] = -0x77777778  # 0x88888888: all codes are zero
    return packed


@pytest.mark.parametrize(
    ("tensor", "change", "kind", "words"),
    [
        ("weight_scale", scaled, "scale-factor", "its scales are 1.50 x what its weights ask for"),
        ("weight_scale", scaled_in_two_channels, "scale-factor", "channels 5, 6 (3.1 %) are 2.01 x"),
        ("weight_packed", killed, "dead-channel", "channel 17 is zero in the quantized model but not in the baseline"),
        ("weight_packed", lambda packed: packed.flip(0), "foreign", "not the baseline's"),
    ],
)
def test_a_planted_fault_is_named_first(plant, dense, text_file, tensor, change, kind, words):
    found = llmquant.debug(plant({f"{DOWN}.{tensor}": change}), dense, text=str(text_file), **ASKED)
    first = found.findings[0]
    assert (first.severity, first.kind, first.where) == ("fault", kind, (DOWN,))
    assert words in first.what
    (unit,) = [each for each in found.budget.units if each.modules == (DOWN,)]
    assert first.cost == unit.gain.value
    assert len([each for each in found.findings if each.severity == "fault"]) == 1


def divergence(folder, dense, text_file):
    """As `eval` measures it on the same windows."""
    asked = {"text": str(text_file), "length": 40, "max_windows": 8, "metrics": {"speed": False, "memory": False}}
    return llmquant.evaluate(folder, dense, **asked).sections["divergence"].kl.mean


def test_one_layer_in_int2_is_named_first_and_its_edit_helps(dense, text_file, tmp_path):
    recipe = {**RECIPE, "rules": [*RECIPE["rules"], {"match": DOWN, "scheme": "int2-g32"}]}
    found = llmquant.debug(quantize(dense, recipe, tmp_path / "out").folder, dense, text=str(text_file), **ASKED)
    assert (found.findings[0].kind, found.findings[0].where) == ("narrower", (DOWN,))
    assert [each.severity for each in found.findings].count("fault") == 1
    assert found.edit
    assert found.edit.units[0][0] == DOWN
    assert found.edit.dropped == (f"{DOWN} -> int2-g32",)
    edited = quantize(dense, yaml.safe_load(found.edit.recipe), tmp_path / "edited").folder
    kl = divergence(edited, dense, text_file)
    assert kl == pytest.approx(found.edit.kl_after.value, rel=1e-6)
    assert kl < found.edit.kl_before.value


def test_a_healthy_model_has_no_fault(report):
    assert not [each for each in report.findings if each.severity == "fault"]
    assert len(report.weights) == 21
    assert all(0.95 < each.factor < 1.05 for each in report.weights)


def kl_of(baseline, changed, windows):
    with torch.inference_mode():
        p, q = (model.float()(windows).logits[:, :-1].double().log_softmax(-1) for model in (baseline, changed))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_costs_are_those_of_whole_models(report, healthy, dense, text_file):
    """Every run that began at a block against one that did not, and against the definition of KL."""
    from llmquant.data.protocols import windows_of
    from llmquant.engine.prepare import load_tokenizer
    from llmquant.hf.load import load

    windows = windows_of("tokens", str(text_file), load_tokenizer(dense), length=40, max_windows=8)
    one = AutoModelForCausalLM.from_pretrained(dense, dtype="auto").eval()
    two = load(healthy, packed=False).eval()
    assert report.budget.kl.value == pytest.approx(kl_of(one, two, windows.ids), rel=1e-6)
    assert report.budget.kl.low is not None
    for unit in report.budget.units:
        alone: Any = copy.deepcopy(one)
        kept: Any = copy.deepcopy(two)
        for name in unit.modules:
            alone.get_submodule(name).weight.data = two.get_submodule(name).weight.data.float()
            kept.get_submodule(name).weight.data = one.get_submodule(name).weight.data.float()
        assert unit.alone.value == pytest.approx(kl_of(one, alone, windows.ids), rel=1e-6)
        assert unit.kept.value == pytest.approx(kl_of(one, kept, windows.ids), rel=1e-6)
        assert unit.gain.value == pytest.approx(report.budget.kl.value - unit.kept.value, rel=1e-9)


def test_the_search_looks_everywhere_first(report):
    assert list(report.budget.by_block) == [0, 1, 2]
    assert len(report.budget.by_unit) == 12
    worst = sorted(report.budget.by_unit, key=report.budget.by_unit.__getitem__, reverse=True)[:3]
    assert {each.name for each in report.budget.units} == set(worst)
    assert "12 units of the worst 3" in report.budget.note


def test_layers_agree_with_a_run_of_both_models(report, healthy, dense):
    (layer,) = [each for each in report.comparison.layers if each.name == DOWN]
    (weight,) = [each for each in report.weights if each.name == DOWN]
    assert layer.own.sqnr == pytest.approx(weight.sqnr, abs=3)  # inputs without structure
    assert layer.accumulated is not None
    assert layer.own.sqnr > layer.accumulated.sqnr
    assert len(report.comparison.layers) == 21
    assert len(report.comparison.blocks) == 3
    first = next(each for each in report.comparison.layers if each.block == 0 and each.name.endswith("q_proj"))
    assert first.own == first.accumulated  # nothing quantized is before it
    assert first.activations == first.quantized_activations


@pytest.mark.parametrize("bits", [None, 3.0])
def test_the_edit_does_what_it_says(report, healthy, dense, text_file, tmp_path, bits):
    if bits is not None:
        report = llmquant.debug(healthy, dense, text=str(text_file), bits=bits, **ASKED)
    edit = report.edit
    assert edit is not None
    assert bool(edit.units[1:]) == (bits is not None)
    recipe = load_recipe({**RECIPE, "rules": [*RECIPE["rules"], *yaml.safe_load(edit.rules)]})
    assert recipe.rules == load_recipe(yaml.safe_load(edit.recipe)).rules
    out = quantize(dense, recipe, tmp_path / "edited").folder
    before, after = (divergence(each, dense, text_file) for each in (healthy, out))
    assert before == pytest.approx(edit.kl_before.value, rel=1e-6)
    assert after == pytest.approx(edit.kl_after.value, rel=1e-6)
    assert after < before
    made = json.loads((out / "llmquant.json").read_text())["plan"]
    assert made["bits_per_weight"] == pytest.approx(edit.bits_after)
    assert bits is None or edit.bits <= bits


def test_a_budget_that_buys_nothing(healthy, dense, text_file):
    found = llmquant.debug(healthy, dense, text=str(text_file), bits=1e-6, **ASKED)
    assert found.edit is None
    assert "buy nothing" in found.sentence()


def test_without_provenance_the_recipe_is_what_is_stored(plant, dense, text_file):
    folder = plant({f"{DOWN}.weight_scale": scaled})
    (folder / "llmquant.json").unlink()
    found = llmquant.debug(folder, dense, text=str(text_file), **ASKED)
    assert found.findings[0].where == (DOWN,)
    assert found.edit
    assert load_recipe(yaml.safe_load(found.edit.recipe)).name == "as-stored-edited"


def test_a_damaged_folder_is_refused_by_name(plant, dense, text_file):
    folder = plant({f"{DOWN}.weight_scale": lambda scales: scales * float("nan")})
    with pytest.raises(QuantizationError, match=rf"{DOWN}: 192 of 192 scales are NaN, so nothing can be measured"):
        llmquant.debug(folder, dense, text=str(text_file), **ASKED)


def test_a_model_that_is_not_quantized_is_refused(dense, text_file):
    with pytest.raises(CheckpointError, match=r"quantization_config\); give a quantized folder"):
        llmquant.debug(dense, dense, text=str(text_file), **ASKED)


def test_the_command_line(plant, dense, text_file, tmp_path, capsys):
    folder = plant({f"{DOWN}.weight_scale": scaled})
    words = ["debug", str(folder), "--baseline", str(dense), "--text", str(text_file), "--length", "40", "-q"]
    words += ["--report", str(tmp_path / "page.html")]
    assert (
        main([*words, "--units", "2", "--json", str(tmp_path / "found.json"), "--recipe", str(tmp_path / "r.yaml")])
        == 0
    )
    text = capsys.readouterr().out
    assert text.startswith(f"fault: {DOWN}: its scales are 1.50 x what its weights ask for")
    assert "scheme: " in text.splitlines()[-2]
    assert text.splitlines()[-1] == f"wrote {tmp_path / 'r.yaml'}, {tmp_path / 'page.html'}"
    flat = " ".join(text.split())
    assert f"312 tokens of {text_file}; 8 windows of 40, stride 39, BOS yes; text sha256:" in flat
    assert "computed in float32" in flat
    assert json.loads((tmp_path / "found.json").read_text())["findings"][0]["kind"] == "scale-factor"
    assert load_recipe(tmp_path / "r.yaml").rules[-1].match == (DOWN,)
    page = (tmp_path / "page.html").read_text()
    assert page.index("its scales are 1.50 x what its weights ask for") < page.index("What each costs")
    assert "mlp.down_proj of block 1" in page  # the worst cell of the heat map, in words
    assert "8 windows of 40, stride 39, BOS yes" in page


def test_the_page_has_activations(report):
    def shown(**changes):
        layers = [
            replace(each, activations=replace(each.activations, **changes)) if each.name == DOWN else each
            for each in report.comparison.layers
        ]
        text = parsed(render_page(replace(report, comparison=replace(report.comparison, layers=tuple(layers))))).text
        return " ".join(text.partition(" Activations ")[2].partition("A recipe edit")[0].split())

    plain = shown()
    assert "No channel stands out. The heaviest tails:" in plain
    assert plain.count("model.layers.") == 8
    assert "model.layers.0.self_attn.{q_proj,k_proj,v_proj}" in shown(dead=0) + shown(kurtosis=1.0)
    odd = shown(smallest=-2.5, largest=40.0, kurtosis=77.0, outliers=(5, 3), dead=2, clipped=0.0123)
    assert odd.endswith(f"clipped {DOWN} -2.50 to 40.0 77.0 5, 3 2 1.230 %")
    assert f"Kurtosis: {number(min(each.activations.kurtosis for each in report.comparison.layers))} 77.0" in odd


def test_names_are_whole_words_in_a_narrow_terminal(report, healthy):
    console = Console(width=70)
    with console.capture() as captured:
        print_report(console, report)
        print_health(console, llmquant.inspect(healthy), every=True)
    text = captured.get()
    lines = text[text.index("what each costs") :].splitlines()
    names = [name for line in lines for name in re.findall(r"^[\w.{},]*_pro\S*|^model.layers[\w.{},]*|^\w+_$", line)]
    assert len(names) > 30
    assert all(re.fullmatch(r"[\w.{},]*(proj\}?|[.,])", name) for name in names), names


@pytest.mark.parametrize(
    ("key", "here"),
    [("rounding", True), ("rounding", False), ("transforms", True), ("tuning", True), ("rule", True), ("format", True)],
)
def test_no_file_that_a_folder_names_is_run(plant, dense, text_file, tmp_path, monkeypatch, key, here):
    """`debug`, `inspect` and `verify` of somebody else's folder, whether the file is here or not."""
    folder, evil = plant({}), Path("evil.py")  # without a dash, which the name of a format would turn into another path
    monkeypatch.chdir(tmp_path)
    if here:
        evil.write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\nNAME = Options = open = writer = NEEDS = None\n")
    step = {"method": str(evil)}
    made = json.loads((folder / "llmquant.json").read_text())
    recipe = made["recipe"]
    if key == "rule":
        recipe["rules"][0]["rounding"] = step
    else:
        recipe[key] = str(evil) if key == "format" else step if key == "rounding" else [step]
    (folder / "llmquant.json").write_text(json.dumps(made))
    words = ["--text", str(text_file), "--length", "40", "--max-windows", "1", "-q"]
    debugged = main(["debug", str(folder), "--baseline", str(dense), "--units", "1", *words])
    assert debugged == (1 if key == "format" else 0)
    assert main(["inspect", str(folder), "-q"]) == (1 if key == "format" else 0)
    assert main(["verify", str(folder)]) == 0
    if here and key == "rounding":
        divergence(folder, dense, text_file)
    assert not (tmp_path / "marker").exists()


def test_the_edited_recipe_keeps_methods_that_are_not_here(plant, dense, text_file):
    folder = plant({})
    made = json.loads((folder / "llmquant.json").read_text())
    made["recipe"]["rounding"] = {"method": "of-a-later-version", "passes": 3}
    (folder / "llmquant.json").write_text(json.dumps(made))
    found = llmquant.debug(folder, dense, text=str(text_file), length=40, max_windows=2, units=1)
    assert found.edit
    assert yaml.safe_load(found.edit.recipe)["rounding"] == {"method": "of-a-later-version", "passes": 3}


def changed_baseline(dense, folder, change):
    model = AutoModelForCausalLM.from_pretrained(dense, dtype="auto")
    with torch.no_grad():
        change(model.get_submodule(DOWN).weight)
    shutil.copytree(dense, folder)
    model.save_pretrained(folder)
    return folder


def test_what_is_zero_in_both_models_is_no_fault(dense, text_file, tmp_path):
    zero = changed_baseline(dense, tmp_path / "zero", lambda weight: weight.zero_())
    out = quantize(zero, RECIPE, tmp_path / "out").folder
    found = llmquant.debug(out, zero, text=str(text_file), **ASKED)
    assert not [each for each in found.findings if each.severity == "fault"]
    assert not [each for each in found.findings if DOWN in each.where]
    (weight,) = [each for each in found.weights if each.name == DOWN]
    assert (weight.cosine, weight.factor) == (1.0, 1.0)


def test_a_baseline_with_nan_is_refused_by_name(healthy, dense, text_file, tmp_path, capsys):
    broken = changed_baseline(dense, tmp_path / "broken", lambda weight: weight[3].fill_(float("nan")))
    words = ["--text", str(text_file), "--length", "40", "--max-windows", "2", "-q", "--json", str(tmp_path / "j")]
    assert main(["debug", str(healthy), "--baseline", str(broken), *words]) == 1
    assert f"the baseline {broken} gives NaN or Inf" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "j").exists()


def test_the_default_edit_is_the_cheapest_of_the_best(report):
    best = [each for each in report.budget.units if each.best]
    assert best[0] is report.budget.units[0]
    assert report.edit.units[0][0] == min(best, key=lambda each: report.bits[each.name]).name
    assert [row[-1] for row in report.cost_rows()] == [f"{report.bits[u.name]:+.3f}" for u in report.budget.units]
    assert yaml.safe_load(report.edit.recipe)["name"] == "tiny-int4-edited"


def test_of_equal_gains_the_one_of_fewest_bits_is_kept(report):
    from llmquant.debugging.edits import Choice, _cheapest
    from llmquant.spec import KEEP

    one, two, three = (replace(each, best=place < 2) for place, each in enumerate(report.budget.units[:3]))
    options = [(Choice(one, KEEP), 0.6), (Choice(two, KEEP), 0.1), (Choice(three, KEEP), 0.01)]
    assert _cheapest(options) is two


def tied() -> Any:
    return tiny_llama(tie_word_embeddings=True)


def conv1d() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 257, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=256, eos_token_id=256)).eval()


@pytest.mark.parametrize(
    ("make", "match", "scheme", "where"),
    [
        (tied, ["linear", "embedding"], "int8", "model.embed_tokens"),
        (tiny_llama, "linear", "w8a8-dynamic", DOWN),
        (conv1d, "linear", "int4-g32", "transformer.h.1.mlp.c_fc"),
    ],
)
def test_every_kind_of_layer_is_looked_at(make, match, scheme, where, text_file, tmp_path):
    make().save_pretrained(tmp_path / "dense")
    byte_tokenizer().save_pretrained(tmp_path / "dense")
    recipe = {"version": 1, "name": "kinds", "portable": False, "rules": [{"match": match, "scheme": scheme}]}
    out = quantize(tmp_path / "dense", recipe, tmp_path / "out").folder
    healthy = llmquant.debug(out, tmp_path / "dense", text=str(text_file), **ASKED)
    assert not [each for each in healthy.findings if each.severity == "fault"]
    assert where in [each.name for each in healthy.weights]
    shard = next(path for path in out.glob("*.safetensors") if f"{where}.weight_scale" in load_file(path))
    tensors = load_file(shard)
    tensors[f"{where}.weight_scale"] *= 1.5
    save_file(tensors, shard, metadata={"format": "pt"})
    found = llmquant.debug(out, tmp_path / "dense", text=str(text_file), **ASKED)
    assert (found.findings[0].kind, found.findings[0].where) == ("scale-factor", (where,))
