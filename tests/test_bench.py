"""`llmquant bench`: what takes part, what is refused, and what is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmquant.api import quantize
from llmquant.bench import bench_model, recipe_for
from llmquant.cli.main import main
from llmquant.errors import CheckpointError
from llmquant.eval.speed.throughput import ThroughputOptions
from tests.engine.conftest import save_tiny, tiny_llama

QUICK = ThroughputOptions(contexts=[8], decode_tokens=2, warmup=0, min_rounds=2, seconds=0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bench") / "model")


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
        assert row.cells[0].speed("decode").median > 0
        assert sum(row.kernels.values()) == (21 if row.name.startswith("int") else 0)
        assert row.dense == (not row.name.startswith("int"))


def test_a_quantized_model_is_taken_as_it_is(model: Path, quantized: Path) -> None:
    report = bench_model(quantized, baseline=model, dtypes=["bf16"], accuracies=["exact"], options=QUICK)
    assert [row.name for row in report.rows] == ["bf16", "out"]
    alone = bench_model(quantized, accuracies=["exact"], options=QUICK)
    assert [row.name for row in alone.rows] == ["out"]
    assert alone.parameters == report.parameters == tiny_llama().num_parameters()


def test_a_static_cache_adds_rows(model: Path) -> None:
    report = bench_model(
        model, dtypes=["fp32"], schemes=["int8"], accuracies=["exact"], static_cache=True, options=QUICK
    )
    assert [(row.name, row.static) for row in report.rows] == [
        ("fp32", False), ("int8", False), ("fp32", True), ("int8", True),
    ]  # fmt: skip


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
        (["MODEL", "--context", "100"], "context is 64"),
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


@pytest.mark.parametrize("option", ["--new", "--threads", "--batch", "--context"])
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
    sizes = ["--context", "8,100", "--new", "2", "--batch", "1,2", "--seconds", "0"]
    assert main(["bench", str(model), "--dtypes", "bf16", "--schemes", "int8", *sizes, "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    data = json.loads(file.read_text())
    assert data["cells"] == [{"batch_size": batch, "context": 8} for batch in (1, 2)]
    assert {row["name"] for row in data["rows"]} == {"bf16", "int8"}
    assert all(len(timed["decode"]) == 1 for row in data["rows"] for timed in row["cells"])
    assert "the model's context is 64" in data["left_out"][0]
    for word in ("bf16", "int8", "linear_int8", "torch", "batch 2, context 8", "decode tok/s", "left out: batch 1"):
        assert word in shown
