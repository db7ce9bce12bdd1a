"""The page and the table: every number is there, everything is escaped, nothing comes from outside."""

from __future__ import annotations

import dataclasses
import re

import pytest
from rich.console import Console

from llmquant.errors import DataError
from llmquant.eval.lines import change
from llmquant.eval.markup import breakable, element
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.memory import Section as Memory
from llmquant.eval.metrics.perplexity import Section as Perplexity
from llmquant.eval.metrics.speed import Section as Speed
from llmquant.eval.metrics.worst import Section as Worst
from llmquant.eval.metrics.worst import visible
from llmquant.eval.report import render_page
from llmquant.eval.result import BudgetVerdict, EvalReport
from llmquant.eval.statistics import Estimate
from llmquant.eval.table import render_table
from llmquant.words import bytes_text, number, percent, printable
from tests.eval.conftest import change as changed
from tests.eval.shown import parsed, printed


@pytest.fixture(scope="module")
def other(report: EvalReport) -> EvalReport:
    kl = dataclasses.replace(report[Divergence].kl, mean=0.0, low=0.0, high=0.0, standard_error=0.0)
    same = changed(report, divergence={"kl": kl}, perplexity={"verdict": "identical"})
    return dataclasses.replace(same, name="int8")


def test_page_holds_every_number(report: EvalReport, other: EvalReport) -> None:
    text = parsed(render_page([report, other])).text
    divergence, memory, perplexity = report[Divergence], report[Memory].quantized, report[Perplexity]
    kl, speed = divergence.kl, report[Speed].quantized.cells[0]
    before_loss = perplexity.baseline
    assert before_loss
    before = report[Speed].rows[0].cells[0].speed("decode")
    expected = [
        bytes_text(memory.checkpoint_bytes),
        number(memory.bits_per_weight),
        number(before_loss.value, 4),
        number(perplexity.quantized.value, 4),
        number(perplexity.quantized.low),
        number(perplexity.quantized.high),
        number(kl.mean),
        number(kl.standard_error, 2),
        number(kl.median),
        number(kl.p90),
        number(kl.p99),
        number(kl.p999),
        number(kl.max),
        percent(divergence.top1_agreement.value),
        "0.500",  # of lm_head, outside the blocks
        number(speed.speed("prefill").median),
        number(speed.speed("decode").median),
        f"{number(before.median)} → {number(speed.speed('decode').median)} tok/s",
        f"{len(speed.decode)} rounds",
        "of float32, the checkpoint's",
        "the fastest",
        str(divergence.flips.right_to_wrong),
        report.protocol.data_hash,
        report.machine["cpu"],
        report.versions["torch"],
        "loss by linear_int4: avx2, exact (14 layers); speed by linear_int4: avx2, fast (14 layers)",
        "ran in accuracy “exact”",
        "ran in accuracy “fast”",
        "0.5",
        "16 kB",
        number(report[Worst].tokens[0].kl),
        "tiny & random",
        "KL",
        "✗",
        "✓",
        "noise.txt",
        "identical",
        "computed in float32",
        f"{report.protocol.windows} windows of 40 tokens",
    ]
    assert [value for value in expected if str(value) not in text] == []


def test_page_is_self_contained_and_escaped(report: EvalReport) -> None:
    worst = dataclasses.replace(
        report[Worst].tokens[0], token='<img src=x onerror="a()">', context="</td></svg><script>x()"
    )
    losses = {'a.0."><b>': 0.1, "model.layers.1.x": 0.2}
    nasty = changed(report, worst={"tokens": (worst,)}, layers={"losses": losses})
    page = render_page([nasty])
    checker = parsed(page)
    assert not checker.tags & {"script", "img", "link", "iframe", "object", "b>"}
    assert '<img src=x onerror="a()">' in checker.text
    assert "<script>alert(1)</script>" in checker.text
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page)
    names = {name for name, _ in checker.attributes}
    assert not {name for name in names if name.startswith("on") or name == "src"}
    assert all(value is not None and value.startswith("#note-") for name, value in checker.attributes if name == "href")


def test_print_unfolds_and_cuts_nothing(report: EvalReport) -> None:
    """On paper nobody unfolds or scrolls; and every cell of a narrow page says which column it is of."""
    page = render_page([report])
    printed = page.partition("@media print {")[2]
    assert "details::details-content { content-visibility: visible" in printed
    assert "overflow-x" not in page
    cells = re.findall(r"<td([^>]*)>", page)
    assert cells
    assert all("data-label=" in cell for cell in cells)


