"""Each limit is judged, and follows from the card and the compiler."""

from __future__ import annotations

from typing import Any

import pytest

from llmquant.kernels.bench.gates.__main__ import report
from llmquant.kernels.bench.gates.compile import Case
from llmquant.kernels.bench.gates.limits import CARDS, Limits, limits, register_cap, shared_cap

LIMITS = Limits(0, "wgmma", True, programs=4, prmt=16, conversions=0, stores=4, waits=1, issue=80)


def row(**changes: Any) -> dict[str, Any]:
    """A kernel that LIMITS just let through."""
    loop = {"local": 0, "prmt": 16, "conversions": 0, "stores": 4, "waits": 1, "issue": 80.0}
    made = {"arch": "sm_90", "warps": 4, "registers": 128, "spills": 0, "stack": 0, "shared": 57344, "wgmma": 16}
    made |= {"wgmma_a_in_registers": 16, "loop": loop}
    return made | {"loop": loop | changes} if set(changes) & set(loop) else made | changes


def test_the_limit_is_allowed() -> None:
    assert LIMITS.failures(row()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"error": "E: no"}, "does not compile: E: no"),
        ({"spills": 1}, "1 spills, at most 0 allowed"),
        ({"local": 1}, "1 spills in the loop, at most 0 allowed"),
        ({"stack": 8}, "8 bytes of stack, at most 0 allowed"),
        ({"registers": 129}, "129 registers, at most 128 allowed"),
        ({"shared": 57345}, "57345 bytes of shared memory, at most 57344 allowed"),
        ({"prmt": 17}, "17 PRMT in the loop, at most 16 allowed"),
        ({"conversions": 1}, "1 integer conversions in the loop, at most 0 allowed"),
        ({"stores": 5}, "5 stores to shared memory in the loop, at most 4 allowed"),
        ({"waits": 2}, "2 waits for wgmma in the loop, at most 1 allowed"),
        ({"issue": 80.1}, "80.1 instructions in the loop for 1000 weights, at most 80 allowed"),
        ({"wgmma": 0, "wgmma_a_in_registers": 0}, "no wgmma"),
        ({"wgmma_a_in_registers": 15}, "operand A from registers in 15 of 16 wgmma, all required"),
        ({"loop": None}, "no loop with tensor-core instructions"),
    ],
)
def test_each_limit_is_judged(changes: dict[str, Any], said: str) -> None:
    assert LIMITS.failures(row(**changes)) == [said]


def test_caps_follow_from_programs() -> None:
    assert register_cap("sm_90", 1, 4) == 255
    assert register_cap("sm_90", 3, 4) == 168
    assert register_cap("sm_90", 2, 8) == 128
    assert register_cap("gfx942", 2, 4) == 256
    assert shared_cap("sm_89", 1) == 99 * 1024  # CUDA programming guide: the most a program may have
    assert shared_cap("sm_90", 1) == 227 * 1024


def recorded(kernel: str, arch: str, warps: int) -> Case:
    """A case as the launch code makes it: 64 outputs in a block, groups of 128."""
    names = ("BLOCK_M", "BLOCK_N", "UNIT", "BITS")
    signature = dict.fromkeys(names, "constexpr") | {"x": "*bf16"}
    constants = {(place,): value for place, value in enumerate((16, 64, 128, 4))}
    return Case("m", kernel, arch, signature, constants, {}, {"num_warps": warps})


@pytest.mark.parametrize("kernel", ["linear_a16", "linear_w4a8"])
def test_an_older_compiler_is_allowed_only_what_it_does_worse(kernel: str) -> None:
    """Weights through shared memory on sm_80, and 8-bit products of sm_100 without tcgen05; nothing on sm_90."""
    old, new = ({arch: limits(recorded(kernel, arch, 4), version) for arch in CARDS}
                for version in ((3, 7), (3, 8)))  # fmt: skip
    assert old["sm_90"] == new["sm_90"]
    assert old["gfx942"] == new["gfx942"]
    words = 64 * 128 * (2 if kernel == "linear_a16" else 1) // (4 * 128)
    assert (old["sm_80"].stores, new["sm_80"].stores) == (words + 4, 4)
    assert old["sm_80"].issue == pytest.approx(1.45 * (new["sm_80"].issue or 0))
    assert old["sm_80"].spills == new["sm_80"].spills == 0
    assert new["sm_100"].tensor == "tcgen05"
    assert old["sm_100"].tensor == ("tcgen05" if kernel == "linear_a16" else "mma_sync")


def test_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """0 or 1, and the report names the kernel, the case and the architecture."""
    facts = {"kernel": "linear_a16", "case": "int4 m=1", "config": "16x128 w4 s4", "seconds": 1.0, "failures": []}
    assert report([row() | facts]) == 0
    assert report([row() | facts, row(spills=3) | facts | {"failures": ["3 spills"]}]) == 1
    assert "linear_a16 int4 m=1 16x128 w4 s4 sm_90: 3 spills" in capsys.readouterr().out
