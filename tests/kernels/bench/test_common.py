"""kernels/bench/common: plans, weights, checks, rows, tables, and processes that die. No time is judged here."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmquant.errors import DeviceError
from llmquant.kernels.bench import __main__ as bench
from llmquant.kernels.bench.common.contender import DENSE, OURS, Contender, Kernel, contender
from llmquant.kernels.bench.common.plan import CPU, CUDA, DRY, LAYERS, Cell, Plan, default_plan, rotate_bytes
from llmquant.kernels.bench.common.rows import Entry, Sample, failures, rows_of
from llmquant.kernels.bench.common.table import details, markdown, summary
from llmquant.kernels.bench.common.watch import Watch, write_json
from llmquant.kernels.bench.common.weights import Shape, cloned, copies, random_weight, reference
from llmquant.kernels.bench.common.worker import DeadContextError, Session
from llmquant.kernels.ops.dequantize import dequantize_reference
from llmquant.spec import Scheme


def plan(*arguments: str) -> Plan:
    return bench.plans_from(bench.parse(list(arguments)))[0]


# --- what is measured, and when --------------------------------------------------------------------------------------


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
        assert Plan.read(json.loads(json.dumps(wanted.plain()))) == wanted


def test_copies_exceed_the_cache() -> None:
    assert rotate_bytes(cache_bytes=37 << 20) > 3 * (37 << 20) - 1
    assert copies(110_000_000, 8_650_752) * 8_650_752 >= 110_000_000
    assert copies(100, 1_000_000) == 2, "never the same weight twice in a row"


# --- weights and checks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym", "int8", "int3-g32"])
def test_reference_is_the_dequantized_product(name: str) -> None:
    weight = random_weight(Scheme.parse(name), Shape(24, 64), "cpu", torch.float32)
    packed, scale, zero, bits, inputs = weight.stored
    dense = dequantize_reference(packed, scale.double(), zero, bits, inputs, torch.float64)
    torch.testing.assert_close(weight.rows64(), dense, rtol=1e-15, atol=0)
    torch.testing.assert_close(weight.rows64(step=3), dense[::3], rtol=1e-15, atol=0)
    x = torch.randn(700, 64)
    wanted = reference(x, weight)
    torch.testing.assert_close(wanted.values, wanted.part(x.double() @ dense.T), rtol=1e-12, atol=1e-12)
    assert (wanted.rows[0], wanted.rows[-1]) == (0, 699)


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

    multiples, least_rows = (8, 64), 2

    def __init__(self, owner: str = OURS, spoil: Callable[[Tensor], Tensor] = lambda out: out, mode: str = "exact"):
        super().__init__(owner, mode)
        self.spoil = spoil

    def prepare(self, weight: Any) -> Tensor:
        return weight.rows64().float()

    def call(self, x: Tensor, prepared: Tensor) -> Tensor:
        return self.spoil((x.float() @ prepared.T).to(x.dtype))

    def limit(self, dtype: torch.dtype) -> float:
        return 1e-3 if self.owner == OURS else super().limit(dtype)


def unwritten(out: Tensor) -> Tensor:
    out[-1, -1] = torch.nan
    return out


runs = count()


def other_each_time(out: Tensor) -> Tensor:
    out[0, 0] += 0.001 * (next(runs) % 2)
    return out


def made(kernel: Kernel, rotate: int = 0) -> Contender:
    weight = random_weight(Scheme.parse("int4-g128"), Shape(64, 256), "cpu", torch.float16)
    return contender(kernel, weight, rotate, torch.float16)


@pytest.mark.parametrize(
    ("owner", "spoil", "problem"),
    [
        (OURS, lambda out: out, None),
        (OURS, lambda out: out * 1.01, "more than"),
        (OURS, unwritten, "not every element"),
        (OURS, other_each_time, "two runs differ"),
        (OURS, lambda out: out[:-1], "the result is [4, 64], not [5, 64]"),
        ("other", lambda out: out * 1.01, None),
        ("other", other_each_time, None),
        ("other", lambda out: out.flip(0), "more than"),
    ],
)
def test_a_wrong_result_is_found(owner: str, spoil: Any, problem: str | None) -> None:
    check = made(Plain(owner, spoil)).check
    assert check
    found = check(5).problem
    assert (problem in found) if problem and found else (found == problem)


def test_a_contender_has_copies_and_says_what_it_cannot_do() -> None:
    one = made(Plain(), rotate=100_000)
    assert len(one.bind(3)) == copies(100_000, one.weight_bytes) > 2
    assert one.weight_bytes == 64 * 128 + 64 * 2 * 2
    assert one.name == "llmquant int4-g128 exact"
    assert one.check
    with pytest.raises(ValueError, match="at least 2 rows"):
        one.check(1)
    odd = contender(Plain(), random_weight(Scheme.parse("int8"), Shape(12, 64), "cpu"), 0, torch.float32)
    assert odd.check
    with pytest.raises(ValueError, match="12x64 is no multiple of 8x64"):
        odd.check(2)


# --- one measuring process, with times that are made up --------------------------------------------------------------


class Played:
    """Everybody takes as many microseconds as its name is long."""

    def __init__(self, kernels: Sequence[Kernel], dead: bool = False) -> None:
        self.absent = {"humming": "not installed"}
        self.kernels, self.dead = kernels, dead

    def contenders(self, shape: Shape) -> list[Contender]:
        return [made(kernel) for kernel in self.kernels]

    def times(self, running: list[Any], rows: int) -> tuple[Sample, list[Sample | str]]:
        return Sample([2.0], nbytes=4000), [Sample([float(len(each.kernel))] * 3) for each, _ in running]

    def check_alive(self) -> None:
        if self.dead:
            raise DeadContextError("gone")


def unsupported(out: Tensor) -> Tensor:
    raise ValueError("unsupported\nand more lines")


def told_by(bench: Played, excluded: Sequence[str] = (), deadline: float = 60.0) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    two = replace(default_plan(CUDA), shapes=(Shape(64, 256),), batches=(2, 3), peers=("marlin", "humming"))
    Session(two, bench, told.append, time.time() + deadline, ["64x256 M=3"], excluded).run()
    return told


def test_a_session_goes_on_after_kernels_that_fail() -> None:
    kernels = [
        Plain(DENSE, mode="bf16"), Plain(), Plain(spoil=unwritten, mode="fast"), Plain("marlin"),
        Plain("bad", unsupported), Plain("wrong", lambda out: -out), Plain("dead"),
    ]  # fmt: skip
    told = told_by(Played(kernels), excluded=["dead int4-g128 exact @ 64x256 M=2"])
    assert [message["done"] for message in told if "done" in message] == ["64x256 M=2"], "the other was done before"
    assert {"peers": {"marlin": "takes part", "humming": "not installed"}} in told
    (rows,) = (message["rows"] for message in told if "rows" in message)
    by_name = {row["name"]: row for row in rows}
    ours = by_name["llmquant int4-g128 exact"]
    assert (ours["us"], ours["x_dense"]) == (8, round(11 / 8, 4))
    assert (ours["best_peer"], ours["x_best_peer"]) == ("marlin int4-g128 exact", 0.75)
    assert (ours["stream_gbs"], ours["stream_share"]) == (2, round(8448 / 8 / 1e3 / 2, 4))
    assert by_name["bad int4-g128 exact"]["failed"] == "ValueError: unsupported"
    assert "more than" in by_name["wrong int4-g128 exact"]["problem"]
    assert by_name["dead int4-g128 exact"]["failed"] == "it ended or hung the measuring process"
    spoilt = by_name["llmquant int4-g128 fast"]
    assert "not every element" in spoilt["problem"]
    assert "us" not in spoilt, "what is wrong is not timed"
    assert failures(rows) == [f"llmquant int4-g128 fast at 64x256 M=2: {spoilt['problem']}"], "peers are no fault"


def test_a_session_without_time_measures_nothing() -> None:
    assert not any("rows" in message for message in told_by(Played([Plain(DENSE)]), deadline=1.5))


def test_a_dead_gpu_ends_the_process() -> None:
    with pytest.raises(DeadContextError):
        told_by(Played([Plain(spoil=unsupported)], dead=True))


# --- processes that die ----------------------------------------------------------------------------------------------

WORKER = """
import json, sys, time
task = json.load(sys.stdin)
def tell(**message): print(json.dumps(message), flush=True)
row = {"name": "llmquant w8a8", "kernel": "llmquant", "problem": None, "failed": None, "n": 8, "k": 8}
steps = ["llmquant w8a8 @ 8x8 M=1", "marlin w8a8 @ 8x8 M=2"]
for m in (1, 2):
    name = f"8x8 M={m}"
    if name in task["done"]:
        continue
    tell(begin=steps[m - 1])
    if steps[m - 1] not in task["excluded"]:
        if m == 1:
            sys.exit(3)
        time.sleep(60)
    tell(rows=[row | {"m": m}], done=name)
