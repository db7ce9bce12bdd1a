"""Patterns for module names: few, right under every name a class can give, and told apart from everything else."""

from __future__ import annotations

import time

import pytest

from llmquant.errors import QuantizationError
from llmquant.formats.compressed_tensors.module_patterns import LENGTH, module_patterns
from llmquant.patterns import target_matches

LEAVES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def blocks(prefix: str, count: int, leaves: tuple[str, ...] = LEAVES, begin: int = 0) -> list[str]:
    return [f"{prefix}.{block}.{leaf}" for block in range(begin, begin + count) for leaf in leaves]


def hit(targets: list[str], name: str) -> bool:
    return any(target_matches(target, name) for target in targets)


def check(sets: list[list[str]], *, most: int) -> list[list[str]]:
    found = module_patterns(sets)
    assert sum(map(len, found)) <= most
    for targets, own in zip(found, sets, strict=True):
        for names in sets:
            assert all(hit(targets, name) == (names is own) for name in names)
    return found


def test_other_names_of_the_same_module() -> None:
    packed, ignored = check([blocks("model.language_model.layers", 3), ["lm_head"]], most=2)
    for head in ("", "model.", "model.language_model.", "language_model.model."):
        assert hit(packed, f"{head}layers.1.mlp.up_proj")
        assert hit(ignored, f"{head}lm_head")
    for other in ("score", "visual.layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj.x", "xlayers.1.mlp.up_proj"):
        assert not hit(packed, other)


def test_towers_with_the_same_leaves() -> None:
    vision = blocks("model.vision_tower.encoder.layers", 2)
    packed, ignored = check([blocks("model.language_model.layers", 3), [*vision, "lm_head"]], most=3)
    assert hit(ignored, "vision_tower.encoder.layers.1.mlp.up_proj")
    assert not hit(packed, "encoder.layers.1.mlp.up_proj")


def test_first_and_last_block_and_draft_layers() -> None:
    kept = blocks("model.layers", 1) + blocks("model.layers", 1, begin=31)
    draft = blocks("model.layers", 2, begin=32) + blocks("mtp.layers", 1)
    packed, _ = check([blocks("model.layers", 30, begin=1), kept + draft], most=3)
    assert not hit(packed, "layers.0.mlp.up_proj")
    assert hit(packed, "layers.30.mlp.up_proj")


def test_two_schemes_and_a_layer_of_its_own() -> None:
    eight = ["model.layers.2.mlp.down_proj", "model.layers.4.mlp.down_proj"]
    four = [name for name in blocks("model.layers", 6) if name not in eight]
    check([four, eight, ["lm_head"]], most=4)


def test_two_stacks_with_one_fate_each() -> None:
    packed, ignored = check([blocks("model.decoder.layers", 3), blocks("model.encoder.layers", 3)], most=2)
    assert hit(packed, "decoder.layers.0.mlp.up_proj")
    both, down = check([blocks("model.decoder.layers", 3), blocks("model.encoder.layers", 3), ["lm_head"]], most=3)[:2]
    assert hit(both, "decoder.layers.0.mlp.up_proj")
    assert hit(down, "encoder.layers.0.mlp.up_proj")
    assert not hit(ignored, "decoder.layers.0.mlp.up_proj")


def test_the_same_tail_twice_falls_back_to_whole_names() -> None:
    check([blocks("model.layers", 2), blocks("model.language_model.layers", 2)], most=2)


def test_experts_stay_short() -> None:
    experts = [
        f"model.layers.{i}.mlp.experts.{e}.{p}_proj" for i in range(16) for e in range(64) for p in ("gate", "up")
    ]
    began = time.process_time()
    found = check([blocks("model.layers", 16), [*experts, *(f"model.layers.{i}.mlp.gate" for i in range(16))]], most=2)
    assert time.process_time() - began < 30  # 2,000 names; seconds, not minutes
    assert sum(len(target) for targets in found for target in targets) < 400


def test_some_experts_of_some_blocks() -> None:
    packed = [f"model.layers.{i}.mlp.experts.{e}.up_proj" for i in range(4) for e in range(8) if (i + e) % 3]
    kept = [f"model.layers.{i}.mlp.experts.{e}.up_proj" for i in range(4) for e in range(8) if not (i + e) % 3]
    check([packed, kept], most=2)


