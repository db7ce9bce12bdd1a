"""The card: metadata that the hub's own classes read, and the numbers of the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from llmquant.engine.output.folder import read_provenance
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.perplexity import Section as Perplexity
from llmquant.hub.card import Base, make_card

BASE = Base("org/base", True, {"license": "mit", "language": ["en", "de"], "pipeline_tag": "text-generation"})
READERS = {"llmquant": True, "transformers": True, "vLLM on GPU": True, "vLLM on CPU": False}


def test_the_metadata_are_what_the_hub_expects(finished: Path, report) -> None:
    text = str(make_card("me/mine", read_provenance(finished), BASE, [report], READERS))
    data = ModelCardData(**ModelCard(text).data.to_dict())
    inherited = {
        "base_model": "org/base",
        "base_model_relation": "quantized",
        "license": "mit",
        "language": ["en", "de"],
    }
    assert inherited.items() <= data.to_dict().items()
    assert {"llmquant", "compressed-tensors", "int4", "4-bit", "w4a16"} <= set(data.tags or [])
    found = {each["name"]: each["value"] for each in data.to_dict()["model-index"][0]["results"][0]["metrics"]}
    assert found == {
        "Perplexity": report[Perplexity].quantized.value,
        "KL(base || this)": report[Divergence].kl.mean,
        "Top-1 agreement": report[Divergence].top1_agreement.value,
    }


def test_the_text_has_the_numbers_with_how_they_were_measured(finished: Path, report) -> None:
    text = str(make_card("me/mine", read_provenance(finished), BASE, [report], READERS))
    for word in (
        f"{report[Perplexity].quantized.value:#.4g}", f"{report.protocol.scored_tokens:,} tokens", "text.txt |",
        "bits per weight", 'llmquant.load("me/mine")', "vllm serve me/mine", "Not for vLLM on CPU", "scheme: int4-g32",
    ):  # fmt: skip
        assert word in text
    assert str(finished.parent) not in text


def test_without_a_report_it_says_so_and_claims_nothing(finished: Path) -> None:
    card = make_card("me/mine", read_provenance(finished), Base("model", False), [], {"llmquant": True})
    assert "Not measured." in card.text
    assert not {"model-index", "base_model"} & card.data.to_dict().keys()
    assert "vllm" not in card.text


def test_ones_own_words_stand_in_front(finished: Path) -> None:
    card = make_card("me/mine", read_provenance(finished), BASE, [], READERS, own_text="# Mine\n\nHello.")
    assert card.text.lstrip().startswith("# Mine\n\nHello.")


def test_names_from_outside_break_no_table(finished: Path, report) -> None:
    odd = replace(report, protocol=replace(report.protocol, source="a|b\n`c`.txt"))
    assert "| a\\|b 'c'.txt |" in make_card("me/mine", read_provenance(finished), BASE, [odd], READERS).text
