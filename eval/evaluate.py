"""One evaluation from start to report, on two loaded models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.data.windows import Protocol, Windows
from llmquant.eval.budget import check_budget, check_limits
from llmquant.eval.dtypes import LossDtype, Wanted, choose, in_float32, is_narrow
from llmquant.eval.kernels import in_accuracy
from llmquant.eval.metrics.memory import CheckpointSize, checkpoint_size, measure_memory
from llmquant.eval.metrics.noise_floor import check_noise_floor, measure_noise_floor
from llmquant.eval.metrics.worst import worst_tokens
from llmquant.eval.result import AnatomyPart, EvalReport, Memory, ModelSection, Speed, WorstToken
from llmquant.eval.scoring import Comparison, Progress, compare, score_window
from llmquant.eval.statistics import Estimate
from llmquant.eval.throughput import Throughput, ThroughputOptions, check_prompt, measure_throughput
from llmquant.machine import machine, versions
from llmquant.nn.accuracy import Accuracy, accuracy_of, kernels_used
from llmquant.nn.counting import weight_count

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Stage = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is known of the pair beyond the two loaded models; it goes into the report.

    Attributes:
        name: short name of the quantized model, such as its recipe's.
        baseline_name: name of the baseline, such as its hub id.
        folder: the quantized checkpoint, for its size.
        baseline_folder: the baseline's checkpoint.
        limits: budget by name (see `llmquant.eval.budget`).
        anatomy: bytes by module kind and scheme of the quantized checkpoint.
        anatomy_baseline: the same of the baseline.
        layer_losses: relative loss by module name, as the quantizing run recorded it.
        recipe_yaml: text of the recipe.
    """

    name: str
    baseline_name: str
    folder: Path | None = None
    baseline_folder: Path | None = None
    limits: Mapping[str, float | None] = field(default_factory=dict)
    anatomy: tuple[AnatomyPart, ...] = ()
    anatomy_baseline: tuple[AnatomyPart, ...] = ()
    layer_losses: Mapping[str, float] = field(default_factory=dict)
    recipe_yaml: str | None = None


def evaluate(
    baseline: PreTrainedModel,
    quantized: PreTrainedModel,
    windows: Windows,
    subject: Subject,
    *,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int | None = None,
    throughput: ThroughputOptions | None = None,
    loss_dtype: Wanted = "auto",
    noise_floor: bool = False,
    accuracy: Accuracy = "exact",
    seed: int = 0,
    progress: Stage | None = None,
) -> EvalReport:
    """Measure everything and give the report.

    Args:
        baseline: the 16-bit (or 32-bit) model.
        quantized: the other one, on the same device.
        windows: the text, from `make_windows`.
        subject: names, folders, budget and facts of the quantizing run.
        tokenizer: decodes the worst tokens.
        batch_size: windows at once; chosen from the vocabulary if None.
        throughput: what to time; None leaves speed out.
        loss_dtype: "auto" measures the loss in float32 over the stored weights if that fits into memory (see
            `llmquant.eval.dtypes`), "checkpoint" in the dtype of the models, packed layers on their kernels.
        noise_floor: where the loss is measured in 16 bits, also measure how much of it is rounding (slow).
        accuracy: in which packed layers run while losses and memory are measured; the speed is that of the model as it
            was given. "fast" keeps them on their kernels also in float32.
        seed: of the bootstrap.
        progress: called with (stage, done, in all) for the stages "noise floor", "divergence" and "speed".

    Raises:
        DataError: if the models' vocabularies differ, or a window is too short for the speed test.
        QuantizationError: if no position is finite.
        CheckpointError: if a folder holds no complete safetensors checkpoint.
        RecipeError: for an unknown budget.
    """
    sizes = [_size(folder) for folder in (subject.baseline_folder, subject.folder)]
    check_limits(subject.limits, sized=sizes[1] is not None)
    if throughput is not None:
        check_prompt(windows.ids.shape[1], throughput)
    loss = choose((baseline, quantized), loss_dtype, kernels=accuracy == "fast")
    noise_floor = noise_floor and not loss.wide and is_narrow(baseline)
    if noise_floor:
        check_noise_floor(baseline, quantized)
    losses = _measure_losses(
        baseline, quantized, windows, loss,
        noise_floor=noise_floor, accuracy=accuracy, batch_size=batch_size, seed=seed, progress=progress,
    )  # fmt: skip
    timed = None
    if throughput is not None:
        prompt = windows.ids[0]
        timed = measure_throughput(baseline, quantized, prompt, throughput, progress=_stage(progress, "speed"))
    sections = _sections((baseline, quantized), subject, sizes, losses, timed)
    worst = worst_tokens(losses.comparison.scores, windows, tokenizer)
    return _report(subject, windows.protocol, seed, machine(baseline.device), sections, loss, losses, timed, worst)


