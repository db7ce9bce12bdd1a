from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import pytest
import torch

from llmquant.errors import PlanError
from llmquant.formats.compressed_tensors.config import quantization_config
from llmquant.formats.compressed_tensors.readers import LLMQUANT, TRANSFORMERS, VLLM_CPU, VLLM_GPU, Verdict, readers
from llmquant.models.inventory import Inventory, Kind, ModuleInfo
from llmquant.recipe.load import load_recipe
from llmquant.recipe.plan import Plan, make_plan
from llmquant.spec import Scheme
from tests.recipe.plans import plan_row

SHAPES = {
    "self_attn.q_proj": (256, 256),
    "self_attn.k_proj": (128, 256),
    "self_attn.v_proj": (128, 256),
    "self_attn.o_proj": (256, 256),
    "mlp.gate_proj": (768, 256),
    "mlp.up_proj": (768, 256),
    "mlp.down_proj": (256, 768),
}


def plan_of(
    scheme: str,
    other: Mapping[str, str] | None = None,
    *,
    shapes: Mapping[str, tuple[int, int]] | None = None,
    kind: str = "linear",
    head_sizes: tuple[int, ...] = (32,),
    dtype: torch.dtype = torch.bfloat16,
) -> Plan:
    """One Llama block: `scheme` for all, `other` by a part of the name; `shapes` likewise."""
    rows = []
    for part, usual in SHAPES.items():
        shape = next((shape for key, shape in (shapes or {}).items() if key in part), usual)
        name = next((name for key, name in (other or {}).items() if key in part), scheme)
        parent, _, last = part.partition(".")
        fused = "qkv" if last[0] in "qkv" else "gate_up" if last[0] in "gu" else None
        module = ModuleInfo(
            f"model.layers.0.{part}",
            cast("Kind", kind),
            shape,
            shape[0] * shape[1],
            block=0,
            fused=fused and f"model.layers.0.{parent}:{fused}",
            turned=kind == "conv1d",
        )
        rows.append(plan_row(module, Scheme.parse(name)))
    inventory = Inventory("LlamaForCausalLM", "llama", dtype, tuple(row.module for row in rows), 1, head_sizes)
    recipe = load_recipe({"version": 1, "rules": [{"match": "linear", "scheme": "int8"}]})
    return Plan(recipe, inventory, tuple(rows))


def who(plan: Plan) -> str:
    """Letters of the readers that take it: T, G, C."""
    verdicts = readers(plan)
    assert verdicts[LLMQUANT].ok
    return "".join(
        letter for letter, name in zip("TGC", (TRANSFORMERS, VLLM_GPU, VLLM_CPU), strict=True) if verdicts[name].ok
    )


@pytest.mark.parametrize(
    ("scheme", "letters"),
    [
        ("int4-g128", "TGC"),
        ("int4-g32", "TGC"),
        ("int4", "TGC"),
        ("int4-g128-asym", "TGC"),
        ("int4-asym", "TGC"),
        ("int8", "TG"),
        ("int8-g128", "TG"),
        ("int8-g128-asym", "TG"),
        ("int3-g32", "TG"),
        ("int2-g64", "TG"),
        ("int4-g16", "TGC"),
        ("int4-g96", "TGC"),
        ("int4-tensor", "T"),
        ("int8-tensor", "T"),
        ("w8a8-dynamic", "TGC"),
        ("keep", "TGC"),
    ],
)
def test_one_scheme(scheme: str, letters: str) -> None:
    assert who(plan_of(scheme)) == letters


@pytest.mark.parametrize(
    ("plan", "letters"),
    [
        (plan_of("int4-g32", {"down": "int8"}), "TG"),
        (plan_of("int4-g32", {"down": "w8a8-dynamic"}), "TGC"),
        (plan_of("int4-g32", {"down": "keep"}), "TGC"),
        (plan_of("int4-g32", {"down": "int4-g32-asym"}), "GC"),
        (plan_of("int4-g32-asym", {"down": "int4-g64-asym"}), "GC"),
        (plan_of("int4-g32", {"down": "int8-tensor-asym"}), "T"),
        (plan_of("int4-g32", {"q_proj": "int4-g64"}), "T"),
        (plan_of("int4-g32", {"up_proj": "keep"}), "T"),
        (plan_of("int4-g32", head_sizes=(8,)), "TG"),
        (plan_of("int4-g32", head_sizes=(64, 8)), "TG"),
        (plan_of("int4-g32", head_sizes=(256, 512)), "TGC"),
        (plan_of("int4-g32", head_sizes=()), "TGC"),
        (plan_of("int4-g32", kind="conv1d"), ""),
        (plan_of("int8", kind="embedding"), "T"),
        (plan_of("int8", {"down": "int4-g32"}, kind="embedding"), ""),
        (plan_of("int4-g32", kind="experts"), ""),
        (plan_of("int4-g32", shapes={"down": (256, 352)}), "TGC"),
        (plan_of("int4", shapes={"down": (256, 172)}), "TG"),
        (plan_of("int4", shapes={"o_proj": (200, 256)}), "TG"),
        # 16 and 16 of k and v do no harm: vLLM sees 256 + 16 + 16 outputs.
        (plan_of("int4", shapes={"k_proj": (16, 256), "v_proj": (16, 256)}), "TGC"),
        (plan_of("int4-asym", shapes={"k_proj": (12, 256), "v_proj": (20, 256)}), "T"),
        (plan_of("int4-g96", shapes={"": (96, 96)}), "TGC"),
        (plan_of("int4-g16", dtype=torch.float16), "TGC"),
    ],
)
def test_special_plans(plan: Plan, letters: str) -> None:
    assert who(plan) == letters


