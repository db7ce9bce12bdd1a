"""What is measured, in which order, and what the command line changes of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from llmquant.errors import DeviceError
from llmquant.kernels.bench import __main__ as bench
from llmquant.kernels.bench.common.plan import CPU, CUDA, DRY, LAYERS, Plan, default_plan, rotate_bytes
from llmquant.kernels.bench.common.weights import Shape, copies


def plan(*arguments: str) -> Plan:
    return bench.plans_from(bench.parse(list(arguments)))[0]


def test_a_gpu_starts_with_what_matters_and_fits_nine_minutes() -> None:
    default = default_plan(CUDA)
    order = list(default.cells())
    assert len(order) == len(set(order)) == 8 * len(default.batches)
    assert [cell.m for cell in order[:8]] == [1] * 8
    assert order[0].shape in LAYERS["8B"]
    assert default.budget <= 500
    assert default.schemes[0] == "int4-g128"


def test_the_cpu_crosses_everything_a_shape_at_a_time() -> None:
    order = list(default_plan(CPU).cells())
    assert len(order) == len(set(order)) == 25
    assert [cell.shape for cell in order[:5]] == [Shape(4096, 4096)] * 5
    quick = default_plan(CPU, quick=True)
    assert {cell.name for cell in quick.cells()} == {"4096x4096 M=1", "4096x4096 M=4", "4096x4096 M=128"}
    assert quick.peers == ()


def test_the_command_line_narrows_a_plan() -> None:
    asked = ["--device", "cpu", "--sizes", "8B", "32x64", "--m", "1", "64", "--schemes", "int8", "--peers"]
    narrow, more = bench.plans_from(bench.parse([*asked, "--threads", "1", "3", "--rotate-mb", "1.5"]))
    assert narrow.shapes == (*LAYERS["8B"], Shape(32, 64))
    assert (narrow.batches, narrow.schemes, narrow.peers, narrow.rotate_bytes) == ((1, 64), ("int8",), (), 1_500_000)
    assert (narrow.threads, more.threads) == (1, 3)
    with pytest.raises(ValueError, match="a size is NxK, such as 4096x11008, or one of 8B, 70B, not '9B'"):
        plan("--device", "cpu", "--sizes", "9B")
    with pytest.raises(ValueError, match=r"peers on cpu are torch, .*, not humming"):
        plan("--device", "cpu", "--peers", "humming")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_gpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="no device 'cuda' here"):
        plan("--device", "cuda")


def test_a_plan_survives_json() -> None:
    for wanted in (default_plan(CPU), default_plan(CUDA), replace(default_plan(DRY), vllm_library="a.so")):
        assert Plan.read(json.loads(json.dumps(vars(wanted)))) == wanted


def test_copies_exceed_the_cache() -> None:
    assert rotate_bytes(cache_bytes=37 << 20) > 3 * (37 << 20) - 1
    assert copies(110_000_000, 8_650_752) * 8_650_752 >= 110_000_000
    assert copies(100, 1_000_000) == 2, "never the same weight twice in a row"
