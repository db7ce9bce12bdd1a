"""The compile gates: the kernels pass them, kernels that should not do not, and loops are found wherever they hide."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llmquant.kernels.bench.gates import __main__ as gates
from llmquant.kernels.bench.gates import cases as gate_cases
from llmquant.kernels.bench.gates import sass
from llmquant.kernels.bench.gates.compile import Case, Limits

ROOT = Path(__file__).resolve().parents[3]
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is not installed: pip install 'llmquant[gpu]'"
)
LIMITS = Limits(0, "wgmma", True, programs=4, prmt=16, conversions=0, stores=4, waits=1, issue=80)


def script(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script past the interpreter, which this process may run, and past Triton's cache."""
    hidden = ("TRITON_INTERPRET", "LLMQUANT_GPU_KERNELS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | variables
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@needs_triton
def test_kernels_pass(tmp_path: Path) -> None:
    """What CI runs: the most important cases. About a minute on two cores."""
    file = tmp_path / "gates.json"
    done = script("-m", "llmquant.kernels.bench.gates", "--quick", "--json", str(file))
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    rows = json.loads(file.read_text())["rows"]
    assert {row["arch"] for row in rows} == set(gate_cases.QUICK_ARCHS)
    kernels = {"linear_a16", "linear_w4a8", "linear_w8a8", "quantize_blocks", "quantize_rows", "dequantize_tile"}
    assert {row["kernel"] for row in rows} == kernels
    on_hopper = [row for row in rows if row["arch"] == "sm_90" and row["kernel"] in ("linear_a16", "linear_w4a8")]
    assert len(on_hopper) > 15
    assert all(row["wgmma"] and row["wgmma"] == row["wgmma_a_in_registers"] for row in on_hopper)


@needs_triton
def test_bad_kernels_fail(tmp_path: Path) -> None:
    done = script("tests/kernels/gpu/bad_kernels.py", TRITON_CACHE_DIR=str(tmp_path), TRITON_DEFAULT_FP_FUSION="1")
    assert done.returncode == 0, done.stderr[-2000:]
    said = {name: "; ".join(failures) for name, failures in json.loads(done.stdout).items()}
    for of, words in {
        "plain, 16 rows": ("no wgmma", "integer conversions", "stores to shared memory", "for 1000 weights"),
        "plain, 64 rows": ("from registers in 0 of 8 wgmma", "from registers in 0 of 8 ptx_wgmma"),
        "large": ("spills", "bytes of stack"),
        "large, shared": ("bytes of shared memory",),
        "unknown": ("does not compile", "no_such_register"),
    }.items():
        for word in words:
            assert word in said[of]


@needs_triton
def test_what_amd_cannot_compile_fails(tmp_path: Path) -> None:
    """With a word of the compiler's; Triton before 3.8 ends the process, which no one takes for a pass either."""
    done = script("tests/kernels/gpu/bad_kernels.py", "amd", TRITON_CACHE_DIR=str(tmp_path))
    if done.returncode:
        assert version("triton") < "3.8"
        assert done.stdout == ""
    else:
        (failure,) = json.loads(done.stdout)["amd"]
        assert "does not compile" in failure
        assert "could not allocate output register" in failure


def row(**changes: Any) -> dict[str, Any]:
    """A kernel that LIMITS just let through."""
    loop = {"local": 0, "prmt": 16, "conversions": 0, "stores": 4, "waits": 1, "issue": 80.0}
    made = {"arch": "sm_90", "warps": 4, "registers": 128, "spills": 0, "stack": 0, "shared": 57344, "wgmma": 16}
    made |= {"wgmma_a_in_registers": 16, "ptx_wgmma": 16, "ptx_wgmma_a_in_registers": 16, "loop": loop}
    return made | {"loop": loop | changes} if set(changes) & set(loop) else made | changes


def test_the_limit_is_allowed() -> None:
    assert gates.failures(row(), LIMITS) == []


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
        ({"ptx_wgmma_a_in_registers": 0}, "operand A from registers in 0 of 16 ptx_wgmma, all required"),
        ({"loop": None}, "no loop with tensor-core instructions"),
    ],
)
def test_each_limit_is_judged(changes: dict[str, Any], said: str) -> None:
    assert gates.failures(row(**changes), LIMITS) == [said]


