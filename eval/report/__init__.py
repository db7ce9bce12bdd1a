"""One self-contained HTML page from one or several evaluations."""

from __future__ import annotations

from llmquant.eval.report.page import document, render_page

__all__ = ["document", "render_page"]
