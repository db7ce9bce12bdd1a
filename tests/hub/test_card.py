"""The card: metadata that the hub's own classes read, and the numbers of the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from llmquant.engine.output.folder import read_provenance
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.perplexity import Section as Perplexity
from llmquant.hub.card import Base, OwnCard, make_card

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


def test_a_trained_model_says_on_what_and_what_it_brought(finished: Path) -> None:
    training = {
        "text": "text.txt", "sha256": "sha256:0123456789abcdef", "tokens": 20480, "steps": 10, "best_step": 8,
        "loss_before": 0.0625, "loss_after": 0.0573,
    }  # fmt: skip
    card = make_card("me/mine", read_provenance(finished) | {"training": training}, BASE, [], READERS)
    assert (
        "Trained on 20,480 tokens of `text.txt` (`sha256:0123456789ab`), of 10 steps as it was after 8: loss on "
        "held-out text 0.0625 before, 0.0573 after." in card.text
    )
    assert "qat" in card.data.to_dict()["tags"]


def test_ones_own_words_stand_in_front(finished: Path) -> None:
    card = make_card(
        "me/mine",
        read_provenance(finished),
        BASE,
        [],
        READERS,
        own=OwnCard({"license": "gpl-3.0", "tags": ["mine"]}, "# Mine\n\nHello."),
    )
    assert card.text.lstrip().startswith("# Mine\n\nHello.")
    assert card.data.to_dict()["license"] == "gpl-3.0"
    assert {"mine", "int4"} <= set(card.data.to_dict()["tags"])


@pytest.mark.parametrize(
    ("content", "data", "text"),
    [
        ("# Only text", {}, "# Only text"),
        ("---\nlicense: mit\nlanguage: [de]\n---\n# A", {"license": "mit", "language": ["de"]}, "# A"),
        ("---\r\nlicense: mit\r\n---\r\n# A", {"license": "mit"}, "# A"),
        ("---\nlicense: {a: b}\nlanguage: no\npipeline_tag: [x]\nmodel-index: 5\n---\n", {}, ""),
        ("---\n---\n# A", {}, "# A"),
        ("---\nnever closed", {}, "---\nnever closed"),
    ],
)
def test_of_a_card_what_can_be_inherited_is_read(content: str, data: dict[str, object], text: str) -> None:
    assert OwnCard.parse(content) == OwnCard(data, text)


@pytest.mark.parametrize("front", ["license: [a", "- a\n- b", "word", "a: !!python/object:os.system {}"])
def test_metadata_that_are_none_are_an_error(front: str) -> None:
    with pytest.raises(ValueError, match="its metadata are no"):
        OwnCard.parse(f"---\n{front}\n---\n# A")


def test_names_from_outside_break_no_table(finished: Path, report) -> None:
    odd = replace(report, protocol=replace(report.protocol, source="a|b\n`c`.txt"))
    assert "| a\\|b 'c'.txt |" in make_card("me/mine", read_provenance(finished), BASE, [odd], READERS).text
