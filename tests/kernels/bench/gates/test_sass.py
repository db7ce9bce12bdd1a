"""Loops are found wherever they hide, and instructions are counted for what they are."""

from __future__ import annotations

import pytest

from llmquant.kernels.bench.gates import sass


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
