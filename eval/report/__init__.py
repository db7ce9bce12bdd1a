"""One self-contained HTML page from one or several evaluations."""

from __future__ import annotations

from llmquant.eval.report.page import render_page

__all__ = ["render_page"]