def test_reasons_name_the_modules() -> None:
    verdict = readers(plan_of("int4-g32", {"down": "int8", "o_proj": "int3-g32"}))[VLLM_CPU]
    assert verdict == Verdict(
        False,
        "int3-g32: weight-only on CPU is 4-bit only (or w8a8) (model.layers.0.self_attn.o_proj); "
        "int8: weight-only on CPU is 4-bit only (or w8a8) (model.layers.0.mlp.down_proj)",
    )
    split = readers(plan_of("int4-g32", {"q_proj": "int8"}))[VLLM_GPU]
    assert split.note == "layers that it fuses have different schemes (model.layers.0.self_attn:qkv)"


@pytest.mark.parametrize(
    ("plan", "reader", "note"),
    [
        (plan_of("keep"), TRANSFORMERS, "nothing is quantized"),
        (plan_of("int4"), TRANSFORMERS, "weights become bfloat16 at the first forward"),
        (plan_of("int4-asym"), TRANSFORMERS, "weights become bfloat16 at load"),
        (plan_of("int3"), TRANSFORMERS, "needs compressed-tensors 0.20"),
        (plan_of("int8"), TRANSFORMERS, "^weights become bfloat16 at the first forward$"),
        (plan_of("int8", kind="embedding"), TRANSFORMERS, "packed embeddings need transformers 5.23$"),
        (plan_of("int4-g128"), VLLM_GPU, r"^Marlin \(Machete on Hopper\); by its source, not run$"),
        (plan_of("int4-g32"), VLLM_GPU, "^Marlin; by"),
        (plan_of("w8a8-dynamic"), VLLM_GPU, "^CUTLASS int8; by"),
        (plan_of("int4-g256"), VLLM_GPU, r"^Humming \(vLLM 0\.33, CUDA, compute capability 7\.5 or newer\); by"),
        (plan_of("int3-g32"), VLLM_GPU, "^Humming .*; by"),
        (plan_of("int8-g128-asym"), VLLM_GPU, "^Humming .*; by"),
        (plan_of("int4-g128", {"down": "int2-g32"}), VLLM_GPU, r"^Marlin \(Machete on Hopper\), Humming .*; by"),
        (plan_of("int4-g128"), VLLM_CPU, "^needs AVX-512 on x86: without it vLLM 0.32 stops at the first token$"),
        (plan_of("int4-g32", {"down": "w8a8-dynamic"}), VLLM_CPU, "^needs AVX-512"),
        (plan_of("w8a8-dynamic"), VLLM_CPU, "^quantizes activations too, so logits differ[^;]*$"),
        (
            plan_of("int4", dtype=torch.float32),
            VLLM_CPU,
            "served in bfloat16 .* weight-only kernels refuse --dtype float32",
        ),
        (plan_of("w8a8-dynamic", dtype=torch.float32), VLLM_CPU, "served in bfloat16 .* unless --dtype float32$"),
        (plan_of("int4", dtype=torch.float16), VLLM_CPU, "^needs AVX-512[^;]*$"),
        (plan_of("int4-g32", {"down": "w8a8-dynamic"}), TRANSFORMERS, "quantizes activations too"),
        (plan_of("int4-g32"), LLMQUANT, "^weights stay packed$"),
        (plan_of("int4-g32", {"down": "w8a8-dynamic"}), LLMQUANT, "stay packed, products .* of integers$"),
    ],
)
def test_remarks(plan: Plan, reader: str, note: str) -> None:
    verdict = readers(plan)[reader]
    assert verdict.ok
    assert re.search(note, verdict.note)


@pytest.mark.parametrize("portable", [True, False])
def test_half_asymmetric_gate_and_up_is_never_written(portable: bool) -> None:
    """vLLM 0.32 loads it without a word and answers wrongly (mean log-probability off by 0.36)."""
    inventory = plan_of("keep").inventory
    rules = [
        {"match": [module.name for module in inventory.modules], "scheme": "int4-g128"},
        {"match": "model.layers.0.mlp.gate_proj", "scheme": "int4-g128-asym"},
    ]
    recipe = load_recipe({"version": 1, "rules": rules, "portable": portable})
    with pytest.raises(PlanError, match=r"one scheme.*mlp\.gate_up.*gate_proj int4-g128-asym, up_proj int4-g128"):
        make_plan(recipe, inventory)


@pytest.mark.parametrize("down", ["int8", "int4-g32", "int4-g32-asym", "int8-tensor-asym", "w8a8-dynamic"])
@pytest.mark.parametrize("rest", ["int4-g128", "int4-g128-asym"])
def test_two_schemes_are_never_marked_dequantize(rest: str, down: str) -> None:
    """With that key transformers 5.23 gives garbage for int4 with int8, without an error or a warning."""
    rows = plan_of(rest, {"down": down}).rows
    assert "dequantize" not in quantization_config({row.module.name: row.scheme for row in rows}, ["lm_head"])
