"""`llmquant bench`: what takes part, what is refused, and what is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from llmquant.api import quantize
from llmquant.bench import bench_model, recipe_for
from llmquant.cli import bench_tune
from llmquant.cli.main import main
from llmquant.errors import CheckpointError
from llmquant.eval import bench as eval_bench
from llmquant.eval.bench import contenders_of
from llmquant.eval.static_decoding import StaticDecoding
from llmquant.eval.throughput import ThroughputOptions, Timing
from llmquant.hf.load import load
from llmquant.kernels.gpu import runtime
from llmquant.kernels.gpu.choose import dispatch, table, tune, tune_gpu
from llmquant.nn.accuracy import ACCURACIES, set_accuracy
from llmquant.nn.storage import PackedStorage
from tests.engine.conftest import byte_tokenizer, tiny_llama

QUICK = ThroughputOptions(prompt_tokens=8, decode_tokens=2, warmup=0, min_rounds=2, seconds=0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "model"
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def quantized(model: Path) -> Path:
    return quantize(model, "int4-g32", model.parent / "out").folder


def test_a_dense_model_is_also_quantized_in_memory(model: Path) -> None:
    report = bench_model(model, dtypes=["fp32", "bf16"], schemes=["int8", "int4-g32"], options=QUICK)
    assert report.parameters == tiny_llama().num_parameters()
    names = [row.name for row in report.rows]
    assert list(dict.fromkeys(names)) == ["fp32", "bf16", "int8", "int4-g32"]
    sizes = {row.name: row.parameter_bytes for row in report.rows}
    assert sizes["fp32"] > sizes["bf16"] > sizes["int8"] > sizes["int4-g32"]
    for row in report.rows:
        assert (row.accuracy is None and not row.kernels) or row.name.startswith("int")
        assert row.decode.median > 0
        assert sum(row.kernels.values()) == (21 if row.name.startswith("int") else 0)
    assert report.rows[0].decode_speedup.median == report.rows[0].prefill_speedup.median == 1.0


def test_a_quantized_model_is_taken_as_it_is(model: Path, quantized: Path) -> None:
    report = bench_model(quantized, baseline=model, dtypes=["bf16"], accuracies=["exact"], options=QUICK)
    assert [row.name for row in report.rows] == ["bf16", "out"]
    alone = bench_model(quantized, accuracies=["exact"], options=QUICK)
    assert [row.name for row in alone.rows] == ["out"]
    assert alone.parameters == report.parameters == tiny_llama().num_parameters()


def test_a_static_cache_adds_rows_that_find_the_same_logits(model: Path) -> None:
    report = bench_model(
        model, dtypes=["fp32"], schemes=["int8"], accuracies=["exact"], static_cache=True, options=QUICK
    )
    assert [(row.name, row.static) for row in report.rows] == [
        ("fp32", False), ("int8", False), ("fp32", True), ("int8", True),
    ]  # fmt: skip
    loaded = load(model)
    ids = torch.arange(20).view(2, 10) * 3
    decoding = StaticDecoding(loaded, ids, replace(QUICK, batch_size=2))
    for _ in range(2):  # the second time the cache begins anew
        with torch.inference_mode():
            decoding()
        torch.testing.assert_close(decoding.logits, loaded(ids).logits[:, -1:])


@pytest.mark.gpu
def test_a_cuda_graph_finds_the_same_logits(model: Path) -> None:
    loaded = load(model, device_map="cuda")
    ids = torch.arange(20, device="cuda").view(2, 10) * 3
    decoding = StaticDecoding(loaded, ids, replace(QUICK, batch_size=2))
    for _ in range(2):
        with torch.inference_mode():
            decoding()
        torch.testing.assert_close(decoding.logits, loaded(ids).logits[:, -1:], rtol=1e-3, atol=1e-3)


def test_models_lie_on_the_device_that_was_asked_for(model: Path, monkeypatch) -> None:
    places: list[object] = []
    monkeypatch.setattr(
        "llmquant.bench.resolve_device", lambda name: torch.device("cuda:1") if name == "cuda:1" else None
    )
    monkeypatch.setattr("llmquant.bench.free_bytes", lambda device: None)

    def loaded(folder: Path, **options: object) -> None:
        places.append(options["device_map"])
        raise CheckpointError("enough")

    monkeypatch.setattr("llmquant.bench.load", loaded)
    with pytest.raises(CheckpointError, match="enough"):
        bench_model(model, device="cuda:1", options=QUICK)
    assert places == [{"": torch.device("cuda:1")}]


def test_another_program_takes_its_turns(model: Path) -> None:
    peer = eval_bench.Peer("other", 1000, lambda: Timing(8.0, 4.0))
    loaded = load(model)
    report = eval_bench.bench("x", contenders_of("fp32", loaded, ["exact"]), QUICK, peers=[peer])
    mine, other = report.rows
    assert (other.name, other.parameter_bytes, other.kernels, other.decode.median) == ("other", 1000, {}, 4.0)
    assert other.decode_speedup.median == pytest.approx(4.0 / mine.decode.median, rel=0.5)
    assert mine.decode_speedup.median == 1.0


def _mode(model: PreTrainedModel) -> str:
    """What the layers were told, whether their kernels can do it on this machine or not."""
    (exact,) = {module.exact for module in model.modules() if isinstance(module, PackedStorage)}
    return "exact" if exact else "fast"


def test_modes_are_rows_where_they_differ_and_the_model_keeps_its_own(quantized: Path, monkeypatch) -> None:
    packed = load(quantized)
    set_accuracy(packed, "fast")
    monkeypatch.setattr(eval_bench, "kernels_used", lambda model: {f"kernel, {_mode(model)}": 1})
    found = contenders_of("x", packed, ["exact", "fast"])
    assert [each.accuracy for each in found] == ["exact", "fast"]
    report = eval_bench.bench("x", found, QUICK)
    assert [list(row.kernels) for row in report.rows] == [["kernel, exact"], ["kernel, fast"]]
    assert _mode(packed) == "fast"
    monkeypatch.setattr(eval_bench, "kernels_used", lambda _: {"reference": 1})
    assert [each.accuracy for each in contenders_of("x", packed, ["exact", "fast"])] == [None]
    assert [each.accuracy for each in contenders_of("x", tiny_llama(), ["exact", "fast"])] == [None]


def test_threads_are_set_and_put_back(model: Path) -> None:
    before = torch.get_num_threads()
    report = bench_model(model, dtypes=["fp32"], schemes=["int8"], options=QUICK, threads=before + 1)
    assert report.machine["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_a_scheme_needs_no_recipe() -> None:
    (rule,) = recipe_for("int4-g64").rules
    assert (rule.scheme, rule.if_indivisible) == ("int4-g64", ("g32", "channel"))
    assert recipe_for("int8").rules[0].if_indivisible == ()
    assert recipe_for("mixed-int4-int8").name == "mixed-int4-int8"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["MODEL", "--baseline", "MODEL"], "is not quantized"),
        (["OUT", "--schemes", "int8"], "quantized already"),
        (["OUT", "--dtypes", "fp32"], "--baseline"),
        (["MODEL", "--dtypes", "fp8"], "fp32, bf16, fp16"),
        (["MODEL", "--schemes", "int5"], "int5"),
        (["MODEL", "--prompt", "100"], "context is 64"),
        (["MODEL", "--device", "cuda:7"], "no device 'cuda:7' here"),
        (["MODEL", "--device", "gpu"], "unknown device 'gpu'; give auto, cpu"),
        (["nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_mistakes_are_named(model: Path, quantized: Path, capsys, arguments: list[str], said: str) -> None:
    places = {"MODEL": model, "OUT": quantized}
    assert main(["bench", *(str(places.get(word, word)) for word in arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error


@pytest.mark.parametrize("option", ["--new", "--threads"])
@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_numbers_that_are_none_are_wrong_command_lines(model: Path, capsys, option: str, value: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", str(model), option, value])
    assert "wanted a whole number from 1 on" in capsys.readouterr().err


def test_too_little_memory_is_refused_before_loading(model: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("llmquant.bench.free_bytes", lambda device: 100_000)
    monkeypatch.setattr("llmquant.bench._load", lambda *_: pytest.fail("loaded"))
    assert main(["bench", str(model)]) == 1
    assert "100 kB are free" in capsys.readouterr().err


def test_command_prints_a_table_and_writes_json(model: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "bench.json"
    sizes = ["--prompt", "8", "--new", "2", "--batch", "2", "--seconds", "0"]
    assert main(["bench", str(model), "--dtypes", "bf16", "--schemes", "int8", *sizes, "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    data = json.loads(file.read_text())
    assert data["batch_size"] == 2
    assert {row["name"] for row in data["rows"]} == {"bf16", "int8"}
    for word in ("bf16", "int8", "linear_int8", "torch", "prompt of 8 tokens", "decode tok/s"):
        assert word in shown


def test_tuning_is_for_every_weight_alone_and_for_those_that_share_their_input(model: Path, quantized: Path) -> None:
    """A tiny Llama of width 64: queries 64, keys and values 32, MLP 96."""
    groups = {(64, 64): 2, (32, 64): 2, (128, 64): 2, (96, 64): 2, (192, 64): 2, (64, 96): 3}
    for kind, accuracy in zip(("w4a16", "w4a8"), ACCURACIES, strict=True):
        cases = bench_tune.cases_of(quantized, accuracies=[accuracy])
        assert {(case.n, case.form.in_features): case.form.groups for case in cases} == groups
        assert {case.kind for case in cases} == {kind}
        assert {case.form.unit for case in cases} == {32}
    dense = bench_tune.cases_of(model, ["int4-g32", "int8", "w8a8-dynamic", "int4-g32-asym"])
    assert {(case.n, case.form.in_features) for case in dense} == set(groups)
    assert {case.kind for case in dense} == {"w4a16", "w4a8", "w8a16", "w8a8"}
    assert {case.form.asymmetric for case in dense if case.kind == "w4a16"} == {False, True}
    assert {case.form.scale_dtype for case in dense} == {next(load(model).parameters()).dtype}


@pytest.fixture
def played_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A GPU on which 16 rows at a time are twice as fast as anything else."""

    def measure(case: tune.Case, m: int, config: tune.Config) -> tune.Timing:
        if config.warps == 8:
            raise tune.CannotRun("OutOfResources")
        return tune.Timing(5.0 if config.block_n == 128 else 10.0, 1e-3)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(table.VARIABLE, raising=False)
    monkeypatch.setattr(bench_tune, "_gpu", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(runtime, "arch", lambda _: "sm80")
    monkeypatch.setattr(runtime, "processors", lambda _: 108)
    monkeypatch.setattr(tune_gpu, "OnGpu", lambda _: measure)


def test_tune_shows_what_it_found_and_keeps_it(quantized: Path, played_gpu: None, tmp_path: Path, capsys) -> None:
    file = tmp_path / "tune.json"
    assert main(["bench", "--tune", str(quantized), "--accuracy", "exact", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    for word in ("w4a16 128 x 64, groups of 32", "2.00x", "4 warps", "NVIDIA A100", "OutOfResources", "sm80-108.json"):
        assert word in shown
    found = json.loads(file.read_text())["found"]
    assert len(found) == 6 * len(tune.ROWS)
    dispatch.forget()
    chosen = dispatch.choose("sm80", "w4a16", 16, 128, 64, 32, processors=108)
    (one,) = [one for one in found if one["case"]["n"] == 128 and one["rows"][1] == 16]
    assert chosen == tune.Config(**one["config"])
    assert chosen.block_n == 128
    (run,) = table.read(table.user_file("sm80", 108)).runs
    assert {"date", "model", "torch", "llmquant", "triton"} <= run.keys()
    dispatch.forget()


def test_tune_without_a_gpu_or_a_weight_is_refused(model: Path, quantized: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--tune", str(model)]) == 1
    assert "torch finds none on this machine" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setenv(runtime.VARIABLE, "reference")
    assert main(["bench", "--tune", str(model)]) == 1
    assert "cannot run here: LLMQUANT_GPU_KERNELS=reference" in capsys.readouterr().err
    monkeypatch.setattr(bench_tune, "_gpu", lambda: torch.device("cuda", 0))
    assert main(["bench", "--tune", str(quantized), "--schemes", "int8"]) == 1
    assert "quantized already" in capsys.readouterr().err
    assert main(["bench", "--tune", str(model), "--schemes", "int4-g16"]) == 1
    assert "no linear layer that the GPU kernels would run" in capsys.readouterr().err
