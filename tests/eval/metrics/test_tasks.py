"""Two models' answers as a section of the report."""

from __future__ import annotations

import copy
import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmquant.data.windows import make_windows
from llmquant.errors import DataError, QuantizationError, RecipeError
from llmquant.eval import EvalOptions, EvalReport, Subject, evaluate
from llmquant.eval import tasks as package
from llmquant.eval.evaluate import hold
from llmquant.eval.metrics import find
from llmquant.eval.metrics.tasks import Options, Section, check, panels
from llmquant.eval.pair import Facts, pairs
from llmquant.eval.report import render_page
from llmquant.eval.statistics import Estimate
from llmquant.eval.table import render_table
from llmquant.eval.tasks import compare, harness
from llmquant.eval.tasks.harness import Answer
from llmquant.eval.tasks.load import load
from llmquant.eval.tasks.result import Document, Flips, Measure, Reply, Task
from tests.engine.conftest import byte_tokenizer, tiny_llama
from tests.eval.shown import parsed
from tests.eval.tasks.conftest import data, files

__all__ = ["data", "files"]  # fixtures
OTHERS = dict.fromkeys(("speed", "memory", "worst", "anatomy", "layers"), False)


def perturbed(model: Any, amount: float) -> Any:
    generator = torch.Generator().manual_seed(3)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * amount)
    return other


def measured(files: dict[str, str], *amounts: float, alone: bool = False, **options: Any) -> list[EvalReport]:
    """A tiny model, and copies with that much noise, compared with it or alone."""
    baseline, tokenizer = tiny_llama().float(), byte_tokenizer()
    windows = make_windows(["some text to score"] * 40, tokenizer, source="t", length=32, max_windows=8)
    wanted = {**OTHERS, "tasks": {"names": ["lambada", "piqa", "blimp"], "files": files}}
    asked = EvalOptions(**{"dtype": "checkpoint", "metrics": wanted, **options})
    facts = [
        Facts(
            subject=Subject(name=f"q{amount}", baseline_name=None if alone else "b"),
            windows=windows,
            tokenizer=tokenizer,
            options=asked,
        )
        for amount in amounts
    ]
    for each in facts:
        each.check()
    models = [perturbed(baseline, each) for each in amounts]
    return [evaluate(pair) for pair in pairs(facts, models[0] if alone else baseline, models)]


def value(found: Estimate | None) -> float:
    assert found
    return found.value