def test_caps_follow_from_programs() -> None:
    assert gates.register_cap("sm_90", 1, 4) == 255
    assert gates.register_cap("sm_90", 3, 4) == 168
    assert gates.register_cap("sm_90", 2, 8) == 128
    assert gates.register_cap("gfx942", 2, 4) == 256
    assert gates.shared_cap("sm_89", 1) == 99 * 1024  # CUDA programming guide: the most a program may have
    assert gates.shared_cap("sm_90", 1) == 227 * 1024


def recorded(kernel: str, arch: str, warps: int) -> Case:
    """A case as the launch code makes it: 64 outputs in a block, groups of 128."""
    names = ("BLOCK_M", "BLOCK_N", "UNIT", "BITS")
    signature = dict.fromkeys(names, "constexpr") | {"x": "*bf16"}
    constants = {(place,): value for place, value in enumerate((16, 64, 128, 4))}
    return Case("m", kernel, arch, signature, constants, {}, {"num_warps": warps})


@pytest.mark.parametrize("kernel", ["linear_a16", "linear_w4a8"])
def test_an_older_compiler_is_allowed_only_what_it_does_worse(kernel: str) -> None:
    """Weights through shared memory on sm_80, and 8-bit products of sm_100 without tcgen05; nothing on sm_90."""
    old, new = ({arch: gate_cases.limits(recorded(kernel, arch, 4), version) for arch in gate_cases.CARDS}
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
    assert gates.report([row() | facts]) == 0
    assert gates.report([row() | facts, row(spills=3) | facts | {"failures": ["3 spills"]}]) == 1
    assert "linear_a16 int4 m=1 16x128 w4 s4 sm_90: 3 spills" in capsys.readouterr().out


def dump(*lines: str) -> str:
    """Instructions as cuobjdump prints them, 16 bytes each."""
    text = "\t\tFunction : kernel\n"
    for number, line in enumerate(lines):
        text += f"        /*{16 * number:04x}*/   {line} ;   /* 0x0000000000000000 */\n" + " " * 50 + "/* 0x0 */\n"
    return text


MMA = "HGMMA.64x16x16.F32.BF16 R24, R4, gdesc[UR4], R24"


def opcodes(*lines: str) -> list[str]:
    return [one.opcode for one in sass.hot_loop(sass.parse(dump(*lines)))]


def test_no_loop() -> None:
    assert opcodes(MMA, "BRA 0x20", "NOP", "EXIT") == []


def test_loop_without_products_is_not_hot() -> None:
    assert opcodes("NOP", "@P0 BRA 0x0", MMA, "EXIT") == []


def test_peeled_turns_do_not_count() -> None:
    assert opcodes(MMA, "FFMA R1, R2, R3, R4", MMA, "@!P0 BRA 0x10", MMA, "EXIT") == [
        "FFMA", "HGMMA.64x16x16.F32.BF16", "BRA",
    ]  # fmt: skip


def test_inner_loop_of_a_persistent_kernel() -> None:
    lines = ["S2R R0, SR_TID.X", MMA, "LOP3.LUT R1, R1, R2, R3, 0x6a, !PT", MMA, "@P1 BRA 0x20", "STG.E [R2.64], R4"]
    assert opcodes(*lines, "@P0 BRA 0x0", "EXIT") == ["LOP3.LUT", "HGMMA.64x16x16.F32.BF16", "BRA"]


def test_block_behind_the_end_belongs_to_its_loop() -> None:
    """A barrier's slow path: jumps out of the loop, waits there, and jumps back."""
    lines = ["NOP", "SYNCS.PHASECHK P0, [R1]", "@!P0 BRA 0x60", MMA, "@P1 BRA 0x10", "EXIT", "SYNCS.PHASECHK P0, [R1]"]
    got = opcodes(*lines, "@!P0 BRA 0x60", "BRA 0x30", "BRA 0x90")
    assert got == [
        "SYNCS.PHASECHK", "BRA", "HGMMA.64x16x16.F32.BF16", "BRA", "SYNCS.PHASECHK", "BRA", "BRA",
    ]  # fmt: skip


def test_unrolled_loop_before_its_remainder() -> None:
    rest = ["NOP", MMA, "@P0 BRA 0x50", "EXIT"]
    assert opcodes("NOP", MMA, MMA, MMA, "@P0 BRA 0x0", *rest).count("HGMMA.64x16x16.F32.BF16") == 3


def test_loop_that_is_entered_in_the_middle_and_left_there() -> None:
    lines = ["BRA 0x20", "FADD R1, R2, R3", MMA, "@P0 EXIT", "BRA.U UP0, 0x10", "EXIT"]
    assert opcodes(*lines) == ["FADD", "HGMMA.64x16x16.F32.BF16", "EXIT", "BRA.U"]


def test_threads_that_come_together_stay_in_the_loop() -> None:
    split = ["BSSY B0, 0x60", "@P0 BRA 0x40", "BSYNC B0", "FADD R1, R2, R3", "BSYNC B0"]
    assert len(opcodes("NOP", *split, MMA, "@P1 BRA 0x0", "EXIT")) == 8


def test_jump_to_an_unknown_place_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown place"):
        sass.parse(dump("BRX R2 -0x10", "EXIT"))
    with pytest.raises(ValueError, match="found 2"):
        sass.parse(dump("EXIT") * 2)


def test_forms_of_products() -> None:
    lines = [
        MMA,
        "HGMMA.64x128x16.F32 R24, gdesc[UR4], R24, gsb0",
        "IGMMA.64x16x32.S8.S8 R24, R4, gdesc[UR4], R24",
        "HMMA.16816.F32.BF16 R4, R8, R6, R4",
        "IMMA.16832.S8.S8.SAT R4, R8.ROW, R6.COL, R4",
        "UTCHMMA gdesc[UR8], tmem[UR4], tmem[UR5], idesc[UR6], !UPT",
        "MEMBAR.ALL.CTA",
    ]
    code = sass.parse(dump(*lines))
    assert [one.tensor for one in code] == [True] * 6 + [False]
    assert [one.a_in_registers for one in code[:3]] == [True, False, True]
    shapes = [64 * 16 * 16, 64 * 128 * 16, 64 * 16 * 32, 16 * 8 * 16, 16 * 8 * 32, None]
    assert [one.products for one in code[:6]] == shapes


def test_histogram_keeps_widths() -> None:
    lines = ["LDS.128 R4, [R1]", "LDS R4, [R1]", "LDS.U16 R4, [R1]", "LDG.E.64.CONSTANT R4, [R2.64]", "STS.U8 [R1], R2"]
    lines += ["LDSM.16.M88.4 R4, [R1]", "LOP3.LUT R1, R1, R2, R3, 0x6a, !PT", "WARPGROUP.DEPBAR.LE gsb0, 0x0"]
    names = ["LDS.128", "LDS.32", "LDS.16", "LDG.64", "STS.8", "LDSM.128", "LOP3", "WARPGROUP.DEPBAR"]
    counts = sass.histogram(sass.parse(dump(*lines)))
    assert counts == dict.fromkeys(names, 1)
    assert sass.count(counts, "LDS") == 3


def test_assembly_of_amd() -> None:
    text = (
        "kernel:\n; %bb.0:\n\ts_load_dwordx2 s[0:1], s[4:5], 0x0\n\ts_cbranch_scc1 .LBB0_2\n.LBB0_1:   ; in the loop\n"
        "\tv_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], v[0:3]\n\tds_read_b128 v[4:7], v8 offset:16\n"
        "\ts_cbranch_scc0 .LBB0_1\n.LBB0_2:\n\ts_endpgm\n.Lfunc_end0:\n\tv_nop\n"
    )
    code = sass.parse_amd(text)
    assert len(code) == 6
    assert [one.opcode for one in sass.hot_loop(code)] == ["v_mfma_f32_16x16x16_bf16", "ds_read_b128", "s_cbranch_scc0"]
    assert sass.hot_loop(code)[0].products == 16 * 16 * 16
