"""`llmquant bench --tune`: which weights, what is shown and kept, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmquant.api import quantize
from llmquant.cli import bench_tune
from llmquant.cli.main import main
from llmquant.hf.load import load
from llmquant.kernels.gpu import runtime
from llmquant.kernels.gpu.choose import dispatch, table, tune, tune_gpu
from llmquant.nn.accuracy import ACCURACIES
from tests.engine.conftest import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tune") / "model")


@pytest.fixture(scope="module")
def quantized(model: Path) -> Path:
    return quantize(model, "int4-g32", model.parent / "out").folder


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