def test_the_candidate_that_the_verdict_names_is_marked(report: EvalReport, other: EvalReport) -> None:
    over = dataclasses.replace(report, budget=(BudgetVerdict("kl", 0.01, 0.02, passed=False, certain=True),))
    keeps = dataclasses.replace(other, budget=(BudgetVerdict("kl", 0.01, 0.0, passed=True, certain=True),))
    for reports in ([over, keeps], [keeps, over]):
        page = render_page(reports)
        assert "int8 wins: only it keeps its budget" in page
        labels = re.findall(r'aria-label="(mean KL, nats against [^"]*)"', page)
        assert labels
        assert all(re.findall("([^ ]+) [^ ]+, [^ ]+, the winner", label) == ["int8"] for label in labels)
        assert "Ringed: the winner." in page
    assert "Ringed" not in render_page([over, over])


def test_page_of_many_models_stays_small(report: EvalReport) -> None:
    losses = {f"model.layers.{block}.{kind}": 0.01 + block for block in range(32) for kind in "qkvogud"}
    one = changed(report, layers={"losses": losses})
    page = render_page([dataclasses.replace(one, name=f"a-checkpoint-of-someone-int4-{place}") for place in range(12)])
    assert len(page.encode()) < 1_500_000


def test_footnote_links_lead_somewhere(report: EvalReport) -> None:
    attributes = parsed(render_page([report])).attributes
    targets = {value for name, value in attributes if name == "id"}
    links = {(value or "")[1:] for name, value in attributes if name == "href"}
    assert links
    assert links <= targets


def test_footnotes_are_numbered_without_a_gap(report: EvalReport) -> None:
    """What was not measured has no number, and stands last."""
    bare = dataclasses.replace(report, sections={k: v for k, v in report.sections.items() if k != "speed"})
    for shown in (report, bare):
        page = render_page([shown])
        seen = parsed(page)
        links = [int(str(value)[6:]) for name, value in seen.attributes if name == "href"]
        notes = [value for name, value in seen.attributes if name == "id" and str(value).startswith("note-")]
        assert sorted(set(links)) == list(range(1, len(notes) + 1))
        assert links == sorted(links)
        assert ("Speed was not measured." in page.rpartition("</ol>")[2]) == (shown is bare)
        assert ("Speed was not measured." in page) == (shown is bare)


@pytest.mark.parametrize(
    ("kernel", "said"), [("linear_int4: avx2, exact", True), ("linear_int4: reference, avx2 unpack", False)]
)
def test_a_loss_without_kernels_names_no_accuracy(report: EvalReport, kernel: str, said: bool) -> None:
    sections = {k: v for k, v in report.sections.items() if k != "speed"}
    page = render_page(
        [dataclasses.replace(report, kernels={kernel: 14, "embedding_int8: avx2 unpack": 1}, sections=sections)]
    )
    assert ("The kernels of packed layers ran in accuracy “exact”" in page) == said


def test_page_of_a_bare_report(report: EvalReport) -> None:
    kept = {name: section for name, section in report.sections.items() if name in ("divergence", "perplexity")}
    bare = dataclasses.replace(report, recipe_yaml=None, kernels={}, sections=kept, budget=())
    text = parsed(render_page([bare])).text
    assert "Loss by token" in text
    assert not [title for title in ("Loss against size", "Where the bytes are", "tok/s", "Recipes") if title in text]


def test_no_praise_and_no_colour_for_noise(report: EvalReport) -> None:
    ahead = Estimate(0.999, 0.9985, 0.9995, 0.0003)
    shown = changed(report, perplexity={"ratio": ahead, "verdict": "no measurable loss"})
    page = render_page([dataclasses.replace(shown, budget=())])
    assert ">no measurable loss<" in page
    assert "badge good" not in page


NASTY = ["[/x]", "[red]x[/red]", "a\\", "[link=file:///x]y", ":smile:", "\x1b[2J", "[bold", "\ud800"]


@pytest.mark.parametrize("name", NASTY)
def test_names_from_outside_are_plain_text(report: EvalReport, name: str) -> None:
    protocol = dataclasses.replace(report.protocol, source=name)
    assert report.baseline
    baseline = dataclasses.replace(report.baseline, name=name)
    nasty = dataclasses.replace(report, name=name, protocol=protocol, baseline=baseline, loss_note=name)
    shown = printed([nasty])
    assert printable(name) in shown
    assert "\x1b[2J" not in shown
    assert "<main>" in render_page([nasty])


