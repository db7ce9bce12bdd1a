"""Wrong results are found before anything is timed."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from llmquant.kernels.bench.common.contender import OURS, contender
from llmquant.kernels.bench.common.weights import Shape, copies, random_weight
from llmquant.spec import Scheme
from tests.kernels.bench.common.conftest import Plain, made, unwritten

runs = count()


def other_each_time(out: Tensor) -> Tensor:
    out[0, 0] += 0.001 * (next(runs) % 2)
    return out


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
