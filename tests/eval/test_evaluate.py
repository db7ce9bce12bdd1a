"""The whole evaluation of a tiny pair, its budget and its memory figures."""

from __future__ import annotations

import copy
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import llmquant
from llmquant.data.windows import make_windows
from llmquant.errors import CheckpointError, DataError, LlmquantError, RecipeError
from llmquant.eval.evaluate import evaluate, hold
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.memory import Section as Memory
from llmquant.eval.metrics.memory import checkpoint_size, parameter_bytes
from llmquant.eval.metrics.noise_floor import Section as NoiseFloor
from llmquant.eval.metrics.perplexity import Section as Perplexity
from llmquant.eval.metrics.speed import Section as Speed
from llmquant.eval.metrics.worst import Section as Worst
from llmquant.eval.report import render_page
from llmquant.eval.result import EvalReport
from llmquant.eval.table import render_table
from llmquant.machine import machine, versions
from tests.eval.conftest import compare, pair_of


def test_report_holds_what_was_measured(report: EvalReport, baseline) -> None:
    parameters = sum(parameter.numel() for parameter in baseline.parameters())
    assert report.baseline
    assert report.baseline.parameters == report.quantized.parameters == parameters
    memory = report[Memory].quantized
    assert memory.bits_per_weight == pytest.approx(32.0)
    assert report.quantized.dtype == "float32"
    assert memory.parameter_bytes >= 4 * parameters
    assert [each.passed for each in report.budget] == [False, True, True]
    assert not report.budget_passed
    assert (report.loss_dtype, report.get(NoiseFloor)) == ("float32", None)  # nothing to measure there
    worst = [token.kl for token in report[Worst].tokens]
    assert worst == sorted(worst, reverse=True)
    assert worst[0] == report[Divergence].kl.max
    decode = report[Speed].rows[0].cells[0].speed("decode")
    assert decode.runs == len(report[Speed].quantized.cells[0].decode) >= 3
    assert decode.q25 is not None
    assert decode.q75 is not None
    assert 0 < decode.q25 <= decode.median <= decode.q75


def test_worst_tokens_are_decoded_in_context(report: EvalReport, text) -> None:
    for token in report[Worst].tokens:
        begin = token.window * 39 + token.position - 1
        assert token.token == (text + "\n\n")[begin]
        assert (text + "\n\n")[:begin].endswith(token.context)


