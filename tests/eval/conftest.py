"""A tiny random Llama, a perturbed copy of it, and a character tokenizer."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmquant.eval import EvalOptions, EvalReport, Pair, Subject, Windows, evaluate, make_windows
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.perplexity import Section as Perplexity
from llmquant.eval.scoring import TokenScores
from llmquant.progress import Progress

CHARACTERS = "abcdefghijklmnopqrstuvwxyz <>/()\n."


@pytest.fixture(scope="session")
def baseline() -> LlamaForCausalLM:
    """Two layers, hidden 32, vocabulary 40, float32; weights wide enough to make confident predictions."""
    generator = torch.Generator().manual_seed(7)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.35)
    return model


@pytest.fixture(scope="session")
def perturbed(baseline: LlamaForCausalLM) -> LlamaForCausalLM:
    """The baseline with noise on its matrices."""
    return _perturb(baseline, 0.03)


@pytest.fixture(scope="session")
def barely_perturbed(baseline: LlamaForCausalLM) -> LlamaForCausalLM:
    """The baseline with a tenth of that noise."""
    return _perturb(baseline, 0.003)


def _perturb(model: LlamaForCausalLM, amount: float) -> LlamaForCausalLM:
    """A copy with Gaussian noise of that size on all matrices."""
    generator = torch.Generator().manual_seed(11)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * amount)
    return other


def character_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """One token per character; token 0 is <s>."""
    vocabulary = {"<s>": 0, "<unk>": 1, **{character: place for place, character in enumerate(CHARACTERS, 2)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"bos_token": "<s>"} if bos else {}
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Characters, with BOS."""
    return character_tokenizer(bos=True)


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """Characters, without BOS."""
    return character_tokenizer(bos=False)


@pytest.fixture(scope="session")
def text() -> str:
    """700 characters without structure."""
    generator = torch.Generator().manual_seed(3)
    return "".join(CHARACTERS[i] for i in torch.randint(len(CHARACTERS), (700,), generator=generator).tolist())


TRAINING: dict[str, Any] = {
    "steps": 20, "tokens": 4096, "loss_before": 0.6, "loss_after": 0.3, "best_step": 20,
    "log": [
        {"step": 10, "loss": 0.5, "scale_drift": 0.01, "codes_flipped": 0.02},
        {"step": 10, "eval_loss": 0.4},
        {"step": 20, "loss": float("nan"), "scale_drift": 0.03, "codes_flipped": 0.05},
        {"step": 20, "eval_loss": 0.3},
    ],
}  # fmt: skip


@pytest.fixture(scope="session")
def report(baseline, perturbed, tokenizer, text, tmp_path_factory) -> EvalReport:
    """A full evaluation of the tiny pair, with every optional part."""
    folder = tmp_path_factory.mktemp("checkpoint")
    perturbed.save_pretrained(folder)
    losses = {
        f"model.layers.{block}.{name}": 0.01 * (block + 1) for block in range(2) for name in ("q_proj", "up_proj")
    }
    rows = [("attention", "int4-g32", 16000, 4000), ("mlp", "keep", 9000, 9000)]
    names = ("kind", "scheme", "bytes_before", "bytes_after")
    subject = Subject(
        name="int4-<b>test</b>",
        baseline_name="tiny & random",
        folder=folder,
        baseline_folder=folder,
        made={
            "plan": {"rows": [dict(zip(names, row, strict=True)) for row in rows]},
            "layers": {name: {"loss": loss} for name, loss in {**losses, "lm_head": 0.5}.items()},
            "training": TRAINING,
            "recipe": {"qat": {"freeze_after": 0.75}},
        },
        limits={"kl": 1e-6, "perplexity_ratio": 100.0, "bits_per_weight": 40.0},
        recipe_yaml="version: 1\nname: <script>alert(1)</script>\n",
    )
    windows = make_windows([text], tokenizer, source="noise.txt", length=40, context=64)
    timed = {"contexts": [16], "decode_tokens": 4, "seconds": 2.0, "min_rounds": 3}
    pair = pair_of(
        baseline, perturbed, windows, subject=subject, tokenizer=tokenizer, dtype="auto",
        metrics={"speed": timed, "noise_floor": True},
    )  # fmt: skip
    found = evaluate(pair)
    # A dense model has no kernels of ours; the report shows those of a packed one.
    *dense, row = found.sections["speed"].rows
    row = replace(row, kernels={"linear_int4: avx2, fast": 14}, accuracy="fast", dense=False)
    shown = change(found, speed={"rows": (*dense, row)})
    return replace(shown, kernels={"linear_int4: avx2, exact": 14}, accuracy="exact")


def pair_of(baseline: Any, quantized: Any, windows: Windows, **given: Any) -> Pair:
    """Two models that compute as they are, and no speed test, unless it is asked for; other keywords are options."""
    rest = {name: given.pop(name) for name in ("progress", "subject", "tokenizer") if name in given}
    options = EvalOptions(**{"dtype": "checkpoint", "metrics": {"speed": False}, **given})
    return Pair(
        **{"subject": Subject(name="q", baseline_name="b"), "tokenizer": None, **rest},
        baseline=baseline, quantized=quantized, windows=windows, options=options,
    )  # fmt: skip


class Seen(Progress):
    """Keeps each stage: its name, its total, and how many steps came at once."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int, list[int]]] = []

    def stage(self, name: str, total: int, *, unit: str = "steps", work: float | None = None) -> None:
        """Note the stage."""
        self.stages.append((name, total, []))

    def step(self, detail: str = "", *, steps: int = 1, work: float | None = None) -> None:
        """Note the steps."""
        self.stages[-1][2].append(steps)


class Noted(Seen):
    """Keeps notes too."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Note the note."""
        self.notes.append(text)


class Compared(NamedTuple):
    """What two models say of a text."""

    scores: TokenScores
    divergence: Divergence
    perplexity: Any  # a section of two models: nothing in it is None


def compare(baseline: Any, quantized: Any, windows: Windows, **given: Any) -> Compared:
    """Both models as they are; keywords as of `pair_of`."""
    pair = pair_of(baseline, quantized, windows, **given)
    divergence, perplexity = pair.get(Divergence), pair.get(Perplexity)
    assert divergence is not None
    assert perplexity is not None
    return Compared(pair.scored.tokens, divergence, perplexity)


def change(report: EvalReport, **sections: dict[str, Any]) -> EvalReport:
    """The report with other fields in some of its sections."""
    changed = {name: replace(report.sections[name], **fields) for name, fields in sections.items()}
    return replace(report, sections={**report.sections, **changed})