def test_the_baseline_answers_once_and_an_equal_model_alike(files, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = harness.ask
    monkeypatch.setattr(harness, "ask", lambda *args, who, **given: asked.append(who) or ask(*args, who=who, **given))
    same, other = measured(files, 0.0, 0.3)
    assert asked == ["baseline", "q0.0", "q0.3"]
    for task in same[Section].tasks:
        assert all(document.baseline == document.quantized for document in task.documents)
        for measure in task.measures:
            assert measure.baseline == measure.quantized
            assert value(measure.difference) == 0
            assert measure.flips in (None, Flips(0, 0, 1.0))
    changed = [
        abs(float(one) - float(two))
        for task in other[Section].tasks
        for document in task.documents
        for one, two in zip(responses(document), document.quantized.responses, strict=True)
        if isinstance(one, float) and isinstance(two, float)
    ]
    assert min(changed) > 0.01


def responses(document: Document) -> tuple[float | str | None, ...]:
    assert document.baseline
    return document.baseline.responses


def test_a_model_alone_has_accuracies_with_intervals(files) -> None:
    (compared,), (report,) = measured(files, 0.3), measured(files, 0.3, alone=True)
    assert EvalReport.from_json(report.to_json()) == report
    ours, theirs = report[Section], compared[Section]
    for one, other in zip((*ours.tasks, *ours.groups), (*theirs.tasks, *theirs.groups), strict=True):
        assert [each.quantized for each in one.measures] == [each.quantized for each in other.measures]
        assert all(each.baseline is each.difference is each.flips is None for each in one.measures)
    assert all(each.baseline is None for task in ours.tasks for each in task.documents)
    acc = next(task for task in ours.tasks if task.name == "piqa").measures[0].quantized
    low, high = acc.low, acc.high
    assert low is not None
    assert high is not None
    page = parsed(render_page([report])).text
    for shown in (" ".join(_drawn(report).split()), " ".join(page.split())):
        assert f"{100 * acc.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]" in shown
        assert " won" not in shown
        assert "wrong → right" not in shown
    with pytest.raises(RecipeError, match="the budget acc_drop is on a comparison"):
        measured(files, 0.3, alone=True, budget={"acc_drop": 1.0})


def test_report(files) -> None:
    (report,) = measured(files, 0.3, budget={"acc_drop": 100.0, "kl": 50.0})
    section = report[Section]
    assert EvalReport.from_json(report.to_json()) == report
    assert [row.name for row in section.rows] == ["blimp", "lambada_openai", "piqa"]
    assert [measure.name for measure in section.tasks[1].measures] == ["acc", "acc_norm"]
    (verdict,) = (each for each in report.budget if each.name == "acc_drop")
    assert verdict.measured == section.largest_drop.value
    group = section.groups[0]
    members = [task.measures[0] for task in section.tasks if task.name in group.members]
    assert group.measures[0].quantized.value == pytest.approx(sum(each.quantized.value for each in members) / 2)
    assert group.size == 5
    table, page = _drawn(report), parsed(render_page([report])).text
    for text in ("lambada_openai", "piqa", "blimp", "acc_norm", "perplexity"):
        assert text in table
        assert text in page
    assert "blimp_wh_island" in page
    assert "blimp_wh_island" not in table
    assert any("points, the worst of 3 tasks" in word for word in find("tasks").words(section, report))


def _drawn(report: EvalReport) -> str:
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as captured:
        console.print(render_table([report]))
    return captured.get()


def answers(*rights: int, losses: tuple[float, ...] | None = None) -> list[Answer]:
    losses = losses or (-1.0,) * len(rights)
    return [
        Answer(place, "h", (loss,), {"acc": right, "perplexity": loss})
        for place, (right, loss) in enumerate(zip(rights, losses, strict=True))
    ]


def test_numbers_of_a_task(files) -> None:
    loaded = load(("lambada",), files, ())
    before = answers(1, 1, 1, 0, 0, 1, 1, 1, 1, 1, losses=(-1.0, -2.0) * 5)
    after = answers(0, 0, 1, 1, 0, 1, 1, 1, 1, 1, losses=(-1.5, -2.5) * 5)
    ((task,), groups) = compare.compare(loaded, {"lambada_openai": before}, {"lambada_openai": after})
    accuracy, perplexity = task.measures
    assert not groups
    assert (value(accuracy.baseline), accuracy.quantized.value) == (0.8, 0.7)
    assert value(accuracy.difference) == pytest.approx(-0.1)
    assert accuracy.flips == Flips(2, 1, 1.0)
    assert value(perplexity.baseline) == pytest.approx(math.exp(1.5))
    assert perplexity.difference == Estimate(0.5, 0.5, 0.5, 0.0)
    assert task.documents[0].quantized.scores == {"acc": 0.0}
    assert task.documents[0].quantized.responses == (-1.5,)


def test_documents_that_are_not_finite_count_for_neither_model(files) -> None:
    loaded = load(("lambada",), files, ())
    before = {"lambada_openai": answers(1, 1, 0, losses=(-1.0, math.nan, -1.0))}
    after = {"lambada_openai": answers(1, 0, 0, losses=(math.inf, -1.0, -1.0))}
    ((task,), _) = compare.compare(loaded, before, after)
    assert (task.nonfinite, task.size) == (2, 1)
    assert value(task.measures[0].baseline) == 0
    assert [document.quantized.responses for document in task.documents] == [(None,), (-1.0,), (-1.0,)]
    with pytest.raises(QuantizationError, match="to none of 1 documents"):
        compare.compare(loaded, {"lambada_openai": answers(1)}, {"lambada_openai": answers(1, losses=(math.nan,))})


def test_other_measures(files) -> None:
    """Losses of words are weighed by their number; numbers have means; what belongs to no single document is named."""
    loaded = load(("lambada",), files, ())
    scores = [{"word_perplexity": (-2.0 * n, n), "rouge": n / 4, "f1": (1, 0)} for n in (1, 2, 4)]
    given = {"lambada_openai": [Answer(place, "h", ("text",), each) for place, each in enumerate(scores)]}
    ((task,), _) = compare.compare(loaded, given, given)
    assert {measure.name: measure.kind for measure in task.measures} == {
        "word_perplexity": "perplexity",
        "rouge": "mean",
    }
    assert value(task.measures[0].baseline) == pytest.approx(math.exp(2))
    assert value(task.measures[1].baseline) == pytest.approx(7 / 12)
    assert task.not_compared == ("f1",)


def test_the_largest_drop_is_of_the_row_that_lost_most() -> None:
    def row(name: str, change: float) -> Task:
        moved = Estimate(change, change - 0.01, change + 0.02, 0.005)
        score = Measure("acc", "accuracy", Estimate(0.5), Estimate(0.5 + change), moved, Flips(0, 0, 1.0))
        return Task(name, "1", "multiple_choice", 0, 0, (score,), (), ())

    section = Section("0", None, (row("a", 0.01), row("b", -0.03)), ())
    drop = section.largest_drop
    assert (drop.value, drop.low, drop.high) == pytest.approx((3, 1, 4))
    assert drop.standard_error == pytest.approx(0.5)
    for limit, passed, certain in ((2.9, False, False), (3.1, True, False), (0.9, False, True), (4.1, True, True)):
        (held,) = hold({"acc_drop": limit}, {"tasks": section})
        assert (held.passed, held.certain) == (passed, certain), limit
    with pytest.raises(RecipeError, match="none of the tasks has an accuracy"):
        _ = Section("0", None, (), ()).largest_drop


def test_flips_of_all_candidates_are_on_the_page_in_one_scale_and_in_words() -> None:
    def row(name: str, lost: int, won: int, p: float) -> Task:
        score = Measure("acc", "accuracy", Estimate(0.5), Estimate(0.5), Estimate(0.0), Flips(lost, won, p))
        reply = Reply((), {})
        return Task(name, "1", "", 0, 0, (score,), (), tuple(Document(i, "", reply, reply) for i in range(100)))

    def of(name: str, *rows: Task) -> Any:
        return SimpleNamespace(name=name, baseline=True, get=lambda _: Section("0", None, rows, ()))

    reports = [of("one", row("t", 30, 10, 0.002), row("u", 4, 4, 1.0)), of("two", row("t", 3, 5, 0.73))]
    (panel,) = panels([*reports, of("same", row("u", 0, 0, 1.0))])
    shown = parsed(panel.content)
    for said in (
        "one: more lost, not by chance (p 0.0020) ",
        "two: more won, which may be chance (p 0.73) ",
        "one: as many lost as won ",
        "same: no answer changed ",
    ):
        assert said in shown.text
    labels = [value for name, value in shown.attributes if name == "aria-label"]
    assert labels == [
        "one: 30 of 100 lost, 10 won; two: 3 of 100 lost, 5 won",
        "one: 4 of 100 lost, 4 won; same: 0 of 100 lost, 0 won",
    ]
    widths = re.findall(r'<path d="M ([\d.]+) [\d.]+ L ([\d.]+) [^"]*" style="fill:var\(--bad\)', panel.content)
    lost = [abs(float(a) - float(b)) for a, b in widths]
    assert lost[0] == pytest.approx(30 / 4 * lost[2], rel=0.05)  # across charts
    nothing: Any = SimpleNamespace(name="x", baseline=True, get=lambda _: None)
    assert panels([nothing]) == []


def test_what_cannot_run_is_refused_before_models_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Any = None
    with pytest.raises(DataError, match="needs the names of tasks"):
        check(nothing, Options())
    with pytest.raises(DataError, match="limit 0; at least 1"):
        Options(names=("piqa",), limit=0)
    with pytest.raises(DataError, match="metric 'tasks': names"):
        EvalOptions(metrics={"tasks": {"names": "piqa"}})
    monkeypatch.setattr(package, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"pip install 'llmquant\[eval\]'"):
        check(nothing, Options(names=("piqa",)))
