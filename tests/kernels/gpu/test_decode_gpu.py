"""benchmarks/decode_gpu.py: its dry run as a whole, and the parts that a run without a GPU would not reach."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from llmquant.hf.fuse import unfuse
from llmquant.nn.linear import PackedLinear

MODELS = ("dense", "int4-g32", "int8", "int8/int4-g32")


@pytest.fixture
def part(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import one of the benchmark's modules, which lie beside the script."""
    monkeypatch.syspath_prepend(repository / "benchmarks")
    return import_module


@pytest.fixture
def models(part: Any) -> dict[str, LlamaForCausalLM]:
    make = part("gpu_models")
    shape = make.SHAPES["tiny"] | {"num_hidden_layers": 2, "intermediate_size": 512}
    return {name: make.build(make.Kind.parse(name), shape, torch.float32, torch.device("cpu")) for name in MODELS}


def run(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "benchmarks" / "decode_gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
def test_dry_run(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'llmquant[gpu]'")
    some = ["--models", "dense", "int4-g128"]  # with int8 beside them it takes twice as long
    done = run(repository, "--dry-run", *some, "--json", str(tmp_path / "new" / "dry.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    assert done.stdout.count("not measured") == 16
    result = json.loads((tmp_path / "new" / "dry.json").read_text())
    assert (result["finished"], result["failed"], result["skipped"]) == (True, [], [])
    assert {"date", "commit", "machine", "versions", "plan"} <= set(result)
    assert all(row["ok"] for row in result["checks"])
    contenders = {("dense", None), ("int4-g128", "exact"), ("int4-g128", "fast")}
    for key in ("decode", "prefill", "profile"):
        assert {(row["model"], row["accuracy"]) for row in result[key]} == contenders
    assert {row["ms"] for key in ("decode", "prefill") for row in result[key]} == {None}, "nothing is timed"
    kernels = {row["model"]: list(row["kernels"]) for row in result["models"]}
    assert kernels["int4-g128"] == ["linear_int4: interpreter triton, exact"]
    assert kernels["dense"] == []


@pytest.mark.gpu
def test_small_run_on_a_gpu(repository: Path, tmp_path: Path) -> None:
    small = ["--shape", "tiny", "--batches", "1", "3", "--prefill", "40", "--context", "16", "--steps", "8"]
    sections = ["--rounds", "2", "--sections", "checks", "decode", "prefill", "profile"]
    done = run(repository, *small, *sections, "--json", str(tmp_path / "small.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "small.json").read_text())
    assert result["failed"] == []
    graphs = [row for row in result["decode"] if row["way"] == "graph"]
    assert {(row["model"], row["batch"]) for row in graphs} == {
        (model, batch) for model in ("dense", "int4-g128", "int8") for batch in (1, 3)
    }
    for row in result["profile"]:
        assert row["device_us"] > 0
        assert (row["our_launches"] > 0) == (row["model"] != "dense")


def test_without_a_gpu_nothing_runs(
    part: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert part("gpu_session").run(part("decode_gpu").parse([])) == 2
    assert "--dry-run needs none" in capsys.readouterr().err


def test_all_models_come_from_the_same_weights(models: dict[str, Any]) -> None:
    dense = models["dense"].state_dict()
    for name in MODELS[1:]:
        layers = {key: each for key, each in models[name].named_modules() if isinstance(each, PackedLinear)}
        assert len(layers) == 14 + (name == "int8/int4-g32")
        for key, layer in layers.items():
            quantized = layer.quantized()
            steps = quantized.scales.abs().repeat_interleave(layer.in_features // quantized.scales.shape[1], 1)
            error = (layer.dequantize() - dense[f"{key}.weight"]).abs() / steps
            assert error.max() < 1.001  # half a step, and one beside the code that a symmetric grid does not have
            assert error.mean() < 0.26
    embedding = "model.embed_tokens.weight"
    torch.testing.assert_close(models["int8"].state_dict()[embedding], dense[embedding], rtol=0, atol=0)
    assert abs(dense["lm_head.weight"].std().item() - 0.02) < 1e-3
    assert not torch.equal(dense["model.layers.0.mlp.up_proj.weight"], dense["model.layers.1.mlp.up_proj.weight"])


@torch.no_grad()
def test_what_is_timed_is_written(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session, profile = part("gpu_session"), part("gpu_profile")
    small = [
        "--shape",
        "tiny",
        "--dtype",
        "float32",
        "--batches",
        "2",
        "--context",
        "4",
        "--steps",
        "3",
        "--rounds",
        "2",
    ]
    run = session.Session(part("decode_gpu").parse(small), torch.device("cpu"))
    for name in ("dense", "int4-g32", "int8"):
        run.report.section("models", name, lambda name=name: run.add_model(part("gpu_models").Kind.parse(name)))
    run.report.section("decode", "decode", lambda: run.decode(2))
    run.report.section("prefill", "prefill", lambda: run.prefill(9))
    monkeypatch.setattr(session, "record", lambda step, steps: [profile.Interval("linear_a16", 0, 80)])
    run.report.section("profile", "one", lambda: run.profile(run.contenders[1], "decode", 2, 4))
    run.report.section("profile", "two", lambda: run.profile(run.contenders[1], "prefill", 1, 9))
    result = run.report.result
    assert result["failed"] == []
    rows = {(row["model"], row["accuracy"], row["way"]): row for row in result["decode"]}
    assert len(rows) == len(result["decode"]) == 7
    assert rows["dense", None, "static"]["ratio_dense"] == 1
    for row in result["decode"] + result["prefill"]:
        assert row["ms"]["best"] <= row["ms"]["median"]
        assert row["tokens_s"] == pytest.approx(1e3 * (2 if row["context"] == 4 else 9) / row["ms"]["median"], rel=0.01)
    ms = rows["int4-g32", "exact", "static"]["ms"]["median"]
    assert [row["our_kernels_us"] for row in result["profile"]] == [10, 10]
    assert result["profile"][0]["step_us"] == pytest.approx(1e3 * ms, abs=0.1)
    assert result["profile"][1]["share_outside_our_kernels"] > 0
    table = part("gpu_report").show(result)
    assert table.count("tok/s") == 11
    assert "% of" in table


def test_what_is_compiled_ahead(part: Any) -> None:
    warm = part("gpu_warm")
    jobs = list(warm.jobs(part("decode_gpu").parse(["--batches", "1", "8", "--context", "128", "--prefill", "512"])))
    asked = [job.arguments for job in jobs]
    assert len(set(asked)) == len(asked)
    assert [rows for name, accuracy, rows, *_ in asked if accuracy == "fast"] == [1, 8, 128, 1024, 512]
    assert {(name, accuracy) for name, accuracy, *_ in asked} == {
        ("int4-g128", "exact"), ("int4-g128", "fast"), ("int8", "exact"),
    }  # fmt: skip
    launched: list[tuple[int, ...]] = []
    linear = torch.nn.functional.scaled_dot_product_attention

    def attention(query: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        launched.append(tuple(query.shape))
        return linear(query, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
        warm.launch_all("int8/int4-g32", "fast", 3, "tiny", "float32", device="cpu")
    assert [shape[0] * shape[2] for shape in launched] == [3]


def test_schemes_with_quantized_activations_are_refused(part: Any) -> None:
    with pytest.raises(ValueError, match="16-bit activations"):
        part("gpu_models").Kind.parse("w8a8-dynamic")


@torch.no_grad()
def test_the_check_finds_a_layer_that_is_off(
    part: Any, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check, model = part("gpu_check"), models["int4-g32"].to(torch.bfloat16)
    prompt = torch.arange(24)[None] * 7
    good = check.check_logits(model, prompt, exact=True)
    assert good["ok"], good
    assert good["error_of_reference"] > 1e-4
    assert not any("forward" in each.__dict__ for each in model.modules() if isinstance(each, PackedLinear))
    unfuse(model)
    forward = PackedLinear.forward

    def off(layer: PackedLinear, x: torch.Tensor) -> torch.Tensor:
        return forward(layer, x) * (1.05 if layer is model.model.layers[1].mlp.down_proj else 1)

    monkeypatch.setattr(PackedLinear, "forward", off)
    assert not check.check_logits(model, prompt, exact=True)["ok"]


@torch.no_grad()
def test_decoding_begins_anew(part: Any, models: dict[str, Any]) -> None:
    decode, check = part("gpu_decode"), part("gpu_check")
    prompt = torch.arange(14).view(2, 7) * 11
    found = check.check_tokens(models["int8"], prompt, 6, "static")
    assert found == {"ok": True, "same_as_dynamic_cache": 1.0}
    tokens = decode.greedy(decode.Decoder(models["int8"], prompt, 6, "eager"), 6)
    ids = prompt
    for step in range(7):  # and what is decoded is what a model without a cache finds
        best = models["int8"](ids, use_cache=False).logits[:, -1].argmax(-1)
        assert torch.equal(tokens[:, step], best)
        ids = torch.cat((ids, best[:, None]), 1)


def test_turns_alternate_and_end(part: Any) -> None:
    order: list[str] = []
    runs = [lambda name=name: order.append(name) or float(len(order)) for name in "abc"]
    answers = iter([True, False])
    results = part("gpu_decode").take_turns(runs, 5, lambda: next(answers))
    assert "".join(order) == "abccba"
    assert results == [[1.0, 6.0], [2.0, 5.0], [3.0, 4.0]]


def test_times_become_medians_and_ratios_within_rounds(part: Any) -> None:
    row = part("gpu_report").timing([0.002, 0.001, 0.004], 8, [0.006, 0.002, 0.012])
    assert row["ms"] == {"median": 2.0, "q25": 1.5, "q75": 3.0, "best": 1.0, "rounds": 3}
    assert row["tokens_s"] == 4000
    assert row["ratio_dense"] == 3.0


def test_shares_of_the_time(part: Any) -> None:
    profile = part("gpu_profile")
    Interval = profile.Interval
    intervals = [
        Interval("ours", 0, 10), Interval("ours", 5, 12), Interval("gemm", 11, 21), Interval("copy", 30, 33),
        Interval("gemm", 33, 34),
    ]  # fmt: skip
    assert profile.covered(intervals) == 25
    assert profile.covered([]) == 0
    found = profile.summary(intervals, {"ours"}, steps=2, step_us=20.0)
    assert (found["device_us"], found["our_kernels_us"], found["our_launches"]) == (12.5, 6.0, 1.0)
    assert (found["share_outside_our_kernels"], found["share_idle"]) == (0.7, 0.375)
    assert [(each["kernel"], each["us"]) for each in found["others"]] == [("gemm", 5.5), ("copy", 1.5)]
    assert "share_idle" not in profile.summary(intervals, {"ours"}, steps=2, step_us=None)


def test_kernels_are_known_by_name(part: Any, device: str) -> None:
    ours = part("gpu_profile").our_kernels()
    assert {"linear_a16", "dequantize_tile"} <= ours
    assert not {"Any", "tl", "triton"} & ours


def test_one_failure_costs_one_section(part: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, plan = tmp_path / "result.json", {"shape": "tiny", "dtype": "float16"}
    report = part("gpu_report").Report(plan, torch.device("cpu"), path, seconds=1000)

    def fail() -> list[dict[str, Any]]:
        raise torch.cuda.OutOfMemoryError("no memory left")

    report.section("decode", "first", fail)
    assert json.loads(path.read_text())["failed"][0]["section"] == "first", "written at once"
    report.section("checks", "second", lambda: [{"model": "a", "check": "b", "ok": True}])
    report.section("checks", "third", fail, needs=1001)
    report.save(finished=True)
    result = json.loads(path.read_text())
    assert [each["section"] for each in result["failed"]] == ["first"]
    assert "no memory left" in result["failed"][0]["error"]
    assert (result["decode"], len(result["checks"]), len(result["skipped"])) == ([], 1, 1)
    assert list(tmp_path.iterdir()) == [path]
    assert not report.good()
    table = part("gpu_report").show(result)
    assert "FAILED: first: " in table
    assert "skipped: third" in table