def test_table_loses_no_word_in_80_columns(report: EvalReport) -> None:
    assert report.baseline
    baseline = dataclasses.replace(report.baseline, name="smollm2-135m")
    kl = dataclasses.replace(report[Divergence].kl, mean=0.228, standard_error=0.011)
    wide = changed(report, divergence={"kl": kl}, perplexity={"verdict": "large loss"})
    shipped = {name: wide.sections[name] for name in ("memory", "perplexity", "divergence", "speed")}
    text = printed([dataclasses.replace(wide, baseline=baseline, sections=shipped)], width=80)
    assert "…" not in text
    assert "large loss" in " ".join(text.split())


def test_reports_of_other_texts_do_not_mix(report: EvalReport) -> None:
    other = dataclasses.replace(report, protocol=dataclasses.replace(report.protocol, data_hash="sha256:0"))
    with pytest.raises(DataError, match="evaluate both on the same text"):
        render_page([report, other])
    with pytest.raises(DataError, match="no evaluation"):
        render_table([])


def test_table_has_a_row_per_model(report: EvalReport, other: EvalReport) -> None:
    console = Console(width=200, record=True, force_terminal=False)
    with console.capture() as capture:
        console.print(render_table([report, other]))
    text = capture.get()
    beneath = text[text.index("int4-<b>test</b>") :].splitlines()[1]
    assert beneath.startswith("over budget: kl")  # of the model, not of the column that is last
    assert text.index("tiny & random") < text.index("int4-<b>test</b>") < text.index("int8")
    for value in (number(report[Divergence].kl.mean), number(report[Perplexity].quantized.value, 4), "over budget: kl"):
        assert value in text
    assert "int4-<b>test</b>: loss by linear_int4: avx2, exact (14 layers); speed by linear_int4: avx2, fast" in text


def test_verdict_line(report: EvalReport) -> None:
    line = report.sentence()
    for part in (
        "32.0 bits per weight",
        "1.00x smaller",
        f"KL {number(report[Divergence].kl.mean)} ± ",
        "in float32",
        "of float32 (the checkpoint's",
        "budget FAILED (kl)",
        f"({report[Perplexity].verdict}), KL",  # without its size, which stands before it
    ):
        assert part in line
    kl = dataclasses.replace(report[Divergence].kl, mean=0.1, standard_error=None, note="too little text: 4 windows")
    short = changed(report, divergence={"kl": kl})
    assert "KL 0.100 (too little text) in float32" in short.sentence()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12.34, "12.3"),
        (1234.5, "1234"),
        (0.00012345, "0.000123"),
        (1.23e-7, "1.23e-7"),
        (5e7, "5.00e7"),
        (None, "–"),
        (100.0, "100"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_small_texts() -> None:
    assert [bytes_text(size) for size in (None, 999, 1000, 999_499, 999_500, 8_393_216)] == [
        "–",
        "999 B",
        "1 kB",
        "999 kB",
        "1 MB",
        "8.39 MB",
    ]
    assert change(Estimate(1.021, 1.019, 1.024)) == "+2.1 % [+1.9, +2.4]"
    assert change(Estimate(0.9995)) == "-0.050 %"
    assert [visible(text) for text in (" a\n", "\n\n", "", "b c")] == ["␣a↵", "↵↵", "(empty)", "b c"]
    assert breakable("a.b_c<-") == "a.<wbr>b_<wbr>c&lt;-<wbr>"
    assert element("p", '<&"', class_="x", data_y="'") == '<p class="x" data-y="&#x27;">&lt;&amp;&quot;</p>'


@pytest.mark.parametrize(
    ("tokens", "said", "short"),
    [
        (0, "no BOS token", "BOS no"),
        (1, "each begins with the BOS token", "BOS yes"),
        (2, "each begins with the 2 tokens that the tokenizer puts in front of a text", "BOS yes"),
    ],
)
def test_what_each_window_begins_with(report: EvalReport, tokens: int, said: str, short: str) -> None:
    other = dataclasses.replace(report, protocol=dataclasses.replace(report.protocol, prefix_tokens=tokens))
    assert said in " ".join(parsed(render_page([other])).text.split())
    console = Console(width=200)
    with console.capture() as shown:
        console.print(render_table([other]))
    assert short in " ".join(shown.get().split())
