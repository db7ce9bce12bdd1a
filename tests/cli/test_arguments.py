"""What verbs share."""

from __future__ import annotations

import io
import sys

import pytest

from llmquant.cli.arguments import STDOUT, write_json


def test_json_is_utf_8_whatever_the_terminal_can(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="replace"))
    write_json(STDOUT, '"mod\u00e8l"')
    assert written.getvalue().decode("utf-8") == '"mod\u00e8l"'
