"""Who can load the result of a plan: rules of other readers, as small functions, before any work is done.

A rule looks at one quantized module (or at the plan as a whole) and gives the reason why a reader cannot take it, or
None. The rules for transformers 5.23 with compressed-tensors 0.20 and for vLLM 0.32 on CPU were found by running 119
hand-written checkpoints in them; tests/clients repeats it with llmquant's own. Those for vLLM on GPU were read in the
source of 0.33. What transformers 5.17 to 5.22 do otherwise is a remark.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from llmquant.formats.base import Planned, Row, Verdict
from llmquant.spec import Scheme

LLMQUANT = "llmquant"
TRANSFORMERS = "transformers"
VLLM_GPU = "vLLM on GPU"
VLLM_CPU = "vLLM on CPU"

# vLLM's CPU attention; other sizes end in an error at start.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
MARLIN_GROUPS = (32, 64, 128, None)  # None: a whole channel


Reason = str | None
RowRule = Callable[[Row, Planned], Reason]
PlanRule = Callable[[Planned], Reason]


@dataclass(frozen=True, slots=True)
class _Reader:
    row_rules: tuple[RowRule, ...] = ()
    plan_rules: tuple[PlanRule, ...] = ()
    remarks: tuple[PlanRule, ...] = ()


def readers(plan: Planned) -> dict[str, Verdict]:
    """Whether each reader loads what the plan will write, llmquant first; without quantized modules all do."""
    return {name: _judge(reader, plan) for name, reader in _READERS.items()}


def _judge(reader: _Reader, plan: Planned) -> Verdict:
    if not plan.quantized:
        return Verdict(True, "nothing is quantized")
    reasons = [reason for rule in reader.plan_rules if (reason := rule(plan))]
    for rule in reader.row_rules:
        failing: dict[str, list[str]] = {}
        for row in plan.quantized:
            if reason := rule(row, plan):
                failing.setdefault(reason, []).append(row.module.name)
        reasons += [f"{reason} ({_listed(names)})" for reason, names in failing.items()]
    if reasons:
        return Verdict(False, "; ".join(reasons))
    return Verdict(True, "; ".join(remark for rule in reader.remarks if (remark := rule(plan))))


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


# --- rules for one module --------------------------------------------------------------------------------------------


def _only_linear(row: Row, _: Planned) -> Reason:
    if row.module.turned:
        return "compressed-tensors knows Linear, not the transposed Conv1D"
    # Of tables see _no_embedding and _one_scheme_if_embeddings.
    return None if row.module.layer else f"a stack of matrices, as in {row.module.name}, is unknown to it"


def _no_embedding(row: Row, _: Planned) -> Reason:
    return "packed embeddings fail or are dropped" if row.module.table else None


def _no_tensor_scale(row: Row, _: Planned) -> Reason:
    return f"{row.scheme}: weights need a scale per group or channel" if row.scheme.granularity == "tensor" else None


def _cpu_kernel(row: Row, plan: Planned) -> Reason:
    scheme = row.scheme
    if scheme.activations:
        return None
    if scheme.bits != 4:
        return f"{scheme}: weight-only on CPU is 4-bit only (or w8a8)"
    if scheme.group_size is not None and scheme.group_size % 2:
        return f"{scheme}: groups are even on CPU"
    out_features, in_features = _fused_out_features(row, plan), row.module.shape[1]
    if out_features % 32 or in_features % 32:
        return f"{out_features} x {in_features}: both sizes are multiples of 32 on CPU (q/k/v and gate/up together)"
    return None


def _whole_words_of_zeros(row: Row, _: Planned) -> Reason:
    """Zero points are packed along out_features, and vLLM joins the words of q/k/v or gate/up."""
    out_features = row.module.shape[0]
    if row.scheme.symmetric or not row.module.fused or out_features * row.scheme.bits % 32 == 0:
        return None
    return f"{row.scheme}: {out_features} outputs do not fill words of zero points"


def _fused_out_features(row: Row, plan: Planned) -> int:
    if not row.module.fused:
        return row.module.shape[0]
    return sum(other.module.shape[0] for other in plan.rows if other.module.fused == row.module.fused)


# --- rules for the plan ----------------------------------------------------------------------------------------------


def _one_scheme_if_asymmetric(plan: Planned) -> Reason:
    schemes = _schemes(plan)
    # compressed-tensors stores the zero point of a whole tensor unpacked, which loads either way.
    if len(schemes) == 1 or all(scheme.symmetric or scheme.granularity == "tensor" for scheme in schemes):
        return None
    return "asymmetric weights load only when all quantized layers share one scheme"


def _plain_loading(plan: Planned) -> Reason:
    """What trying it on the architecture showed; see `ModuleInfo.plain_obstacle`.

    Files that ask to dequantize load into dense layers, whose weights any initialisation may read.
    """
    dense = len(_schemes(plan)) == 1 and _dense_at_load(plan)
    reasons: dict[str, list[str]] = {}
    for row in plan.rows:
        packable = row.module.kind in ("linear", "embedding") and not row.module.obstacle
        hinders = row.scheme.is_keep if not packable else not row.scheme.is_keep and not dense
        if row.module.plain_obstacle and hinders:
            reasons.setdefault(row.module.plain_obstacle, []).append(row.module.name)
    return "; ".join(f"{reason} ({_listed(names)})" for reason, names in reasons.items()) or None


def _recast(plan: Planned) -> Reason:
    """From the first forward on compressed-tensors holds all tensors, and copies what is assigned into those it has."""
    if not plan.inventory.recast or (len(_schemes(plan)) == 1 and _dense_at_load(plan)):
        return None
    return f"model code gives {plan.inventory.recast} another dtype, which compressed-tensors undoes"


def _one_scheme_if_embeddings(plan: Planned) -> Reason:
    """They fail at load (`'Embedding' object has no attribute 'weight'`) unless the file asks to dequantize."""
    if len(_schemes(plan)) == 1 or not any(row.matrix.table for row in plan.quantized):
        return None
    return "packed embeddings load only when all quantized layers share one scheme"


def _fused_alike(plan: Planned) -> Reason:
    schemes: dict[str, set[str]] = {}
    for row in plan.rows:
        if row.module.fused:
            schemes.setdefault(row.module.fused, set()).add(row.scheme.name)
    split = [name for name, found in schemes.items() if len(found) > 1]
    return f"layers that it fuses have different schemes ({_listed(split)})" if split else None


def _cpu_head_size(plan: Planned) -> Reason:
    other = [size for size in plan.inventory.head_sizes if size not in CPU_HEAD_SIZES]
    return f"head size {other[0]} is not one of {', '.join(map(str, CPU_HEAD_SIZES))}" if other else None


# --- remarks ---------------------------------------------------------------------------------------------------------


def _schemes(plan: Planned) -> set[Scheme]:
    return {row.scheme for row in plan.quantized}


def _dense_in_memory(plan: Planned) -> Reason:
    return (
        f"weights become {str(plan.inventory.dtype)[6:]} at {'load' if _dense_at_load(plan) else 'the first forward'}"
    )


def _dense_at_load(plan: Planned) -> bool:
    embeddings = any(row.matrix.table for row in plan.quantized)
    return embeddings or any(not scheme.symmetric for scheme in _schemes(plan))


def _tables_while_loading(plan: Planned) -> Reason:
    """Older ones fail as with several schemes, see `_one_scheme_if_embeddings`."""
    return "packed embeddings need transformers 5.23" if any(row.matrix.table for row in plan.quantized) else None


def _new_three_bit_layout(plan: Planned) -> Reason:
    return "needs compressed-tensors 0.20" if any(scheme.bits == 3 for scheme in _schemes(plan)) else None


def _gpu_kernels(plan: Planned) -> Reason:
    schemes = _schemes(plan)
    weight_only = {scheme for scheme in schemes if not scheme.activations}
    marlin = {scheme for scheme in weight_only if _runs_in_marlin(scheme)}
    names = ["CUTLASS int8"] if schemes - weight_only else []
    if marlin:
        hopper = all(scheme.group_size != 32 for scheme in marlin)
        names.append("Marlin (Machete on Hopper)" if hopper else "Marlin")
    if weight_only - marlin:
        names.append("Humming (vLLM 0.33, CUDA, compute capability 7.5 or newer)")
    return f"{', '.join(names)}; by its source, not run"


def _runs_in_marlin(scheme: Scheme) -> bool:
    return scheme.group_size in MARLIN_GROUPS and (scheme.bits == 4 or (scheme.bits == 8 and scheme.symmetric))


def _instructions(plan: Planned) -> Reason:
    """vLLM 0.32 has no `cpu_gemm_wna16` on an AVX2 machine: it loads there, and stops at the first token."""
    if all(scheme.activations for scheme in _schemes(plan)):
        return None
    return "needs AVX-512 on x86: without it vLLM 0.32 stops at the first token"


def _served_in_16_bit(plan: Planned) -> Reason:
    """What `--dtype auto` makes of float32; the int4 kernels, of both devices, take 16-bit inputs only."""
    if plan.inventory.dtype != torch.float32:
        return None
    weight_only = any(not scheme.activations for scheme in _schemes(plan))
    rest = ", as weight-only kernels refuse --dtype float32" if weight_only else " unless --dtype float32"
    return f"float32 is served in bfloat16 (--dtype auto or bfloat16){rest}"


def _quantized_activations(plan: Planned) -> Reason:
    if not any(scheme.activations for scheme in _schemes(plan)):
        return None
    return "quantizes activations too, so logits differ from those of the dense weights"


def _packed(plan: Planned) -> Reason:
    integers = any(scheme.activations for scheme in _schemes(plan))
    return f"weights stay packed{', products with 8-bit activations are of integers' if integers else ''}"


_READERS = {
    LLMQUANT: _Reader(remarks=(_packed,)),
    TRANSFORMERS: _Reader(
        (_only_linear,),
        (_one_scheme_if_asymmetric, _one_scheme_if_embeddings, _plain_loading, _recast),
        (_dense_in_memory, _tables_while_loading, _new_three_bit_layout, _quantized_activations),
    ),
    VLLM_GPU: _Reader(
        (_only_linear, _no_embedding, _no_tensor_scale, _whole_words_of_zeros),
        (_fused_alike,),
        (_gpu_kernels, _served_in_16_bit),
    ),
    VLLM_CPU: _Reader(
        (_only_linear, _no_embedding, _no_tensor_scale, _cpu_kernel, _whole_words_of_zeros),
        (_fused_alike, _cpu_head_size),
        (_instructions, _quantized_activations, _served_in_16_bit),
    ),
}