WORDS = r"(?:(?:model|language_model)\.)*"


@pytest.mark.parametrize(
    ("names", "expression"),
    [
        (
            blocks("model.layers", 3),
            WORDS + r"layers\.\d+\.(?:self_attn\.(?:q_proj|o_proj)|mlp\.(?:up_proj|down_proj))",
        ),
        (["transformer.h.0.c_fc"], r"(?:(?:model|language_model|transformer)\.)*h\.\d+\.c_fc"),
        (["a+b.layers.0.up"], r"(?:(?:model|language_model|a\+b)\.)*layers\.\d+\.up"),
        (["tower.proj"], WORDS + r"tower\.proj"),  # no list of blocks tells what of it is a head
        (["model.model"], WORDS + "model"),
        (["out", "out.0.up"], WORDS + r"out(?:\.\d+\.up)?"),
    ],
)
def test_all_of_a_set(names: list[str], expression: str) -> None:
    assert module_patterns([names, ["lm_head"]]) == [[f"re:{expression}$"], [r"re:(?:.*\.)?lm_head$"]]


@pytest.mark.parametrize(
    ("own", "others", "expression"),
    [
        ([(10, 0), (9, 0)], [(1, 0)], r"(?:9|10)\.e\.\d+\.up"),
        ([(0, 0), (0, 1)], [(1, 0), (1, 1)], r"0\.e\.\d+\.up"),
        ([(0, 0), (1, 0)], [(0, 1), (1, 1)], r"\d+\.e\.0\.up"),
        ([(0, 0), (0, 1), (1, 1)], [(1, 0)], r"(?:0\.e\.\d+\.up|1\.e\.1\.up)"),
        ([(0, 0), (1, 0), (2, 0), (2, 1)], [(3, 0)], r"(?:0|1|2)\.e\.\d+\.up"),
        ([(0, 0), (1, 0)], [(0, 1), (1, 1), (2, 0)], r"(?:0|1)\.e\.0\.up"),
    ],
)
def test_no_more_numbers_than_needed(
    own: list[tuple[int, int]], others: list[tuple[int, int]], expression: str
) -> None:
    sets = [[f"model.layers.{first}.e.{second}.up" for first, second in numbers] for numbers in (own, others)]
    assert check(sets, most=2)[0] == [rf"re:{WORDS}layers\.{expression}$"]


def test_what_is_ignored_has_no_prefix_that_takes_in_something_else() -> None:
    packed, ignored = check([["model.layers.0.proj"], ["model.proj", "model.norm"]], most=3)
    assert ignored == [rf"re:{WORDS}proj$", r"re:(?:.*\.)?norm$"]
    assert hit(packed, "layers.0.proj")


def test_long_patterns_are_split() -> None:
    odd = [name for i, name in enumerate(blocks("model.layers", 400)) if i * i % 7 in (1, 2)]
    rest = [name for name in blocks("model.layers", 400) if name not in set(odd)]
    found = check([odd, rest], most=40)
    assert max(len(target) for targets in found for target in targets) < 4 * LENGTH
    assert not any(hit(targets, name) for targets in found for name in ("layers", "layers."))
    odd.append("model.layers")  # it ends where the pattern is split
    assert not hit(check([odd, rest], most=41)[0], "layers.")


def test_a_name_that_begins_another() -> None:
    inner = [f"model.layers.{block}.attention.out" for block in range(3)]
    outer = [f"model.layers.{block}.attention" for block in range(3)]
    check([inner, outer], most=2)
    check([inner + outer, ["lm_head"]], most=2)


def test_names_are_no_expressions() -> None:
    packed, _ = check([["model.layers.0.w+(1)"], ["model.layers.0.ww1", "layersx0xw+(1)"]], most=3)
    assert hit(packed, "layers.0.w+(1)")


def test_a_name_in_two_sets() -> None:
    with pytest.raises(QuantizationError, match="no pattern"):
        module_patterns([["model.layers.0.a"], ["model.layers.0.a"]])
