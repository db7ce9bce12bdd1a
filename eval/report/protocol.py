"""The footnotes: what each number of the page means and how it was measured."""

from __future__ import annotations

from llmquant.eval.lines import number
from llmquant.eval.report.markup import Markup, element, join
from llmquant.eval.result import EvalReport
from llmquant.eval.statistics import MIN_WINDOWS
from llmquant.eval.verdict import LARGE, NEGLIGIBLE, SMALL


def protocol_notes(report: EvalReport) -> Markup:
    """Numbered notes, which the table's heads link to, then machine and versions."""
    texts = (_size(report), _perplexity(report), _kl(report), _TOP1, _speed(report), _VERDICT)
    notes = [element("li", text, id=f"note-{place}") for place, text in enumerate(texts, 1)]
    facts = {**report.machine, **report.versions}
    machine = [join(element("dt", name), element("dd", str(value))) for name, value in facts.items()]
    return join(element("ol", *notes, class_="notes"), element("dl", *machine))


_TOP1 = "Share of positions where both models hold the same token most likely; score interval, clustered by window."
_VERDICT = (
    "By the change of perplexity and its paired 95 % interval. “no measurable loss”: the interval reaches zero, "
    f"and ends below +{100 * SMALL:g} %; “unclear”: it reaches zero and ends above that, so more text is needed. Else "
    f"the loss is real, and its size gives the word: below {100 * NEGLIGIBLE:g} % negligible, below {100 * SMALL:g} % "
    f"small, from {100 * LARGE:g} % large. “identical”: KL is zero. “within the noise floor”: KL does not exceed what "
    "rounding of activations adds. A model that is ahead by chance is not called better. “within error” beside a "
    "budget: the limit lies inside the interval of the measurement."
)


def _size(report: EvalReport) -> str:
    note = report.quantized.memory.note if report.quantized.memory else "not measured"
    return (
        "Bytes of the safetensors files (decimal units). Bits per weight count all stored tensors, scales, zeros and "
        f"16-bit parts included, over the baseline's {report.baseline.parameters:,} weights. "
        f"In memory: parameters and buffers, shared storage once; at work: one window is scored ({note})."
    )


def _perplexity(report: EvalReport) -> str:
    text = report.protocol
    several = f"each begins with the {text.prefix_tokens} tokens that the tokenizer puts in front of a text"
    bos = {0: "no BOS token", 1: "each begins with the BOS token"}.get(text.prefix_tokens, several)
    documents = "1 document" if text.documents == 1 else f"{text.documents} documents"
    return (
        f"exp of the mean negative log-likelihood of {text.scored_tokens:,} tokens of {text.source} ({documents}): "
        f"{text.windows} windows of {text.length} tokens, stride {text.stride}, {bos}, each token scored once. "
        f"Token ids {text.data_hash}. 95 % intervals with the window as the unit (bootstrap-t, seed {report.seed}), "
        f"none below {MIN_WINDOWS} windows; the change in percent is paired, token by token. Measured in "
        f"{report.loss_note}."
    )


def _kl(report: EvalReport) -> str:
    floor = report.comparison.noise_floor
    known = "" if floor is None else f" Rounding in {report.loss_dtype} adds {number(floor, 2)} to it (noise floor)."
    return (
        "Mean KL(baseline‖quantized) per token in nats over the whole vocabulary, ± standard error "
        f"clustered by window. Both models computed in {report.loss_note}; the divergence is summed in float64. "
        f"Positions that are not finite are counted, not averaged.{known}{_accuracy(report.accuracy)}"
    )


def _accuracy(mode: str | None) -> str:
    if mode is None:
        return ""
    bits = {"exact": " (activations in 16 bits)", "fast": " (activations in 8 bits)"}.get(mode, "")
    return f" The kernels of packed layers ran in accuracy “{mode}”{bits}."


def _speed(report: EvalReport) -> str:
    speed = report.speed_protocol
    if speed is None:
        return "Speed was not measured."
    dtypes = ", ".join(each.dtype for each in speed.dense)
    return (
        f"Forward passes with a cache, batch {speed.batch_size}: {speed.prompt_tokens} tokens of prompt, then "
        f"{speed.decode_tokens} single tokens; {speed.threads} threads on {speed.device}. The baseline in {dtypes} and "
        "the quantized model take turns within each round; the ratios are of each round, median and quartiles, against "
        "the checkpoint's own dtype and against the fastest. Below each ratio: its own baseline and rounds."
        f"{_accuracy(speed.accuracy)}{f' {speed.note}.' if speed.note else ''}"
    )