"""


def watch(code: str, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    two = replace(default_plan(CUDA), shapes=(Shape(8, 8),), batches=(1, 2), **more)
    written: list[dict[str, Any]] = []
    return Watch(two, written.append, [sys.executable, "-c", code], silence=3).run(), written


def test_a_process_that_dies_or_hangs_is_replaced() -> None:
    result, written = watch(WORKER)
    assert [crash["step"] for crash in result["crashes"]] == ["llmquant w8a8 @ 8x8 M=1", "marlin w8a8 @ 8x8 M=2"]
    assert [crash["reason"] for crash in result["crashes"]] == ["exit code 3", "it hung"]
    assert [row["m"] for row in result["rows"]] == [1, 2]
    assert result["left_out"] == []
    assert result["failures"] == ["llmquant w8a8 @ 8x8 M=1: exit code 3"], "a peer that hangs is no failure of ours"
    assert len(written) == 3, "after each cell, and at the end"


def test_the_time_is_kept_and_what_is_missing_is_listed() -> None:
    began = time.time()
    code = "import json, sys, time; json.load(sys.stdin); print(json.dumps({'begin': 'x'}), flush=True)\n"
    result, _ = watch(code + "time.sleep(60)", budget=-13.0)
    assert time.time() - began < 10
    assert result["left_out"] == ["8x8 M=1", "8x8 M=2"]
    assert result["crashes"] == [{"step": "x", "reason": "the time is over"}]


def test_nothing_that_starts_is_a_failure() -> None:
    result, _ = watch("raise SystemExit(1)")
    assert result["failures"] == ["start of the measuring process: exit code 1"]


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


# --- rows and tables -------------------------------------------------------------------------------------------------


def entry(kernel: str, us: float, bits: float, **more: Any) -> Entry:
    one = Contender(kernel, f"{bits}", "int8", int(bits * 1000), lambda rows: [])
    return Entry(one, times=Sample([us]), **more)


def test_tables_compare_with_the_best_peer_of_as_many_bits() -> None:
    entries = [
        entry(DENSE, 20.0, 32), entry(OURS, 10.0, 4.125, error=1e-5), entry("a", 15.0, 4.5), entry("b", 12.0, 8.5),
        entry("c", 14.0, 4.25), entry("half", 1.0, 16), entry("none", 1.0, 4.0),
    ]  # fmt: skip
    entries[-1].times, entries[-1].failed = Sample(), "OutOfMemoryError: much"
    rows = rows_of(entries, Sample([1.0], nbytes=1000), Cell(Shape(80, 100), 3), threads=2)
    assert "| 2 | 80x100 | 3 | 4.125 int8 | 10.0 | 0.41 | 2.00 | c 4.25 int8 | 1.40 | 1.0e-05 |" in summary(rows)
    (table,) = details(rows)
    assert "| b 8.5 int8 | 8.5 | 12.0 (1.67) |" in table
    run = {"rows": rows, "failures": ["bad"], "crashes": [{"step": "a @ b", "reason": "it hung"}], "left_out": ["x"]}
    run["peers"] = {"humming": "not installed", "marlin": "takes part"}
    result = bench.facts("cpu", "abc") | {"runs": [run], "seconds": 12}
    text = markdown(result)
    for said in (
        "commit abc", "- bad", "- a @ b: it hung", "- humming: not installed", "- 1 cells, first x",
        "- none 4.0 int8: OutOfMemoryError: much (1 cells, first 80x100 M=3)",
    ):  # fmt: skip
        assert said in text
    assert "marlin" not in text


def test_the_headline_is_a_quantile() -> None:
    sample = Sample([float(number) for number in range(101)], headline=0.1, nbytes=10_000)
    assert (sample.quantile(0.1), sample.gigabytes_per_second) == (10, 1)
