"""`llmquant bench --tune`: the GPU kernels' configurations, measured for the weights that a model has or would have.

Only shapes matter, so no weight is read: a quantized model's are in its config, those of a 16-bit model in the plan.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from itertools import groupby
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from llmquant.bench import DEFAULT_SCHEMES, recipe_for
from llmquant.cli.tables import plain_table
from llmquant.engine.prepare import plan_only
from llmquant.errors import LlmquantError, RecipeError
from llmquant.formats.compressed_tensors.config import schemes_of
from llmquant.kernels.gpu import runtime
from llmquant.kernels.gpu.choose import tune
from llmquant.kernels.gpu.choose.config import DENSE, Config
from llmquant.kernels.gpu.weight import DTYPES as SCALE_DTYPES
from llmquant.kernels.gpu.weight import TILE_K, Format
from llmquant.machine import versions
from llmquant.models.checkpoint import Checkpoint
from llmquant.models.skeleton import build_skeleton, load_config, take_inventory
from llmquant.progress import Progress
from llmquant.spec import KEEP, Scheme
from llmquant.words import escaped, number

if TYPE_CHECKING:
    from llmquant.models.inventory import ModuleInfo
    from llmquant.nn.accuracy import Accuracy


def tune_model(
    model: str | Path,
    *,
    schemes: Sequence[str] | None = None,
    accuracies: Sequence[Accuracy] = ("exact", "fast"),
    rows: Sequence[int] = tune.ROWS,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> tune.TuneReport:
    """Measure what runs a model's quantized layers fastest on the current GPU, and write it into the user's table.

    `model` and `schemes` are as of `bench_model`, `accuracies` of weights of at most 4 bits (of 8 bits there is one).

    Raises:
        LlmquantError: if there is no GPU that can run the kernels, or the table cannot be written; and as `cases_of`.
    """
    device = _gpu()
    cases = cases_of(model, schemes, accuracies, trust_remote_code=trust_remote_code)
    from llmquant.kernels.gpu.choose.tune_gpu import OnGpu

    arch, count, name = runtime.arch(device), runtime.processors(device), torch.cuda.get_device_name(device)
    found = tune.tune(cases, arch, count, OnGpu(device), rows, progress)
    run = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "model": Path(model).name}
    run |= versions(("llmquant", "torch", "triton")) | {"cuda": torch.version.cuda or torch.version.hip or ""}
    return tune.TuneReport(name, tune.save(found, arch, count, name, run), tuple(found))


def _gpu() -> torch.device:
    if not torch.cuda.is_available():
        raise LlmquantError("--tune measures on a GPU, and torch finds none on this machine; llmquant doctor says more")
    device = torch.device("cuda", torch.cuda.current_device())
    if reason := runtime.why_off(device):
        raise LlmquantError(f"--tune measures the GPU kernels, which cannot run here: {reason}")
    return device


def cases_of(
    model: str | Path,
    schemes: Sequence[str] | None = None,
    accuracies: Sequence[Accuracy] = ("exact", "fast"),
    *,
    trust_remote_code: bool = False,
) -> list[tune.Case]:
    """The weights to tune for: of each linear layer, and of layers that share their input, as they may run together.

    Raises:
        RecipeError: if `schemes` are given for a quantized model, or are none.
        LlmquantError: if no layer is of a kind that the kernels run; as `plan_only` for a model that cannot be planned.
    """
    folder = Checkpoint.open(model, allow_quantized=True, code=trust_remote_code).folder
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    cases: list[tune.Case] = []
    if stored is None:
        for word in schemes or DEFAULT_SCHEMES:
            plan = plan_only(folder, recipe_for(word), trust_remote_code=trust_remote_code)
            cases += _cases([(row.module, row.scheme) for row in plan.rows], plan.inventory.dtype, accuracies)
    elif schemes:
        raise RecipeError(f"{model} is quantized already, so --schemes has no use; give the 16-bit model, or drop it")
    else:
        config = load_config(folder, trust_remote_code=trust_remote_code)
        table = schemes_of(stored)
        inventory = take_inventory(build_skeleton(config, trust_remote_code=trust_remote_code))
        found = [(module, table.scheme_for(module.name) or KEEP) for module in inventory.modules]
        cases += _cases(found, inventory.dtype, accuracies)
    if not cases:
        raise LlmquantError(f"{model} has no linear layer that the GPU kernels would run quantized")
    return cases


def _cases(
    found: Iterable[tuple[ModuleInfo, Scheme]], dtype: torch.dtype, accuracies: Sequence[Accuracy]
) -> Iterator[tune.Case]:
    together: Counter[tuple[str, Scheme, int]] = Counter()
    for module, scheme in found:
        if module.table or scheme.is_keep:
            continue
        n, k = module.shape
        yield from _cases_of_weight(scheme, n, k, dtype, accuracies)
        if module.fused and not scheme.activations:  # W8A8 layers run alone
            together[module.fused, scheme, k] += n
    for (_, scheme, k), n in together.items():
        yield from _cases_of_weight(scheme, n, k, dtype, accuracies)


def _cases_of_weight(
    scheme: Scheme, n: int, k: int, dtype: torch.dtype, accuracies: Sequence[Accuracy]
) -> Iterator[tune.Case]:
    _, groups = scheme.scale_shape(n, k)
    if dtype not in SCALE_DTYPES or (groups > 1 and gcd(k // groups, TILE_K) < 32):
        return  # runs on the reference
    per_tensor = scheme.granularity == "tensor"
    form = Format(scheme.bits, k, groups, SCALE_DTYPES.index(dtype), per_tensor, not scheme.symmetric)
    if scheme.activations:
        kinds = ["w8a8"]
    elif scheme.bits == 8:
        kinds = ["w8a16"]
    else:
        kinds = [{"exact": "w4a16", "fast": "w4a8"}[accuracy] for accuracy in accuracies]
    yield from (tune.Case(kind, form, n) for kind in kinds)


def print_tuned(console: Console, report: tune.TuneReport) -> None:
    """A row for each weight and number of rows: what ran before, what will, and what that gains."""
    table = plain_table("kernel, weight", ">rows", ">µs before", ">µs now", ">gain", "configuration now")
    for case, found in groupby(report.found, key=lambda one: one.case):
        kind, n, k, unit = case.key
        label = f"[bold]{kind}[/] {n} x {k}{f', groups of {unit}' if unit else ''}"
        for one in found:
            before, now = number(one.us_untuned), number(one.us)
            table.add_row(label, str(one.rows[1]), before, now, _gain(one), _config(one.config))
            label = ""
    console.print(table)
    refused = sum((Counter(one.refused) for one in report.found), Counter())
    reasons = "; ".join(f"{count} {reason}" for reason, count in refused.most_common())
    console.print(
        f"[dim]{escaped(report.gpu)}; median of CUDA graphs over weights that no cache holds; gains below 2 % are not "
        f"taken{f'; refused: {escaped(reasons)}' if reasons else ''}[/]\nused from now on: {escaped(str(report.file))}",
        highlight=False,
    )


def _gain(one: tune.Tuned) -> str:
    if one.us is None or one.us_untuned is None:
        return "–"
    return f"{one.us_untuned / one.us:.2f}x" if one.config != one.untuned else "[dim]as it was[/]"


def _config(config: Config | None) -> str:
    if config is None:
        return "[bold red]nothing ran[/]"
    if config == DENSE:
        return "dense weight, library"
    split = f", {config.split_k} parts of k" if config.split_k > 1 else ""
    pdl = ", pdl" if config.pdl else ""
    return f"{config.block_m} x {config.block_n}{split}, {config.warps} warps, {config.stages} stages{pdl}"
