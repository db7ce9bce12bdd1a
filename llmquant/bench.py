"""`llmquant bench`: one model in several formats, loaded or quantized in memory, timed side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmquant.compat.loading import no_progress_bar
from llmquant.compat.remote_code import remote_code_of
from llmquant.device import resolve_device
from llmquant.engine.prepare import plan_only
from llmquant.errors import CheckpointError, DataError, RecipeError
from llmquant.eval.speed.bench import Contender, bench, contenders_of
from llmquant.eval.speed.speeds import Speeds
from llmquant.eval.speed.throughput import ThroughputOptions
from llmquant.hf.load import load
from llmquant.hf.recipe import RecipeConfig
from llmquant.machine import machine, versions
from llmquant.memory import free_bytes
from llmquant.models.checkpoint import Checkpoint
from llmquant.nn.counting import weight_count
from llmquant.notebook import default_progress
from llmquant.progress import Progress
from llmquant.recipe.load import load_recipe
from llmquant.spec import Scheme
from llmquant.words import bytes_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llmquant.nn.accuracy import Accuracy
    from llmquant.recipe.schema import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_DTYPES = ("fp32", "bf16")
DEFAULT_SCHEMES = ("int8", "int4-g128")
_GROUPS = (128, 64, 32)


@dataclass(frozen=True, kw_only=True)
class BenchReport(Speeds):
    """Result of `bench_model`; the fields are the keys of the JSON file, explained in docs/evaluation.md."""

    model: str
    parameters: int
    versions: dict[str, str]
    machine: dict[str, str | int]

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def bench_model(
    model: str | Path,
    *,
    baseline: str | Path | None = None,
    dtypes: Sequence[str] | None = None,
    schemes: Sequence[str] | None = None,
    accuracies: Sequence[Accuracy] = ("exact", "fast"),
    options: ThroughputOptions,
    threads: int | None = None,
    device: str | torch.device = "auto",
    static_cache: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> BenchReport:
    """Time a model in several formats.

    Args:
        model: folder or hub id of a 16- or 32-bit model, which is also quantized in memory by rounding to nearest; or
            of a quantized one, which is taken as it is.
        baseline: of a quantized model: the one it was made from.
        dtypes: of the dense model: fp32, bf16, fp16.
        schemes: for a 16- or 32-bit model: schemes, presets or recipe files.
        accuracies: of the kernels.
        options: what is timed.
        threads: of torch; as they are if None.
        device: where the models lie; "auto" is the first of cuda, xpu and mps that is there, else the CPU.
        static_cache: also time each with a cache of a fixed size; on a CUDA device decoding is a CUDA graph then.
        trust_remote_code: run code that comes with a checkpoint, if its architecture needs it.
        progress: is told of the stages "load" and "speed".

    Raises:
        LlmquantError: RecipeError for a wrong word or a combination that makes no sense, CheckpointError if a model
            cannot be loaded or there is not enough memory, PlanError if a scheme does not fit it, DataError if no cell
            of the grid fits, DeviceError if there is no such device.
    """
    place = resolve_device(device)
    if threads is not None and threads < 1:
        raise DataError(f"--threads {threads}: at least 1")
    sources = _sources(model, baseline, dtypes, schemes, place, trust_remote_code)
    contenders: list[Contender] = []
    with _threads(threads):
        progress = progress or default_progress()
        progress.stage("load", len(sources), unit="models")
        for name, make in sources:
            contenders += contenders_of(name, make(), accuracies)
            progress.step(name)
        if static_cache:
            contenders += [replace(each, static=True) for each in contenders]
        speeds = bench(contenders, options, progress=progress)
        if not speeds.cells:
            raise DataError(f"nothing can be timed; {'; '.join(speeds.left_out)}; ask for fewer tokens or sequences")
        first = contenders[0].model
        return BenchReport(
            model=Path(model).name, parameters=weight_count(first), versions=versions(), machine=machine(first.device),
            **vars(speeds),
        )  # fmt: skip


Source = tuple[str, "Callable[[], PreTrainedModel]"]


def _sources(
    model: str | Path,
    baseline: str | Path | None,
    dtypes: Sequence[str] | None,
    schemes: Sequence[str] | None,
    device: torch.device,
    trust: bool,
) -> list[Source]:
    """Names of the contenders and how to make each; the dense ones first."""
    checkpoint = Checkpoint.open(model, allow_quantized=True, code=trust)
    quantized = _is_quantized(checkpoint.folder)
    if quantized and schemes:
        raise RecipeError(f"{model} is quantized already, so --schemes has no use; give the 16-bit model, or drop it")
    if baseline is not None and not quantized:
        raise RecipeError(f"{model} is not quantized; --baseline goes with a quantized model, so drop it")
    if quantized and baseline is None and dtypes:
        raise RecipeError(
            f"{model} is quantized; --dtypes is about the model it was made from: name it with --baseline"
        )
    dense = checkpoint if not quantized else None if baseline is None else Checkpoint.open(baseline, code=trust)
    found: list[Source] = []
    bytes_needed = sum(tensor.bytes for tensor in checkpoint.tensors.values()) if quantized else 0
    if dense is not None:
        parameters = sum(prod(tensor.shape) for tensor in dense.tensors.values())
        for name in dtypes or DEFAULT_DTYPES:
            dtype = _dtype(name)
            found.append((name, lambda dtype=dtype: _load(dense.folder, dtype, device, trust)))
            bytes_needed += parameters * dtype.itemsize
    if quantized:
        found.append((checkpoint.folder.name, lambda: _load(checkpoint.folder, "auto", device, trust)))
    else:
        for word in schemes or DEFAULT_SCHEMES:
            recipe = recipe_for(word)
            found.append((word, lambda recipe=recipe: _quantize(checkpoint.folder, recipe, device, trust)))
            bytes_needed += plan_only(checkpoint.folder, recipe, trust_remote_code=trust).bytes_after
    _require_memory(bytes_needed, device)
    return found


def _is_quantized(folder: Path) -> bool:
    return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise RecipeError(f"--dtypes {name}: not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def recipe_for(word: str) -> Recipe:
    """The recipe of a scheme (every linear layer, round to nearest), or the preset or file of that name.

    Raises:
        RecipeError: if it is neither.
    """
    try:
        scheme = Scheme.parse(word)
    except ValueError:
        return load_recipe(word)
    rule: dict[str, Any] = {"match": "linear", "scheme": word}
    if scheme.group_size:  # where it does not divide a layer's inputs, as the presets do
        smaller = [f"g{group}" for group in _GROUPS if group < scheme.group_size]
        rule["if_indivisible"] = [*smaller, "channel"]
    return load_recipe({"version": 1, "name": word, "rules": [rule], "rounding": {"method": "rtn"}})


def _require_memory(wanted: int, device: torch.device) -> None:
    """All contenders are in memory at the same time; refuse before the system starts to swap."""
    available = free_bytes(device)
    if available is not None and wanted > available:
        raise CheckpointError(
            f"the models need {bytes_text(wanted)} of memory at the same time, {bytes_text(available)} are free; "
            "take fewer with --dtypes and --schemes, such as --dtypes bf16"
        )


def _load(folder: Path, dtype: str | torch.dtype, device: torch.device, trust: bool) -> PreTrainedModel:
    with no_progress_bar():
        return load(folder, dtype=dtype, device_map=_device_map(device), trust_remote_code=trust)


def _quantize(folder: Path, recipe: Recipe, device: torch.device, trust: bool) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    with no_progress_bar(), remote_code_of(folder):
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", use_safetensors=True, quantization_config=RecipeConfig(recipe),
            device_map=_device_map(device), trust_remote_code=trust,
        )  # fmt: skip


def _device_map(device: torch.device) -> dict[str, torch.device] | None:
    return None if device.type == "cpu" else {"": device}


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
