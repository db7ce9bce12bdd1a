"""The model card: metadata that the hub checks, and the numbers that were measured, with how they were measured.

Keys of the metadata: https://github.com/huggingface/hub-docs/blob/main/modelcard.md
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llmquant.compat.border import first_line
from llmquant.eval.lines import change, interval, plus_minus
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.perplexity import Section as Perplexity
from llmquant.hub.charts import NAME as CHART
from llmquant.hub.charts import Picture
from llmquant.recipe.load import dump_recipe
from llmquant.spec import Scheme
from llmquant.words import bytes_text, number, percent, printable

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from llmquant.eval.result import EvalReport

_PACKED = "compressed-tensors"  # our default format, as the hub names it


@dataclass(frozen=True, slots=True)
class OwnCard:
    """A card that somebody wrote: what is inherited of its metadata, and its text."""

    data: Mapping[str, Any]
    text: str

    @classmethod
    def parse(cls, content: str) -> OwnCard:
        """Read a README.md.

        Raises:
            ValueError: if its metadata are no YAML mapping.
        """
        found = _FRONT.match(content)
        if not found:
            return cls({}, content)
        try:
            data = yaml.safe_load(found[1]) or {}
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"its metadata are no YAML ({first_line(error)})") from None
        if not isinstance(data, dict):
            raise ValueError(f"its metadata are no mapping of keys to values but {type(data).__name__}")
        return cls({key: value for key, value in data.items() if _usable(key, value)}, content[found.end() :])


_FRONT = re.compile(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|$)", re.DOTALL | re.MULTILINE)


def _usable(key: Any, value: Any) -> bool:
    words = isinstance(value, list) and all(isinstance(word, str) for word in value)
    if key == "tags":
        return words
    if key == "language":
        return words or isinstance(value, str)
    return key in ("license", "license_name", "license_link", "pipeline_tag") and isinstance(value, str)


@dataclass(frozen=True, slots=True)
class Base:
    """The model that was quantized."""

    name: str  # its hub id, or the name of its folder
    on_hub: bool  # whether `name` is a hub id
    card: Mapping[str, Any] = field(default_factory=dict)  # of its own card: licence, language, pipeline are inherited


def make_card(
    repo: str,
    made: Mapping[str, Any],
    base: Base,
    reports: Sequence[EvalReport],
    readers: Mapping[str, bool],
    *,
    own: OwnCard | None = None,
    chart: Picture | None = None,
) -> ModelCard:
    """Write the card of a result that goes to the hub id `repo`; `made` is what llmquant.json says.

    No `reports` leave the card without numbers, and it says so. `readers` can load it, or not; the text of `own`, which
    the user wrote, stands in front, and what it says goes before what the base's card says. `chart` lies beside it.
    """
    from huggingface_hub import ModelCard

    title = repo.rpartition("/")[2]
    parts = [
        own.text.strip() if own and own.text.strip() else f"# {title}",
        _summary(made, base),
        "## What it lost\n\n" + ("\n".join(_measured(reports, chart)) if reports else _NOT_MEASURED),
        "## Use\n\n" + "\n\n".join(_use(repo, readers)),
        "## How it was made\n\n" + "\n\n".join(_made(made)),
    ]
    return ModelCard(
        f"---\n{_metadata(title, made, {**base.card, **(own.data if own else {})}, base, reports).to_yaml()}\n---\n\n"
        + "\n\n".join(parts)
        + "\n"
    )


_NOT_MEASURED = (
    "Not measured. `llmquant eval DIR --baseline BASE --json eval.json` measures perplexity and divergence with "
    "intervals, and `llmquant push DIR NAME --report eval.json` puts them here."
)


def _metadata(
    title: str, made: Mapping[str, Any], said: Mapping[str, Any], base: Base, reports: Sequence[EvalReport]
) -> Any:
    from huggingface_hub import ModelCardData

    inherited = {key: said[key] for key in ("license", "license_name", "license_link", "language") if key in said}
    dataset = (made["recipe"].get("calibration") or {}).get("dataset", "")
    if dataset.startswith("hub:"):
        inherited["datasets"] = [dataset.split(":")[1]]
    results = [result for report in reports for result in _results(report)]
    return ModelCardData(
        **inherited,
        base_model=base.name if base.on_hub else None,
        base_model_relation="quantized" if base.on_hub else None,
        library_name="transformers" if _is_packed(made) else "llmquant",
        pipeline_tag=said.get("pipeline_tag", "text-generation"),
        tags=list(dict.fromkeys([*_tags(made), *said.get("tags", [])])),
        model_name=title if results else None,
        eval_results=results or None,
    )


def _is_packed(made: Mapping[str, Any]) -> bool:
    return made["recipe"].get("format", _PACKED) == _PACKED


def _schemes(made: Mapping[str, Any]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in made["plan"]["rows"]:
        if not row["tied_to"]:
            counts[row["scheme"]] += row["parameters"]
    return counts


def _tags(made: Mapping[str, Any]) -> list[str]:
    """Names that people search for: those of the scheme that most parameters have, and of the format."""
    tags = ["llmquant", made["recipe"].get("format", _PACKED)]
    quantized = Counter({name: count for name, count in _schemes(made).items() if name != "keep"})
    if quantized:
        scheme = Scheme.parse(quantized.most_common(1)[0][0])
        tags += [f"int{scheme.bits}", f"{scheme.bits}-bit", f"w{scheme.bits}a{8 if scheme.activations else 16}"]
    methods = {row["rounding"]["method"] for row in made["plan"]["rows"] if row["rounding"]}
    return tags + sorted(methods - {"rtn"}) + (["qat"] if made.get("training") else [])


def _results(report: EvalReport) -> Iterator[Any]:
    from huggingface_hub import EvalResult

    source = Path(report.protocol.source).name
    facts: dict[str, Any] = {
        "task_type": "text-generation",
        "task_name": "Text generation",
        "dataset_type": source,
        "dataset_name": source,
        "dataset_args": {
            "tokens": report.protocol.scored_tokens,
            "length": report.protocol.length,
            "stride": report.protocol.stride,
            "sha256": report.protocol.data_hash.removeprefix("sha256:"),
        },
    }
    perplexity, divergence = report.get(Perplexity), report.get(Divergence)
    if perplexity:
        yield EvalResult(
            **facts, metric_type="perplexity", metric_name="Perplexity", metric_value=perplexity.quantized.value
        )
    if divergence:
        yield EvalResult(
            **facts, metric_type="kl_divergence", metric_name="KL(base || this)", metric_value=divergence.kl.mean
        )
        yield EvalResult(
            **facts, metric_type="accuracy", metric_name="Top-1 agreement", metric_value=divergence.top1_agreement.value
        )


def _summary(made: Mapping[str, Any], base: Base) -> str:
    plan = made["plan"]
    name = f"[{base.name}](https://huggingface.co/{base.name})" if base.on_hub else f"`{base.name}`"
    return (
        f"{name}, quantized by llmquant {made['identity']['llmquant']} with the recipe "
        f"`{_plain(made['recipe']['name'])}`: {plan['bits_per_weight']:.2f} bits per weight over everything, "
        f"{bytes_text(plan['bytes_before'])} -> {bytes_text(plan['bytes_after'])}."
    )


def _measured(reports: Sequence[EvalReport], chart: Picture | None) -> Iterator[str]:
    yield "| text | perplexity, base | perplexity, this | change | KL(base ‖ this) | same top-1 |"
    yield "|---|---|---|---|---|---|"
    for report in reports:
        cells = [_plain(Path(report.protocol.source).name)]
        if perplexity := report.get(Perplexity):
            cells += [
                f"{number(each.value, 4)} {interval(each)}" if each else "–"
                for each in (perplexity.baseline, perplexity.quantized)
            ]
            cells.append(change(perplexity.ratio) if perplexity.ratio else "–")
        else:
            cells += ["–"] * 3
        if divergence := report.get(Divergence):
            kl, top1 = divergence.kl, divergence.top1_agreement
            cells += [f"{number(kl.mean)} {plus_minus(kl.estimate)}", f"{percent(top1.value)} {_share(top1)}"]
        else:
            cells += ["–"] * 2
        yield f"| {' | '.join(cells)} |"
    if chart:
        alt = re.sub(r"[\[\]]", "", _plain(chart.alt))
        yield f"\n![{alt}]({CHART})"
    yield "\n95 % intervals, the window as the unit; ± is a standard error. How it was measured:\n"
    for report in reports:
        text = report.protocol
        yield (
            f"* {_plain(Path(text.source).name)}: {text.scored_tokens:,} tokens in {text.windows} windows of "
            f"{text.length}, stride {text.stride}, {_prefix(text.prefix_tokens)}; {report.loss_note}; "
            f"token ids `{text.data_hash[:19]}`; torch {report.versions.get('torch')}, transformers "
            f"{report.versions.get('transformers')}, {_plain(str(report.machine.get('cpu')))}"
        )


def _prefix(tokens: int) -> str:
    return {0: "no BOS token", 1: "the BOS token in front"}.get(tokens, f"{tokens} tokens in front")


def _share(estimate: Any) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _use(repo: str, readers: Mapping[str, bool]) -> Iterator[str]:
    if readers.get("llmquant"):
        python = f'import llmquant\n\nmodel = llmquant.load("{repo}")'
        yield f"Packed, on llmquant's kernels:\n\n```python\n{python}\n```"
    if readers.get("transformers"):
        yield (
            "Plain transformers, with `pip install compressed-tensors`:\n\n```python\nfrom transformers import "
            f'AutoModelForCausalLM, AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained("{repo}")\n'
            f'model = AutoModelForCausalLM.from_pretrained("{repo}", dtype="auto")\n```'
        )
    if any(loads for name, loads in readers.items() if name.startswith("vLLM")):
        yield f"vLLM:\n\n```bash\nvllm serve {repo}\n```"
    refused = sorted(name for name, loads in readers.items() if not loads)
    if refused:
        yield f"Not for {', '.join(refused)}."


def _made(made: Mapping[str, Any]) -> Iterator[str]:
    total = sum(_schemes(made).values())
    rows = [f"| {name} | {percent(count / total)} |" for name, count in _schemes(made).most_common()]
    yield "\n".join(["| scheme | of the parameters |", "|---|---|", *rows])
    calibration = made.get("calibration")
    if calibration:
        yield (
            f"Calibrated on {calibration['samples']} x {calibration['length']} tokens of "
            f"`{_plain(made['recipe']['calibration']['dataset'])}` (`sha256:{calibration['sha256'][:12]}`)."
        )
    if training := made.get("training"):
        yield (
            f"Trained on {training['tokens']:,} tokens of `{_plain(training['text'])}` (`{training['sha256'][:19]}`), "
            f"of {training['steps']:,} steps as it was after {training['best_step']:,}: loss on held-out text "
            f"{number(training['loss_before'])} before, {number(training['loss_after'])} after."
        )
    if made.get("changed"):
        yield f"{made['changed']} of {len(made['tensors'])} tensors were changed after quantization."
    yield f"```yaml\n{dump_recipe(made['recipe']).strip()}\n```"
    yield "`llmquant.json` holds the digest of every tensor; `llmquant verify` compares them."


def _plain(text: str) -> str:
    """One line that breaks neither a table nor code."""
    return printable(text).replace("|", "\\|").replace("`", "'").replace("\n", " ")
