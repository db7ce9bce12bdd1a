"""Tuning: who wins, what never does, and what is written. The measuring is played, but for the errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmquant.errors import LlmquantError
from llmquant.kernels.gpu.choose import dispatch, estimate, table, tune
from llmquant.kernels.gpu.choose.config import DENSE, Config
from llmquant.kernels.gpu.choose.tune import CannotRun, Case, Timing, Tuned
from llmquant.kernels.gpu.weight import Format
from tests.eval.conftest import Seen

CASE = Case("w4a16", Format(4, 512, 4, 2, per_tensor=False, asymmetric=False), 384)
KEY = ("w4a16", 384, 512, 128)
WHERE = ("sm90", 132)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(table.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dispatch.forget()
    yield
    dispatch.forget()


class Played:
    """A GPU on which every configuration takes 10 us, but for those that a test changes."""

    def __init__(self, change: Callable[[Config], Timing | None] = lambda _: None) -> None:
        self.change = change
        self.calls: Counter[tuple[Case, int, Config]] = Counter()

    def __call__(self, case: Case, m: int, config: Config) -> Timing:
        self.calls[case, m, config] += 1
        return self.change(config) or Timing(10.0, 1e-3)


def tune_one(change: Callable[[Config], Timing | None], m: int = 16, arch: str = "sm80") -> Tuned:
    (found,) = tune.tune([CASE], arch, 132, Played(change), [m])
    return found


def candidates(m: int = 16, arch: str = "sm80") -> list[Config]:
    return estimate.candidates(arch, *KEY[:1], m, *KEY[1:], 132)


def test_the_fastest_wins() -> None:
    fast = candidates()[-1]
    found = tune_one(lambda config: Timing(4.0, 1e-3) if config == fast else None)
    assert (found.config, found.us, found.us_untuned) == (fast, 4.0, 10.0)
    assert (found.untuned, found.rows, found.refused) == (candidates()[0], (1, 16), {})


def test_a_gain_of_less_than_two_percent_is_noise() -> None:
    fast = candidates()[-1]
    found = tune_one(lambda config: Timing(9.85, 1e-3) if config == fast else None)
    assert (found.config, found.us) == (found.untuned, 10.0)
    assert tune_one(lambda config: Timing(9.7, 1e-3) if config == fast else None).config == fast


def test_one_lucky_time_does_not_win() -> None:
    lucky, times = candidates()[-1], iter([1.0, 12.0, 12.0])
    found = tune_one(lambda config: Timing(next(times), 1e-3) if config == lucky else None)
    assert found.config != lucky


@pytest.mark.parametrize("error", [5e-3, math.nan, math.inf])
def test_what_computes_something_wrong_never_wins(error: float) -> None:
    wrong = candidates()[3]
    found = tune_one(lambda config: Timing(1.0, error) if config == wrong else None)
    assert found.config != wrong
    assert found.refused == {"wrong result": 1}


def test_a_result_that_is_wrong_only_the_second_time_is_wrong() -> None:
    wrong, errors = candidates()[3], iter([1e-3, 1.0, 1e-3])
    found = tune_one(lambda config: Timing(1.0, next(errors)) if config == wrong else None)
    assert found.refused == {"wrong result": 1}
    assert found.config != wrong


def test_what_does_not_run_is_counted_and_left_out() -> None:
    first = candidates()[0]

    def change(config: Config) -> None:
        if config != first:
            raise CannotRun("OutOfResources")

    found = tune_one(change)
    assert (found.config, found.refused) == (first, {"OutOfResources": len(candidates()) - 1})
    untuned = tune_one(lambda config: Timing(1.0, 1.0) if config == first else None)
    assert untuned.us_untuned is None
    assert untuned.config not in (None, first)
    nothing = tune_one(lambda _: Timing(1.0, 1.0))
    assert (nothing.config, nothing.us) == (None, None)


def test_overlapping_launches_are_tried_where_the_gpu_can() -> None:
    fast = candidates(arch="sm90")[2]

    def change(config: Config) -> Timing | None:
        return Timing(5.0 if config.pdl else 6.0, 1e-3) if replace(config, pdl=False) == fast else None

    assert tune_one(change, arch="sm90").config == replace(fast, pdl=True)
    assert tune_one(lambda config: pytest.fail("pdl") if config.pdl else None).config
    dense = tune_one(lambda config: Timing(1.0, 1e-3) if config == DENSE else None, 1024, "sm90")
    assert dense.config == DENSE


def test_each_weight_is_tuned_once_and_progress_is_told() -> None:
    played, seen = Played(), Seen()
    other = replace(CASE, n=1024)
    tune.tune([CASE, CASE, other], *WHERE, played, [1, 16], progress=seen)
    assert seen.stages == [("tune", 4, [1, 1, 1, 1])]
    assert {(case, m) for case, m, _ in played.calls} == {(case, m) for case in (CASE, other) for m in (1, 16)}
    assert max(played.calls.values()) == 3


def test_what_was_found_is_what_runs_from_now_on() -> None:
    fast = {m: candidates(m, "sm90")[5] for m in (1, 16, 64)}
    before = dispatch.choose("sm90", *KEY[:1], 16, *KEY[1:], processors=132)
    assert before not in fast.values()
    played = Played(lambda config: Timing(2.0, 1e-3) if config in fast.values() else None)
    found = tune.tune([CASE], *WHERE, played, [1, 16, 64])
    file = tune.save(found, *WHERE, "H200", {"date": "today"})
    assert file == table.user_file(*WHERE)
    read = table.read(file)
    assert (read.gpu, read.runs) == ("H200", ({"date": "today"},))
    assert [entry.m for entry in read.entries] == [(1, 1), (2, 16), (17, 1 << 30)]
    for m, bucket in ((1, 1), (2, 16), (16, 16), (17, 64), (5000, 64)):
        one = next(each for each in found if each.rows[1] == bucket)
        assert dispatch.choose("sm90", *KEY[:1], m, *KEY[1:], processors=132) == one.config


def test_entries_of_other_weights_stay_and_those_of_another_gpu_do_not() -> None:
    def save(case: Case, gpu: str, day: str) -> table.Table:
        return table.read(tune.save(tune.tune([case], *WHERE, Played(), [1, 16]), *WHERE, gpu, {"date": day}))

    other = replace(CASE, n=1024)
    save(CASE, "H200", "1")
    save(other, "H200", "2")
    both = save(CASE, "H200", "3")
    assert [run["date"] for run in both.runs] == ["1", "2", "3"]
    assert Counter(entry.n[0] for entry in both.entries) == {384: 2, 1024: 2}
    new = save(CASE, "H100", "4")
    assert (new.gpu, [run["date"] for run in new.runs]) == ("H100", ["4"])
    assert {entry.n[0] for entry in new.entries} == {384}


def test_nothing_that_ran_is_nothing_to_write() -> None:
    found = tune.tune([CASE], *WHERE, Played(lambda _: Timing(1.0, 1.0)), [1])
    assert table.read(tune.save(found, *WHERE, "H200", {})).entries == ()


def test_a_damaged_table_is_not_replaced() -> None:
    file = table.user_file(*WHERE)
    file.parent.mkdir(parents=True)
    file.write_text("[]")
    with pytest.raises(LlmquantError, match="reads tables of version 1, not 'list'"):
        tune.save([], *WHERE, "H200", {})
    assert file.read_text() == "[]"


CASES = [
    Case("w4a16", Format(4, 256, 2, 2, per_tensor=False, asymmetric=True), 96),
    Case("w4a16", Format(3, 160, 5, 2, per_tensor=False, asymmetric=False), 70),
    Case("w8a16", Format(8, 256, 1, 2, per_tensor=True, asymmetric=True), 64),
    Case("w4a8", Format(4, 256, 2, 2, per_tensor=False, asymmetric=True), 96),
    Case("w8a8", Format(8, 256, 1, 2, per_tensor=False, asymmetric=False), 96),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.form.bits}")
def test_errors_are_measured(case: Case, device: str) -> None:
    """In fp16: what the interpreter makes of bf16 is wrong."""
    from llmquant.kernels.gpu.choose.tune_gpu import OnGpu

    on = OnGpu(torch.device(device))
    for m in (1, 20):
        config = Config(16, 64, split_k=2, stages=2)
        assert on.error(case, m, config) <= tune.ALLOWED[case.kind]


def test_wrong_kernels_are_noticed(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmquant.kernels.gpu import launch
    from llmquant.kernels.gpu.choose.tune_gpu import OnGpu

    right = launch.linear
    monkeypatch.setattr(launch, "linear", lambda *args, **kwargs: right(*args, **kwargs) * 1.01)
    assert OnGpu(torch.device(device)).error(CASES[0], 1, Config(16, 64, stages=2)) > tune.ALLOWED["w4a16"]


def test_a_configuration_that_does_not_fit_cannot_run(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    from llmquant.kernels.gpu import launch
    from llmquant.kernels.gpu.choose.tune_gpu import OnGpu

    def too_large(*_: object, **__: object) -> None:
        raise OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(launch, "linear", too_large)
    with pytest.raises(CannotRun, match=r"^OutOfResources$"):
        OnGpu(torch.device(device)).error(CASES[0], 1, Config(16, 64))


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.form.bits}")
def test_on_a_gpu_times_are_plausible(case: Case) -> None:
    from llmquant.kernels.gpu.choose.tune_gpu import OnGpu

    on = OnGpu(torch.device("cuda"))
    large = replace(case, n=8192, form=replace(case.form, in_features=case.form.in_features * 16))
    small, big = (on(one, 1, Config(16, 64, split_k=2)) for one in (case, large))
    assert 0.1 < small.us < big.us < 1000
    assert max(small.error, big.error) <= tune.ALLOWED[case.kind]
