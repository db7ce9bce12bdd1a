"""The report object: JSON round trip, refusals, and that the documentation names every key."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from llmquant.errors import DataError
from llmquant.eval import result
from llmquant.eval.metrics import metrics
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.result import SCHEMA_VERSION, EvalReport, read_reports, to_json


def test_json_round_trip(report: EvalReport, tmp_path: Path) -> None:
    text = report.to_json()
    assert json.loads(text)["schema_version"] == SCHEMA_VERSION
    assert EvalReport.from_json(text) == report
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    assert EvalReport.load(tmp_path / "report.json") == report


def test_many_reports_are_read_with_one_validator_a_section(report: EvalReport, tmp_path: Path, monkeypatch) -> None:
    made: list[type] = []
    monkeypatch.setattr(result, "TypeAdapter", lambda kind: made.append(kind) or TypeAdapter(kind))
    (tmp_path / "many.json").write_text(to_json([report] * 3), encoding="utf-8")
    result._adapter.cache_clear()
    assert len(read_reports([tmp_path / "many.json"])) == 3
    result._adapter.cache_clear()
    assert len(made) == len(report.sections) + 1


def test_files_hold_one_report_or_several(report: EvalReport, tmp_path: Path) -> None:
    one, several, damaged = (tmp_path / name for name in ("one.json", "several.json", "damaged.json"))
    one.write_text(to_json([report]), encoding="utf-8")
    several.write_text(to_json([report, dataclasses.replace(report, name="other")]), encoding="utf-8")
    assert EvalReport.load(one) == report
    found = read_reports([one, several])
    assert [each.name for each in found] == [f"{report.name} (one)", f"{report.name} (several)", "other"]
    assert read_reports([several])[0] == report
    damaged.write_text("[1]", encoding="utf-8")
    for file in (damaged, tmp_path / "absent.json"):
        with pytest.raises(DataError, match=file.name):
            read_reports([one, file])


def test_reports_of_one_name_are_told_apart_by_file_folder_or_number(report: EvalReport, tmp_path: Path) -> None:
    for file in ("one/int8.json", "two/int8.json", "two/int4.json", "three/two/int8.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(dataclasses.replace(report, name="a").to_json(), encoding="utf-8")

    def names(*files: str) -> list[str]:
        return [each.name for each in read_reports([tmp_path / file for file in files])]

    assert names("one/int8.json", "two/int4.json") == ["a (int8)", "a (int4)"]
    assert names("one/int8.json", "two/int8.json") == ["a (one)", "a (two)"]
    assert names("two/int8.json", "three/two/int8.json") == ["a (1)", "a (2)"]
    assert names("two/int8.json", "two/int8.json") == ["a (1)", "a (2)"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("seed", "9" * 6001),
        ("seed", "-1"),
        ("baseline.parameters", "1" + "0" * 90 + "0" * 310),
        ("quantized.parameters", "0"),
        ("quantized.parameters", "1" + "0" * 100),
        ("protocol.scored_tokens", "0"),
        ("sections.divergence.kl.mean", "NaN"),
        ("sections.divergence.kl.mean", "-Infinity"),
        ("sections.divergence.kl.mean", "1e400"),
        ("sections.divergence.kl.mean", "1e308"),
        ("sections.windows", '{"tokens": [1, 2], "nll_quantized": [1.0]}'),
        ("sections.windows", '{"tokens": [1], "nll_quantized": [1.0], "kl": [0.0, 1.0]}'),
        ("sections.windows", "[" * 100 + "]" * 100),
    ],
)
def test_damaged_numbers_are_refused_with_file_and_field(report, place: str, value: str, tmp_path: Path) -> None:
    data = inner = json.loads(report.to_json())
    *path, last = place.split(".")
    for key in path:
        inner = inner[key]
    inner[last] = "PLACE"
    file = tmp_path / "damaged.json"
    file.write_text(json.dumps(data).replace('"PLACE"', value))
    with pytest.raises(DataError, match=f"damaged.json: .*{place}"):
        read_reports([file])


@pytest.mark.parametrize("text", ["3", "null", "{}", "[null]", "true"])
def test_what_is_no_report_is_called_so(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"x\.json: this is no report"):
        read_reports([tmp_path / "x.json"])
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(DataError, match=r"x\.json: the list holds no report"):
        read_reports([tmp_path / "x.json"])


def test_optional_parts_may_be_absent(report: EvalReport) -> None:
    bare = dataclasses.replace(report, recipe_yaml=None, sections={}, budget=(), kernels={})
    assert EvalReport.from_json(bare.to_json()) == bare
    assert bare.get(Divergence) is None
    assert bare.budget_passed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"surprise": 1}, "'surprise'"),
        ({"name": 3}, "'name'"),
        ({"sections": {"divergence": {}}}, r"sections\.divergence\."),
        (
            {"sections": {"kll": {}}},
            "a section of the metric 'kll', which is not installed here; there are .*divergence",
        ),
    ],
)
def test_malformed_reports_are_refused(report: EvalReport, change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        EvalReport.from_json(json.dumps({**json.loads(report.to_json()), **change}))


def test_unknown_key_inside_a_section_is_refused(report: EvalReport) -> None:
    data = json.loads(report.to_json())
    data["sections"]["divergence"]["kl"]["mode"] = 0.1
    with pytest.raises(DataError, match=r"sections\.divergence\.kl\.mode"):
        EvalReport.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema_version": "1"}'])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(DataError):
        EvalReport.from_json(text)


def _dataclasses_in(kind: object) -> set[type]:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        inner = [_dataclasses_in(hints[field.name]) for field in dataclasses.fields(kind)]
        return {kind}.union(*inner)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is not None:
        return set().union(*(_dataclasses_in(part) for part in typing.get_args(kind)))
    return set()


def test_documentation_names_every_key(repository: Path) -> None:
    """On the page, or, of a metric's own keys, in the docstring beside them."""
    text = (repository / "docs" / "evaluation.md").read_text(encoding="utf-8")
    kinds = {EvalReport, *(metric.section for metric in metrics())}
    kinds = set().union(*map(_dataclasses_in, kinds))
    assert len(kinds) >= 20
    missing = [
        f"{kind.__name__}.{field.name}"
        for kind in kinds
        for field in dataclasses.fields(kind)
        if f"`{field.name}`" not in text and f"{field.name}:" not in (kind.__doc__ or "")
    ]
    assert not missing
    assert f"schema version {SCHEMA_VERSION}" in text
