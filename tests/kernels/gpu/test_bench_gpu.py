"""kernels/bench/gpu.py: its order, floors, checks, tables, and how it lives through what kernels do to it. No speed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmquant.kernels.bench import gpu, gpu_check, gpu_ours, gpu_peers, gpu_rows, gpu_sweep, gpu_table
from llmquant.kernels.bench.contender import Shape
from llmquant.kernels.bench.gpu_cases import BATCHES, FORMATS, LAYERS, PEERS, Cell, Plan, cells, plan_from
from llmquant.kernels.bench.gpu_check import judge
from llmquant.kernels.bench.gpu_floor import Ceilings
from llmquant.kernels.bench.gpu_kernel import CUBLAS, OURS, Kernel, Peer
from llmquant.kernels.bench.gpu_peers_torch import Cublas, IntMm
from llmquant.kernels.bench.gpu_peers_vllm import marlin_scales, marlin_zeros, scalar_type
from llmquant.kernels.bench.gpu_timing import Times, summary
from llmquant.kernels.bench.gpu_weights import cloned, copies, random_weight, reference
from llmquant.kernels.gpu.choose.config import DENSE
from llmquant.kernels.gpu.choose.estimate import candidates
from llmquant.kernels.ops.dequantize import dequantize_reference
from llmquant.spec import Scheme

ROOT = Path(__file__).parents[3]
H200 = Ceilings(read_tbs=4.0, copy_tbs=4.3, bf16_tflops=788, int8_tops=None, launch_us=2)


def plan(*arguments: str) -> Plan:
    return plan_from(gpu.parse(list(arguments)))


# --- what is measured, and when --------------------------------------------------------------------------------------


def test_default_plan_has_every_case_and_starts_with_what_matters() -> None:
    order = cells(plan())
    assert len(order) == len(set(order)) == 2 * len(LAYERS) * len(BATCHES)
    few = [cell for cell in order if cell.m <= 128]
    assert order[: len(few)] == few, "few rows come before many"
    assert [cell.peers for cell in few] == [False] * (len(few) // 2) + [True] * (len(few) // 2)
    assert BATCHES == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    assert plan().formats[0] == "W4A16-g128"
    assert plan().budget <= 500, "with starting and ending, nine minutes"


def test_command_line_narrows_a_plan() -> None:
    narrow = plan("--shapes", "8B", "320x640", "--m", "1", "64", "--formats", "W8A8", "--peers", "--configs", "3")
    assert list(narrow.layers) == ["8B-gate_up", "8B-down", "8B-qkv", "8B-o", "320x640"]
    assert narrow.layers["320x640"] == Shape(320, 640)
    assert (narrow.batches, narrow.formats, narrow.peers, narrow.configs) == ((1, 64), ("W8A8",), (), 3)
    assert not any(cell.peers for cell in cells(narrow))
    with pytest.raises(ValueError, match="a layer is NxK, 8B, 70B or one of 8B-gate_up"):
        plan("--shapes", "9B")
    with pytest.raises(ValueError, match="not W3A16"):
        plan("--formats", "W3A16")


def test_a_plan_survives_json() -> None:
    for wanted in (plan(), plan("--dry-run"), plan("--vllm-library", "a.so", "--m", "3", "--no-cold", "--pdl")):
        assert Plan.read(json.loads(json.dumps(wanted.plain()))) == wanted


def test_copies_fill_the_cache_four_times() -> None:
    assert copies(8_650_752, 50 << 20) * 8_650_752 >= 4 * (50 << 20)
    assert copies(1 << 30, 50 << 20) == 2, "never the same weight twice in a row"


def test_every_case_has_a_configuration() -> None:
    every = gpu_ours.built(plan("--m", "1", "128", "8192", "--shapes", "8B-o", "70B-qkv"), gpu_ours.H200)
    assert {(row["layer"], row["m"], row["format"]) for row in every} == {
        (layer, m, form) for layer in ("8B-o", "70B-qkv") for m in (1, 128, 8192) for form in FORMATS
    }
    sizes = {row["format"]: row["weight_bytes"] for row in every if row["layer"] == "8B-o"}
    assert sizes["W4A16-g128"] == 4096 * 4096 // 2 + 4096 * 32 * 2
    assert sizes["W4A16-g128-asym"] - sizes["W4A16-g128"] == 4096 * 32 // 2
    assert sizes["W8A8"] == 4096 * 4096 + 4096 * 2


# --- floors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "m", "limit"),
    [
        ("8B-gate_up", 1, 3.44),
        ("8B-gate_up", 64, 2.69),
        ("8B-qkv", 32, 2.53),
        ("8B-o", 1, 2.28),
        ("70B-down", 128, 1.45),
    ],
)
def test_limits_are_those_of_the_estimate_for_h200(layer: str, m: int, limit: float) -> None:
    shape = LAYERS[layer]
    weight_bytes = shape.n * shape.k // 2 + shape.n * shape.k // 128 * 2
    assert H200.limit(shape, m, weight_bytes) == pytest.approx(limit, abs=0.015)


def test_floor_is_the_longer_of_memory_and_arithmetic() -> None:
    shape = Shape(1000, 2000)
    one = Ceilings(read_tbs=2, copy_tbs=1, bf16_tflops=100, int8_tops=300, launch_us=2)
    assert one.floor_us(shape, 1, 10**6) == pytest.approx((10**6 + 2 * 3000) / 2e6)
    assert one.floor_us(shape, 10**4, 10**6) == pytest.approx(2 * 10**4 * 2 * 10**6 / 100e6)
    assert one.floor_us(shape, 10**4, 10**6, activations=8) == pytest.approx(2 * 10**4 * 2 * 10**6 / 300e6)


# --- weights and checks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["int4-g32", "int4-g128-asym", "int8", "int3-g32"])
def test_reference_is_the_dequantized_product(name: str) -> None:
    scheme = Scheme.parse(name)
    weight = random_weight(scheme, Shape(24, 256), "cpu", torch.float32, lowest=True)
    assert weight.codes.min() == scheme.code_min
    assert random_weight(scheme, Shape(24, 256), "cpu").codes.min() == scheme.code_min + 1
    dense = dequantize_reference(
        weight.packed, weight.scale.double(), weight.zero, scheme.bits, weight.shape.k, torch.float64
    )
    x = torch.randn(700, 256)
    wanted = reference(x, weight)
    torch.testing.assert_close(wanted.values, wanted.part(x.double() @ dense.T), rtol=1e-12, atol=1e-12)
    assert wanted.rows[0] == 0
    assert wanted.rows[-1] == 699


def test_clones_are_elsewhere_and_equal() -> None:
    given = (torch.randn(4, 6).t(), (torch.arange(3), None), 7, "x")
    other = cloned(given)
    assert other[0].stride() == given[0].stride()
    assert torch.equal(other[0], given[0])
    assert other[0].data_ptr() != given[0].data_ptr()
    assert other[1][0].data_ptr() != given[1][0].data_ptr()
    assert other[2:] == (7, "x")


class Plain(Kernel):
    """A kernel in plain torch that can be broken."""

    def __init__(self, owner: str = OURS, form: str = "W4A16-g128", spoil: Callable[[Tensor], Tensor] | None = None):
        super().__init__(owner, form)
        self.spoil = spoil or (lambda out: out)

    def prepare(self, weight: Any) -> Tensor:
        return Cublas().prepare(weight).float()

    def call(self, x: Tensor, prepared: Tensor) -> Tensor:
        return self.spoil((x.float() @ prepared.T).to(x.dtype))


def unwritten(out: Tensor) -> Tensor:
    out[-1, -1] = torch.nan
    return out


runs = count()


def other_each_time(out: Tensor) -> Tensor:
    out[0, 0] += 0.25 * (next(runs) % 2)
    return out


@pytest.mark.parametrize(
    ("owner", "spoil", "problem"),
    [
        (OURS, None, None),
        (OURS, lambda out: out * 1.01, "more than"),
        (OURS, unwritten, "not every element"),
        (OURS, other_each_time, "two runs differ"),
        (OURS, lambda out: out[:-1], "the result is"),
        ("other", lambda out: out * 1.01, None),
        ("other", other_each_time, None),
        ("other", lambda out: out.flip(0), "more than"),
    ],
)
def test_a_wrong_result_is_found(owner: str, spoil: Any, problem: str | None) -> None:
    weight = random_weight(Scheme.parse("int4-g128"), Shape(64, 256), "cpu", torch.float16)
    kernel, x = Plain(owner, spoil=spoil), torch.randn(5, 256).half()
    found = judge(kernel, x, kernel.prepare(weight), 64, reference(x, weight)).problem
    assert (problem in found) if problem and found else (found == problem)


def test_rows_lie_between_nan() -> None:
    x = gpu_check.guarded(3, 64, torch.float16, "cpu", outliers=True)
    assert x.is_contiguous()
    assert x.isfinite().all()
    around = torch.as_strided(x, (5, 64), (64, 1), 0)
    assert around[0].isnan().all()
    assert around[-1].isnan().all()
    assert x.abs().amax() > 20


def test_sweep_covers_formats_and_refuses_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    quick, full = gpu_sweep.cases(plan()), gpu_sweep.cases(plan("--sweep", "full"))
    assert {case.form.name for case in quick} > set(FORMATS)
    assert {case.shape.n for case in full} >= {1, 72, 264}
    assert {case.dtype for case in quick} == {"bfloat16", "float16"}
    assert {3, 17, 65, 129, 300} <= set(quick[0].batches)
    assert gpu_sweep.cases(plan("--sweep", "none")) == []

    def exact(self: Any, x: Tensor, prepared: Any, out_dtype: torch.dtype | None = None) -> Tensor:
        weight, n, form = prepared
        layout = gpu_sweep.Layout.read(form)
        packed, scale, _ = gpu_sweep.restore(weight, layout, n)
        dense = dequantize_reference(packed, scale.double(), None, 4, layout.in_features, torch.float64)
        return (x.double() @ dense.T * self.factor).to(out_dtype or x.dtype)

    monkeypatch.setattr(gpu_ours.Ours, "call", exact)
    case = gpu_sweep.Case(FORMATS["W4A16-g128"], Shape(72, 256), "float16", (1, 3))
    for factor, problems, wrong in ((1, 0, False), (1 + 1e-5, 2, False), (1 + 1e-4, 2, True), (1.01, 4, True)):
        monkeypatch.setattr(gpu_ours.Ours, "factor", factor, raising=False)
        found = gpu_sweep.run(case, "cpu")
        assert (len(found.problems), found.wrong) == (problems, wrong)
        assert found.error == pytest.approx(factor - 1, abs=1e-7)


# --- peers -----------------------------------------------------------------------------------------------------------


def test_type_numbers_are_vllms() -> None:
    # uint4b8, uint8b128 and uint4 of vllm/scalar_type.py, 0.25.0
    assert [scalar_type(4, 8), scalar_type(8, 128), scalar_type(4, 0)] == [
        1125899907892224, 1125899923621888, 1125899906843648,
    ]  # fmt: skip


def test_marlin_order() -> None:
    grouped = marlin_scales(torch.arange(128).view(2, 64), grouped=True)
    assert grouped[0, :10].tolist() == [0, 8, 16, 24, 32, 40, 48, 56, 1, 9]
    assert marlin_scales(torch.arange(64).view(1, 64), grouped=False)[0, :9].tolist() == [0, 1, 8, 9, 16, 17, 24, 25, 2]
    zeros = torch.zeros(64, 3, dtype=torch.int8)
    zeros[16, 1] = 7  # third in Marlin's order, and so, interleaved, second in its word
    words = marlin_zeros(zeros)
    assert tuple(words.shape) == (3, 8)
    assert words[0, 0] == -0x77777778  # code 0 is stored as 8
    assert words[1, 0] ^ words[0, 0] == (8 ^ 15) << 4


def test_int8_product_is_right() -> None:
    weight = random_weight(Scheme.parse("w8a8-dynamic"), Shape(64, 128), "cpu")
    kernel, x = IntMm("W8A8"), torch.randn(20, 128).bfloat16()
    assert judge(kernel, x, kernel.prepare(weight), 64, reference(x, weight, quantized=True)).error < 1.2e-2
    assert kernel.why_not(Shape(64, 128), 1)
    assert kernel.why_not(Shape(60, 128), 32)


def test_absent_peers_say_why() -> None:
    if torch.cuda.is_available():
        pytest.skip("peers may be there")
    found = gpu_peers.found(plan())
    assert [peer.name for peer in found] == list(PEERS)
    assert {peer.absent for peer in found} == {"no CUDA device"}


def test_a_peer_that_raises_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(plan: Plan) -> Peer:
        raise ZeroDivisionError("bad wheel")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_peers, "_PEERS", {"vllm": broken, "int_mm": lambda plan: Peer("int_mm")})
    found = gpu_peers.found(plan("--peers", "vllm", "int_mm"))
    assert [peer.absent for peer in found] == ["ZeroDivisionError: bad wheel", None]


# --- rows and tables -------------------------------------------------------------------------------------------------


def measured(owner: str, form: str, us: Sequence[float] = (), **more: Any) -> gpu_rows.Measured:
    kernel = Plain(owner, form)
    kernel.variant = more.pop("variant", "")
    return gpu_rows.Measured(kernel, 1e-3, times=Times(tuple(us)), **more)


def example_rows() -> list[dict[str, Any]]:
    found = [
        measured(CUBLAS, "bf16", [10.0, 12.0, 14.0], again=(12.0,)),
        measured(OURS, "W4A16-g128", [4.0, 5.0, 6.0], describe={"config": "dense"}),
        measured(OURS, "W8A16", [8.0]),
        measured(OURS, "W8A8", failed="OutOfMemoryError: much"),
        measured(OURS, "W8A16", variant="16x64x1 w4 s3", failed="OutOfResources: shared memory"),
        measured("marlin", "W4A16-g128", [6.0]),
        measured("humming", "W4A16-g128", [5.5]),
        measured("machete", "W4A16-g128", problem="error 1.0e+00, more than 1e-01"),
        measured("marlin", "W8A16", [4.0]),
    ]
    cell = Cell("8B-o", 16, peers=True)
    return gpu_rows.rows_of(found, cell, LAYERS["8B-o"], H200, lambda kernel, shape: 8_650_752)


def test_rows_compare_with_cublas_the_floor_and_the_best_peer() -> None:
    rows = {row["name"]: row for row in example_rows()}
    ours = rows["llmquant W4A16-g128"]
    assert (ours["us"], ours["us_q25"], ours["us_q75"]) == (5, 4, 6)
    assert ours["x_cublas"] == 12 / 5, "the median of both ends"
    assert (ours["best_peer"], ours["x_best_peer"]) == ("humming W4A16-g128", 1.1)
    assert ours["floor_share"] == pytest.approx(ours["floor_us"] / 5, rel=1e-3)
    assert ours["tbs"] == pytest.approx((8_650_752 + 2 * 16 * 8192) / 5e6, rel=1e-4)
    assert rows["llmquant W8A16"]["best_peer"] == "marlin W8A16"
    assert "us" not in rows["machete W4A16-g128"]
    assert rows["cublas bf16"]["again_us"] == 12


def test_only_our_faults_are_failures() -> None:
    rows = example_rows()
    assert gpu_rows.failures(rows, []) == ["llmquant W8A8 at 8B-o M=16: OutOfMemoryError: much"]
    rows[1]["problem"] = "two runs differ"
    sweep = [{"case": "sweep W8A8", "problems": ["M=1: wrong"]}]
    assert gpu_rows.failures(rows, sweep) == [
        "sweep W8A8: M=1: wrong",
        "llmquant W4A16-g128 at 8B-o M=16: two runs differ",
        "llmquant W8A8 at 8B-o M=16: OutOfMemoryError: much",
    ]


def example(**more: Any) -> dict[str, Any]:
    return {
        "gpu": {"name": "NVIDIA H200"}, "machine": {"cpu": "cpu"}, "commit": "abc", "seconds": 12.0, "dry_run": False,
        "ceilings": [vars(H200)], "sweep": [], "failures": ["bad"], "crashes": [{"step": "a @ b", "reason": "it hung"}],
        "peers": {"vllm": "no --vllm-library", "humming": ["humming W4A16-g128"]}, "left_out": ["8B-o M=8192"],
        "rows": example_rows(),
    } | more  # fmt: skip


def test_tables() -> None:
    text = gpu_table.markdown(example())
    assert "| 8B-o | 2.40/1.10 |" in text
    assert "| 8B-o | 16 | dense | 5.00 (4.00-6.00) |" in text
    assert "| humming W4A16-g128 | 4.125 | 1.0e-03 | 5.50 |" in text
    for said in ("- bad", "a @ b: it hung", "- vllm: no --vllm-library", "first 8B-o M=8192", "copy 4.30 TB/s"):
        assert said in text
    assert "- machete W4A16-g128: error 1.0e+00, more than 1e-01 (1 cells, first 8B-o M=16)" in text
    rows = example_rows()
    for row in rows:
        for name in [name for name in row if name.startswith(("us", "x_", "best"))]:
            del row[name]
    assert "| 8B-o | not measured |" in gpu_table.short(example(rows=rows, gpu=None, ceilings=[], dry_run=True))


def test_summary_is_median_and_quartiles() -> None:
    assert summary([1, 2, 3, 4, 5, 6, 7], "us") == {"us": 4, "us_q25": 2, "us_q75": 6}
    assert summary([3], "us") == {"us": 3, "us_q25": 3, "us_q75": 3}
    assert summary([], "us") == {}


# --- our configurations ----------------------------------------------------------------------------------------------


def test_other_configurations_take_part_when_asked(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(256, 512)
    plain = gpu_ours.kernels(plan("--formats", "W4A16-g128"), shape, 1)
    assert [kernel.variant for kernel in plain] == [""]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    asked = gpu_ours.kernels(plan("--formats", "W4A16-g128", "--configs", "2", "--pdl"), shape, 1)
    runs = asked[0].chosen(shape, 1)
    configs = [kernel.config for kernel in asked[1:]]
    assert len({kernel.name for kernel in asked}) == len(asked) == 1 + 2 + 3
    assert runs not in configs
    assert len({kernel.layout for kernel in asked}) == 1, "they share their weights"
    assert sum(config.pdl != runs.pdl for config in configs if config) == 3
    many = gpu_ours.kernels(plan("--formats", "W8A8", "W4A16-g128"), shape, 128)
    assert [kernel.variant for kernel in many] == ["", ""], "the dense way goes with the first format"
    assert DENSE in candidates("sm90", "w4a16", 8192, 4096, 4096, 128, 132)
