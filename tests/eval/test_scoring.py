"""Perplexity and KL against a naive float64 loop, token by token."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

from llmquant.api import quantize
from llmquant.data.windows import Windows, make_windows
from llmquant.errors import DataError, QuantizationError
from llmquant.eval import scoring
from llmquant.eval.scoring import score_tokens
from llmquant.hf.load import load
from llmquant.progress import Progress
from tests.engine.conftest import save_tiny
from tests.eval.conftest import Seen, compare


def _distribution(logits: torch.Tensor) -> list[float]:
    weights = [math.exp(float(x) - float(logits.max())) for x in logits]
    return [weight / math.fsum(weights) for weight in weights]


def _naive(baseline: LlamaForCausalLM, quantized: LlamaForCausalLM, windows: Windows) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"p": [], "q": [], "kl": [], "same": [], "window": []}
    for number, (row, mask) in enumerate(zip(windows.ids, windows.scored, strict=True)):
        with torch.no_grad():
            one, two = (model(input_ids=row[None]).logits[0].double() for model in (baseline, quantized))
        for place in range(len(row) - 1):
            if not mask[place]:
                continue
            p, q, target = _distribution(one[place]), _distribution(two[place]), int(row[place + 1])
            found["p"].append(-math.log(p[target]))
            found["q"].append(-math.log(q[target]))
            found["kl"].append(math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
            found["same"].append(float(p.index(max(p)) == q.index(max(q))))
            found["window"].append(number)
    return found


@pytest.fixture
def windows(tokenizer, text) -> Windows:
    return make_windows([text[:260]], tokenizer, source="t", length=32, stride=20)


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_numbers_equal_the_naive_ones(baseline, perturbed, windows, batch_size, monkeypatch) -> None:
    monkeypatch.setattr(scoring, "_SLICE_ELEMENTS", 7 * 40)  # several slices in a batch
    found = compare(baseline, perturbed, windows, batch_size=batch_size)
    naive = _naive(baseline, perturbed, windows)
    tokens = len(naive["kl"])
    assert found.scores.window.tolist() == naive["window"]
    np.testing.assert_allclose(found.scores.kl, naive["kl"], rtol=1e-4, atol=1e-9)
    assert found.divergence.tokens == windows.protocol.scored_tokens == tokens
    assert found.perplexity.baseline.value == pytest.approx(math.exp(math.fsum(naive["p"]) / tokens), rel=1e-6)
    assert found.perplexity.quantized.value == pytest.approx(math.exp(math.fsum(naive["q"]) / tokens), rel=1e-6)
    assert found.divergence.kl.mean == pytest.approx(math.fsum(naive["kl"]) / tokens, rel=1e-6)
    assert found.divergence.kl.max == pytest.approx(max(naive["kl"]), rel=1e-5)
    assert found.divergence.kl.median == pytest.approx(float(np.median(naive["kl"])), rel=1e-5)
    assert found.divergence.top1_agreement.value == sum(naive["same"]) / tokens
    difference = math.fsum(b - a for a, b in zip(naive["p"], naive["q"], strict=True)) / tokens
    assert found.perplexity.log_difference.value == pytest.approx(difference, abs=1e-7)
    ratio = found.perplexity.quantized.value / found.perplexity.baseline.value
    assert found.perplexity.ratio.value == pytest.approx(ratio, rel=1e-9)
    assert sum(found.divergence.kl_histogram.counts) == tokens
    assert sum(bucket.tokens for bucket in found.divergence.confidence_buckets) == tokens


def test_flips_and_probability_shift(baseline, perturbed, windows) -> None:
    found = compare(baseline, perturbed, windows)
    scores = found.scores
    before, after = scores.top_baseline == scores.target, scores.top_quantized == scores.target
    assert found.divergence.flips.right_to_wrong == sum(a and not b for a, b in zip(before, after, strict=True))
    assert found.divergence.flips.wrong_to_right == sum(b and not a for a, b in zip(before, after, strict=True))
    change = [math.exp(-b) - math.exp(-a) for a, b in zip(scores.nll_baseline, scores.nll_quantized, strict=True)]
    assert found.divergence.probability_shift.mean == pytest.approx(sum(change) / len(change))
    assert found.divergence.probability_shift.rms == pytest.approx(math.sqrt(sum(x * x for x in change) / len(change)))


def test_pairing_narrows_the_interval(baseline, barely_perturbed, windows) -> None:
    found = compare(baseline, barely_perturbed, windows)
    paired, alone = found.perplexity.log_difference, found.perplexity.baseline
    assert paired.standard_error is not None
    assert alone.standard_error is not None
    assert paired.standard_error < 0.2 * alone.standard_error / alone.value


def test_one_object_differs_from_itself_by_nothing(baseline, windows) -> None:
    _, divergence, perplexity = compare(baseline, baseline, windows)
    assert (divergence.kl.mean, divergence.kl.max, divergence.top1_agreement.value) == (0.0, 0.0, 1.0)
    assert (perplexity.log_difference.low, perplexity.log_difference.high) == (0.0, 0.0)
    assert perplexity.verdict == "identical"


def test_a_tiny_change_is_seen_in_float64(baseline, windows) -> None:
    """KL of about 1e-9 lies below float32 rounding of the log-probabilities, and must still be right."""
    near = copy.deepcopy(baseline)
    with torch.no_grad():
        near.lm_head.weight[5] += 1e-4
    found = compare(baseline, near, windows).divergence.kl.mean
    naive = _naive(baseline, near, windows)["kl"]
    assert 0 < found < 1e-6
    assert found == pytest.approx(math.fsum(naive) / len(naive), rel=1e-3)


def test_non_finite_positions_are_counted(baseline, perturbed, windows) -> None:
    class Sick(torch.nn.Module):
        """NaN logits at ten places of every window."""

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            logits = perturbed.lm_head(hidden)
            logits[:, 10:20] = math.nan
            return logits

    sick = copy.deepcopy(perturbed)
    sick.lm_head = Sick()
    found = compare(baseline, sick, windows)
    keep = ~((found.scores.position > 10) & (found.scores.position <= 20))
    (healthy,) = score_tokens(baseline, [perturbed], windows, Progress())
    assert found.divergence.nonfinite == int((~keep).sum()) > 0
    assert found.divergence.tokens == int(keep.sum())
    assert found.divergence.kl.mean == pytest.approx(healthy.kl[keep].mean(), rel=1e-9)
    assert found.perplexity.baseline.value == pytest.approx(math.exp(healthy.nll_baseline[keep].mean()), rel=1e-9)


def test_all_positions_non_finite_is_an_error(baseline, windows) -> None:
    broken = copy.deepcopy(baseline)
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    with pytest.raises(QuantizationError, match=r"none of the .* the quantized model gives"):
        compare(baseline, broken, windows)


def test_masked_vocabulary_counts_as_zero_probability(baseline, perturbed, windows) -> None:
    """Logits of -inf in both models (padding of the vocabulary) must not give NaN."""

    class Masked(torch.nn.Module):
        def __init__(self, head: torch.nn.Module) -> None:
            super().__init__()
            self.head = head

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.head(hidden).index_fill(-1, torch.tensor([39]), -math.inf)

    pair = [copy.deepcopy(model) for model in (baseline, perturbed)]
    for model in pair:
        model.lm_head = Masked(model.lm_head)
    found = compare(pair[0], pair[1], windows).divergence
    assert found.nonfinite == 0
    assert 0 < found.kl.mean < 10


def test_other_vocabulary_is_refused(baseline, windows) -> None:
    smaller = copy.deepcopy(baseline)
    smaller.resize_token_embeddings(38)
    with pytest.raises(DataError, match="predicts 40 tokens, the quantized model 38"):
        compare(baseline, smaller, Windows(windows.ids.clamp_max(37), windows.scored, windows.protocol))
    with pytest.raises(DataError, match="belongs to another model"):
        compare(baseline, baseline, Windows(windows.ids + 7, windows.scored, windows.protocol))


def test_progress_and_mode(baseline, windows) -> None:
    seen = Seen()
    model = copy.deepcopy(baseline).train()
    compare(model, baseline, windows, batch_size=4, progress=seen)
    ((name, total, steps),) = seen.stages
    assert (name, total) == ("score", len(windows))
    assert steps[0] == 4
    assert sum(steps) == total
    assert model.training
    assert not baseline.training


def _sliding() -> tuple[Any, Any]:
    """Mistral whose attention sees 8 tokens, and a noisy copy."""
    torch.manual_seed(5)
    sizes: Any = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=40, num_key_value_heads=2, sliding_window=8, initializer_range=0.3, **sizes)
    model = MistralForCausalLM(config).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return model, other


def _packed(folder: Path) -> tuple[Any, Any]:
    quantized = quantize(save_tiny(folder / "dense"), "int4-g32", folder / "int4").folder
    return load(folder / "dense"), load(quantized)


@pytest.mark.parametrize(("length", "stride"), [(33, None), (47, 19)])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int4", "sliding"])
def test_numbers_equal_those_of_full_logits(
    baseline, perturbed, tokenizer, text, tmp_path, kind: str, length: int, stride: int | None
) -> None:
    """Every window alone, in float32 over the stored weights; each token of the text counts where it is first seen."""
    pairs = {
        "float32": lambda: (baseline, perturbed),
        "bfloat16": lambda: tuple(copy.deepcopy(model).bfloat16() for model in (baseline, perturbed)),
        "int4": lambda: _packed(tmp_path),
        "sliding": _sliding,
    }
    one, other = pairs[kind]()
    windows = make_windows([text[:300]], tokenizer, source="t", length=length, stride=stride)
    found = compare(one, other, windows, dtype="auto", batch_size=3)
    dense = other.dequantize() if kind == "int4" else other
    plain = [copy.deepcopy(model).float() for model in (one, dense)]
    step, seen, losses, kl, same = stride or length - 1, 0, ([], []), [], []
    for number, row in enumerate(windows.ids):
        logs = [model(row[None]).logits[0].detach().double().log_softmax(-1) for model in plain]
        for place in range(1, length):
            if number * step + place > seen:
                seen = number * step + place
                p, q, token = logs[0][place - 1], logs[1][place - 1], row[place]
                for loss, each in zip(losses, (p, q), strict=True):
                    loss.append(-float(each[token]))
                kl.append(float((p.exp() * (p - q)).sum()))
                same.append(int(p.argmax()) == int(q.argmax()))
    assert found.divergence.tokens == len(kl) > 200
    perplexities = [math.exp(math.fsum(loss) / len(kl)) for loss in losses]
    assert found.perplexity.baseline.value == pytest.approx(perplexities[0], rel=1e-4)
    assert found.perplexity.quantized.value == pytest.approx(perplexities[1], rel=1e-4)
    assert found.divergence.kl.mean == pytest.approx(math.fsum(kl) / len(kl), rel=1e-4)
    assert found.divergence.kl.mean > 1e-5
    assert found.divergence.top1_agreement.value == pytest.approx(sum(same) / len(same), rel=1e-4)
