"""`debug`: where a quantized model hurts, against the model it was made from, and the recipe edit that helps most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmquant.compare import load_models, text_of
from llmquant.data.calibration import check_vocabulary
from llmquant.data.windows import Windows
from llmquant.debugging.budget import Bench, ErrorBudget, find_costs
from llmquant.debugging.edits import Sizes, find_edit
from llmquant.debugging.faults import WeightError, compare_weights
from llmquant.debugging.findings import Finding, worst_first
from llmquant.debugging.inspect import inspect
from llmquant.debugging.layers import Comparison, LayerErrors, compare_layers
from llmquant.debugging.report import DebugReport
from llmquant.debugging.twins import Twins, matrix_of, twins
from llmquant.device import resolve_device
from llmquant.engine.output.folder import is_finished, read_provenance
from llmquant.errors import DataError, QuantizationError
from llmquant.eval import EvalOptions
from llmquant.models.skeleton import build_skeleton, load_config, take_inventory
from llmquant.progress import Progress
from llmquant.spec import Scheme
from llmquant.words import number, percent

MAX_WINDOWS = 8
MOST_UNITS = 6
_COSTLY = 0.03  # share of the KL
_COMPARED = ("dead-rows", "dead-columns")  # what the baseline decides
_FAULTS = ("narrower", "few-codes", "saturated")  # of `inspect`; beside a baseline they are


def debug(
    model: str | Path,
    baseline: str | Path,
    *,
    text: str | None = None,
    length: int | None = None,
    max_windows: int = MAX_WINDOWS,
    units: int = MOST_UNITS,
    bits: float | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> DebugReport:
    """Find the modules that cost most, and why.

    Memory holds both models, dense, in float32 where that fits, and a block's activations.

    Args:
        model: what was quantized, a folder or hub id that `llmquant.load` opens.
        baseline: the model it was made from, whose tokenizer is used.
        text: as of `llmquant.evaluate`.
        length: tokens in a window (512, or the model's context).
        max_windows: windows of the text; intervals need 8.
        units: modules, or sets that readers load as one, that are measured on all windows both ways.
        bits: per weight that the recipe edit may add; None advises on the one unit that gains most.
        device: where the models live.
        trust_remote_code: run code that comes with either checkpoint, if its architecture needs it.
        progress: is told what happens.

    Raises:
        LlmquantError: CheckpointError, DataError, DeviceError; QuantizationError if the folder is damaged, so that
            there is no KL, or the model cannot be run block by block.
    """
    from llmquant.hf.load import open_model

    progress = progress or Progress()
    folders = [open_model(source, trust_remote_code=trust_remote_code).folder for source in (baseline, model)]
    options = EvalOptions(text=text, length=length, max_windows=max_windows, trust_remote_code=trust_remote_code)
    windows, _ = text_of(folders[0], options)
    seen = _own_findings(folders[1], progress)
    config = load_config(folders[0], trust_remote_code=trust_remote_code)
    inventory = take_inventory(build_skeleton(config, trust_remote_code=trust_remote_code))
    loaded = load_models(folders, options, resolve_device(device), progress)
    check_vocabulary(windows.ids, loaded[0])
    recipe = read_provenance(folders[1])["recipe"] if is_finished(folders[1]) else None
    with twins(loaded[0], loaded[1], inventory) as pair, torch.inference_mode():
        seen = [each for each in seen if each.kind != "few-codes" or not _constant(pair, each.where)]
        report = _measure(pair, windows, seen, recipe, units, bits, progress)
    return replace(report, name=folders[1].name, baseline=folders[0].name)


def _constant(pair: Twins, names: Sequence[str]) -> bool:
    """Whether the baseline's weights are all one number, which takes few codes."""
    found = [matrix_of(pair.baseline.get_submodule(name)) for name in names]
    return all(weight is not None and bool(weight.min() == weight.max()) for weight in found)


def _own_findings(folder: Path, progress: Progress) -> list[Finding]:
    """What the folder says by itself, as far as the baseline has no say."""
    health = inspect(folder, progress=progress)
    if health.damaged:
        first = health.findings[0]
        raise QuantizationError(
            f"{first.where[0]}: {first.what}, so nothing can be measured; {first.advice}. `llmquant inspect` lists all"
        )
    found = [each for each in health.findings if each.kind not in _COMPARED]
    return [replace(each, severity="fault") if each.kind in _FAULTS else each for each in found]


def _measure(
    pair: Twins,
    windows: Windows,
    seen: list[Finding],
    recipe: Mapping[str, Any] | None,
    units: int,
    bits: float | None,
    progress: Progress,
) -> DebugReport:
    if not pair.units:
        raise DataError("both models have the same weights, so there is nothing to debug; give the quantized one first")
    weights, faults = _compare(pair, progress)
    comparison = compare_layers(pair, windows.ids, progress)
    named = [*faults, *seen]
    suspects = [name for each in named if each.severity == "fault" for name in each.where]
    bench = Bench(pair, windows, progress)
    budget = find_costs(bench, suspects=suspects, most=units)
    sizes = Sizes(recipe, pair.schemes, pair.inventory)
    edit, no_edit = find_edit(bench, budget, sizes, suspects=suspects, bits=bits)
    findings = [*_costed(named, budget), *_lost_channels(comparison, faults), *_costly(budget, comparison, suspects)]
    return DebugReport(
        name="",
        baseline="",
        protocol=windows.protocol,
        loss_note=pair.note,
        findings=worst_first(findings),
        weights=tuple(weights),
        comparison=comparison,
        budget=budget,
        bits=sizes.bits_of(budget.units),
        edit=edit,
        no_edit=no_edit,
    )


def _compare(pair: Twins, progress: Progress) -> tuple[list[WeightError], list[Finding]]:
    """Weights against the baseline's; those of a rewritten block are not the same function's."""
    names = [name for unit in pair.units if not unit.rewritten for name in unit.modules]
    progress.stage("weights", len(names), unit="weights")
    errors, findings = [], []
    for name in names:
        one, two = (matrix_of(model.get_submodule(name)) for model in (pair.baseline, pair.quantized))
        if one is not None and two is not None and one.shape == two.shape:
            scheme = Scheme.parse(pair.schemes[name]) if name in pair.schemes else None
            error, found = compare_weights(name, one, two, scheme)
            errors.append(error)
            findings += found
        progress.step()
    return errors, findings


def _costed(findings: Sequence[Finding], budget: ErrorBudget) -> Iterator[Finding]:
    """With the gain of putting the unit back."""
    for each in findings:
        gains = [unit.gain.value for unit in budget.units if set(each.where) & set(unit.modules)]
        yield replace(each, cost=sum(gains)) if gains and each.severity == "fault" else each


def _lost_channels(comparison: Comparison, faults: Sequence[Finding]) -> Iterator[Finding]:
    """Outputs that are always zero, though no weight explains it."""
    explained = {name for each in faults if each.kind == "dead-channel" for name in each.where}
    for layer in comparison.layers:
        if layer.gone and layer.name not in explained:
            yield Finding(
                severity="warning", kind="lost-output", where=(layer.name,),
                what=f"its output channel {layer.gone[0]} is always zero in the quantized model, not in the baseline",
                advice="look at what feeds it: a module before it lost a channel",
            )  # fmt: skip


def _costly(budget: ErrorBudget, comparison: Comparison, suspects: Sequence[str]) -> Iterator[Finding]:
    """Units that cost a part of the KL worth a word, and what is odd about their inputs."""
    layers = {layer.name: layer for layer in comparison.layers}
    for unit in budget.units:
        share = unit.gain.value / budget.kl.value if budget.kl.value else 0.0
        if share >= _COSTLY and not set(suspects) & set(unit.modules):
            what = (
                f"costs {number(unit.gain.value)} of {number(budget.kl.value)} KL ({percent(share, 0)})"
                f"{_odd_inputs(layers.get(unit.modules[0]))}"
            )
            advice = "keep it at 16 bits or give it a wider scheme or smaller groups"
            yield Finding(
                severity="warning", kind="costly", where=(unit.name,), what=what, advice=advice, cost=unit.gain.value
            )


def _odd_inputs(layer: LayerErrors | None) -> str:
    if layer is None or not layer.activations.outliers:
        return ""
    seen, largest = layer.activations, max(-layer.activations.smallest, layer.activations.largest)
    many = f" and {len(seen.outliers) - 1} more" if seen.outliers[1:] else ""
    return f"; its input channel {seen.outliers[0]}{many} sticks out (up to {number(largest)})"
