"""One measuring process, with times that are made up. No time is judged here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from llmquant.kernels.bench.common.contender import DENSE, Contender, DeadContextError, Kernel
from llmquant.kernels.bench.common.plan import CUDA, default_plan
from llmquant.kernels.bench.common.rows import Sample, failures
from llmquant.kernels.bench.common.weights import Shape
from llmquant.kernels.bench.common.worker import Session
from tests.kernels.bench.common.conftest import Plain, made, unwritten


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