def test_budget(report: EvalReport) -> None:
    kl = report[Divergence].kl
    assert kl.low is not None
    exact, inside = hold({"kl": kl.mean}, report.sections), kl.low * 1.001
    assert [(each.name, each.passed, each.certain) for each in exact] == [("kl", True, False)]
    assert [each.passed for each in hold({"kl": inside}, report.sections)] == [False]
    assert replace(report, budget=hold({"kl": inside}, report.sections)).over_budget == "kl, within error"
    assert replace(report, budget=hold({"kl": kl.low / 2}, report.sections)).over_budget == "kl"
    bits = report[Memory].quantized.bits_per_weight
    assert bits is not None
    (exact,) = hold({"bits_per_weight": bits}, report.sections)
    assert (exact.passed, exact.certain) == (True, True)
    with pytest.raises(RecipeError, match="nothing that 'memory' could measure"):
        hold({"bits_per_weight": 4.5}, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": {"klx": 1.0}}, "unknown budget 'klx'"),
        ({"budget": {"bits_per_weight": 4.5}}, "needs the checkpoint's folder"),
        ({"budget": {"kl": 1.0}, "metrics": {"divergence": False}}, "needs the metric 'divergence'"),
        ({"metrics": {"speeed": False}}, "did you mean 'speed'"),
        ({"metrics": {"worst": {"number": 3}}}, r"metric 'worst': .*'number'; its options are: count"),
        ({"metrics": {"worst": {"count": -3}}}, "'worst' cannot have count -3; at least 1"),
        ({"metrics": {"worst": {"count": 0}}}, "'worst' cannot have count 0; at least 1"),
        ({"metrics": {"worst": {"count": "a"}}}, "metric 'worst': count should be a valid integer; got 'a'"),
        ({"metrics": {"worst": {"count": 1.5}}}, r"count should be a valid integer.*; got 1\.5"),
        ({"metrics": {"worst": {"count": float("nan")}}}, "metric 'worst': count should be .*; got nan"),
        ({"metrics": {"worst": {"count": True}}}, "count should be a valid integer; got True"),
        ({"metrics": {"speed": {"seconds": "x"}}}, "metric 'speed': seconds should be a valid number; got 'x'"),
        ({"metrics": {"speed": {"seconds": float("inf")}}}, "seconds should be a finite number; got inf"),
        ({"metrics": {"speed": {"batches": [0]}}}, r"cannot have batches \[0\]"),
        ({"dtype": "float17"}, "unknown dtype"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(tokenizer, text, options, message) -> None:
    windows = make_windows([text], tokenizer, source="t", length=40)
    with pytest.raises(LlmquantError, match=message):
        evaluate(pair_of(None, None, windows, **options))


def test_metrics_are_left_out_and_take_options(baseline, perturbed, tokenizer, text) -> None:
    windows = make_windows([text], tokenizer, source="t", length=40, max_windows=8)
    wanted = {"speed": False, "memory": False, "worst": {"count": 3}}
    found = evaluate(pair_of(baseline, perturbed, windows, tokenizer=tokenizer, metrics=wanted))
    assert {"perplexity", "divergence", "worst"} <= found.sections.keys()
    assert not {"speed", "memory", "noise_floor"} & found.sections.keys()
    assert len(found[Worst].tokens) == 3


def _safetensors(path: Path, payload: int) -> None:
    header = json.dumps({"x": {"dtype": "U8", "shape": [payload], "data_offsets": [0, payload]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(payload))


def test_checkpoint_size_follows_the_index(tmp_path: Path) -> None:
    _safetensors(tmp_path / "a.safetensors", 100)
    _safetensors(tmp_path / "b.safetensors", 40)
    assert checkpoint_size(tmp_path) == (sum(path.stat().st_size for path in tmp_path.iterdir()), 140)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}), encoding="utf-8")
    assert checkpoint_size(tmp_path)[1] == 100
    index.write_text(json.dumps({"weight_map": {"x": "c.safetensors"}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="named by the index, but missing"):
        checkpoint_size(tmp_path)


def test_bad_checkpoints_have_no_size(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no safetensors files"):
        checkpoint_size(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 1000) + b"{}")
    with pytest.raises(CheckpointError, match="truncated"):
        checkpoint_size(tmp_path)


def test_shared_memory_counts_once() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(10, 10, bias=False), "b": torch.nn.Linear(10, 10, bias=False)})
    assert parameter_bytes(model) == 800
    model["b"].weight = model["a"].weight
    assert parameter_bytes(model) == 400


def test_a_few_windows_give_no_interval_anywhere(baseline, perturbed, tokenizer, text) -> None:
    windows = make_windows([text], tokenizer, source="t", length=40, max_windows=7)
    found = evaluate(pair_of(baseline, perturbed, windows, tokenizer=tokenizer))
    assert found[Perplexity].verdict == "too little text"
    data = json.loads(found.to_json())["sections"]
    divergence, perplexity = data["divergence"], data["perplexity"]
    for section in (
        divergence["kl"], divergence["top1_agreement"],
        *(perplexity[name] for name in ("ratio", "baseline", "quantized")),
    ):  # fmt: skip
        assert (section["low"], section["high"], section["standard_error"]) == (None, None, None)
        assert section["note"] == "too little text: 7 windows, an interval needs 8"
    console = Console(width=160)
    with console.capture() as capture:
        console.print(render_table([found]))
    for shown in (capture.get(), render_page([found])):
        assert shown.count("too little text") >= 4
        assert "±" not in shown.split("Loss by token")[0].split("How it was")[0]


def test_a_loss_in_16_bits_says_so_and_has_a_floor(baseline, perturbed, tokenizer, text) -> None:
    windows = make_windows([text], tokenizer, source="t", length=40, max_windows=8)
    pair = tuple(copy.deepcopy(model).to(torch.bfloat16) for model in (baseline, perturbed))
    one, other = pair
    both = {"tokenizer": tokenizer, "metrics": {"speed": False, "noise_floor": True}}
    narrow = evaluate(pair_of(one, other, windows, **both))
    wide = evaluate(pair_of(one, other, windows, dtype="auto", **both))
    assert (narrow.loss_dtype, wide.loss_dtype) == ("bfloat16", "float32")
    assert 1e-7 < narrow[NoiseFloor].kl < 0.1
    assert wide.get(NoiseFloor) is None
    assert all(model.dtype == torch.bfloat16 for model in pair)
    assert "computed in float32" in render_page([wide])


def test_facts_name_no_host() -> None:
    import getpass
    import platform

    facts = {**machine(torch.device("cpu")), **versions()}
    assert {"cpu", "threads", "cores", "torch", "transformers", "llmquant"} <= facts.keys()
    words = [str(value) for value in facts.values()]
    assert platform.node() not in words
    assert getpass.getuser() not in words


def test_known_perplexity_of_a_trained_model(shared_data: Path) -> None:
    """64 windows of 256 tokens: the value that the model's own page states."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "models" / "stories260K"
    text = (shared_data / "text" / "tinystories.valid.txt").read_text(encoding="utf-8")[:160_000]
    windows = make_windows(
        [text], AutoTokenizer.from_pretrained(folder), source="tinystories", length=256, max_windows=64
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert compare(model, model, windows).perplexity.baseline.value == pytest.approx(4.255, abs=0.002)


def test_an_option_that_there_is_not() -> None:
    with pytest.raises(DataError, match="takes no 'max_window'; did you mean 'max_windows'"):
        llmquant.evaluate("nowhere", max_window=8)
