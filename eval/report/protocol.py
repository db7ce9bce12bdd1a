"""The footnotes: what each number of the page means and how it was measured."""

from __future__ import annotations

from llmquant.eval.lines import number
from llmquant.eval.report.markup import Markup, element, join
from llmquant.eval.result import EvalReport


def protocol_notes(report: EvalReport) -> Markup:
    """Numbered notes, which the table's heads link to, then machine and versions."""
    texts = (_size(report), _perplexity(report), _kl(report), _TOP1, _speed(report), _VERDICT)
    notes = [element("li", text, id=f"note-{place}") for place, text in enumerate(texts, 1)]
    facts = {**report.machine, **report.versions}
    machine = [join(element("dt", name), element("dd", str(value))) for name, value in facts.items()]
    return join(element("ol", *notes, class_="notes"), element("dl", *machine))


_TOP1 = "Share of positions where both models hold the same token most likely; Wilson 95 % interval."
_VERDICT = (
    "“worse” or “better”: the paired 95 % interval of log-perplexity excludes zero. “same perplexity”: it holds zero. "
    "“indistinguishable”: it holds zero and KL does not exceed the noise floor. Near the baseline neither number ranks "
    "models. “within error” beside a budget: the limit lies inside the interval of the measurement."
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
    bos = "each begins with the BOS token" if text.add_bos else "no BOS token"
    documents = "1 document" if text.documents == 1 else f"{text.documents} documents"
    return (
        f"exp of the mean negative log-likelihood of {text.scored_tokens:,} tokens of {text.source} ({documents}): "
        f"{text.windows} windows of {text.length} tokens, stride {text.stride}, {bos}, each token scored once. "
        f"Token ids {text.data_hash}. 95 % intervals by resampling windows (seed {report.seed}); the change in percent "
        "is paired, token by token."
    )


def _kl(report: EvalReport) -> str:
    floor = report.comparison.noise_floor
    known = "was not measured" if floor is None else f"(itself against a wider dtype) is {number(floor, 2)}"
    return (
        "Mean KL(baseline‖quantized) per token in nats over the whole vocabulary, in float64, ± standard error "
        "clustered by window. Positions that are not finite are counted, not averaged. "
        f"The baseline's noise floor {known}.{_accuracy(report.accuracy)}"
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
    return (
        f"Forward passes with a cache, batch {speed.batch_size}: {speed.prompt_tokens} tokens of prompt, then "
        f"{speed.decode_tokens} single tokens; {speed.threads} threads on {speed.device}. Both models in turn within "
        f"each of {speed.decode_speedup.runs} rounds. Median and quartiles; the ratios are of each round. "
        f"The baseline's row shows its speed in the first evaluation.{_accuracy(speed.accuracy)}"
    )
