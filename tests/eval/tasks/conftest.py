"""Small files of the three tasks, made by hand."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

LAMBADA = ["a cat sat on a mat", "the dog ran to the\n\nbig barn", "no one knew the way home", "two and two are four"]
PIQA = [("Open a jar.", "turn the lid", "eat the lid"), ("Dry a dish.", "use soup", "use a cloth")]
BLIMP = {
    "adjunct_island": [("Who should he hug?", "Who should hug he?"), ("What did we see?", "What we did see?")],
    "wh_island": [("she sleeps.", "she sleep."), ("they run.", "they runs."), ("we are.", "we is.")],
}


def lines(rows: Iterable[Any]) -> str:
    """As .jsonl."""
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lambada.jsonl, piqa/ with labels beside, blimp.tar.xz."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "lambada.jsonl").write_text(lines({"text": text} for text in LAMBADA))
    (folder / "piqa").mkdir()
    questions = [dict(zip(("goal", "sol1", "sol2"), row, strict=True)) for row in PIQA]
    (folder / "piqa" / "valid.jsonl").write_text(lines(questions))
    (folder / "piqa" / "valid-labels.lst").write_text("0\n1\n")
    with tarfile.open(folder / "blimp.tar.xz", "w:xz") as archive:
        for name, pairs in BLIMP.items():
            text = lines({"sentence_good": good, "sentence_bad": bad, "UID": name} for good, bad in pairs).encode()
            member = tarfile.TarInfo(f"data/{name}.jsonl")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return folder


@pytest.fixture(scope="session")
def files(data: Path) -> dict[str, str]:
    """By name of task."""
    return {name: str(data / file) for name, file in FILES.items()}


FILES = {"lambada": "lambada.jsonl", "piqa": "piqa", "blimp": "blimp.tar.xz"}