@dataclass(frozen=True, slots=True)
class _Losses:
    """What was measured in the accuracy that was asked for.

    Attributes:
        comparison: of the two models.
        memory: of baseline and quantized.
        kernels: what the packed layers ran on while they were scored.
        accuracy: of the packed layers meanwhile.
    """

    comparison: Comparison
    memory: tuple[Memory, Memory]
    kernels: dict[str, int]
    accuracy: Accuracy | None


def _measure_losses(
    baseline: PreTrainedModel,
    quantized: PreTrainedModel,
    windows: Windows,
    loss: LossDtype,
    *,
    noise_floor: bool,
    accuracy: Accuracy,
    batch_size: int | None,
    seed: int,
    progress: Stage | None,
) -> _Losses:
    with ExitStack() as stack:
        for model in (baseline, quantized):
            stack.enter_context(in_accuracy(model, accuracy))
        score_window(baseline, windows)  # the first forward of a process also pays for the libraries it loads
        before, after = (
            measure_memory(model, partial(score_window, model, windows)) for model in (baseline, quantized)
        )
        floor = None
        if noise_floor:
            floor = measure_noise_floor(baseline, quantized, windows, progress=_stage(progress, "noise floor"))
        for model in (baseline, quantized) if loss.wide else ():
            stack.enter_context(in_float32(model, keep_kernels=accuracy == "fast"))
        comparison = compare(
            baseline, quantized, windows,
            batch_size=batch_size, noise_floor=floor, seed=seed, progress=_stage(progress, "divergence"),
        )  # fmt: skip
        return _Losses(comparison, (before, after), kernels_used(quantized), accuracy_of(quantized))


def _report(
    subject: Subject,
    protocol: Protocol,
    seed: int,
    device: dict[str, str | int],
    sections: tuple[ModelSection, ModelSection],
    loss: LossDtype,
    losses: _Losses,
    timed: Throughput | None,
    worst: tuple[WorstToken, ...],
) -> EvalReport:
    before, after = sections
    comparison = losses.comparison.section
    return EvalReport(
        name=subject.name,
        protocol=protocol,
        seed=seed,
        versions=versions(),
        machine=device,
        baseline=before,
        quantized=after,
        comparison=comparison,
        loss_dtype=loss.dtype,
        loss_note=loss.note,
        speed_protocol=timed and timed.protocol,
        kernels=losses.kernels,
        accuracy=losses.accuracy,
        budget=check_budget(subject.limits, comparison, after.bits_per_weight),
        anatomy_baseline=subject.anatomy_baseline,
        anatomy=subject.anatomy,
        layer_losses=dict(subject.layer_losses),
        worst_tokens=worst,
        recipe_yaml=subject.recipe_yaml,
    )


def _sections(
    models: tuple[PreTrainedModel, PreTrainedModel],
    subject: Subject,
    sizes: Sequence[CheckpointSize | None],
    losses: _Losses,
    timed: Throughput | None,
) -> tuple[ModelSection, ModelSection]:
    (baseline, quantized), found = models, losses.comparison
    section = partial(_section, parameters=weight_count(baseline))
    return (
        section(
            subject.baseline_name, baseline, sizes[0], found.perplexity_baseline, losses.memory[0],
            timed and timed.baseline,
        ),
        section(
            subject.name, quantized, sizes[1], found.perplexity_quantized, losses.memory[1], timed and timed.quantized
        ),
    )  # fmt: skip


def _stage(progress: Stage | None, name: str) -> Progress | None:
    return None if progress is None else partial(progress, name)


def _size(folder: Path | None) -> CheckpointSize | None:
    return None if folder is None else checkpoint_size(folder)


def _section(
    name: str,
    model: PreTrainedModel,
    size: CheckpointSize | None,
    perplexity: Estimate,
    memory: Memory,
    speed: Speed | None,
    *,
    parameters: int,
) -> ModelSection:
    return ModelSection(
        name=name,
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=parameters,
        checkpoint_bytes=size and size.file_bytes,
        bits_per_weight=size and size.bits_per_weight(parameters),
        perplexity=perplexity,
        memory=memory,
        speed=speed,
    )
