"""The page in a browser: on a telephone and a screen nothing sticks out, and charts can be read (pytest -m slow)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from llmquant.eval.metrics.tasks import Section as Tasks
from llmquant.eval.report import render_page
from llmquant.eval.result import EvalReport
from llmquant.eval.statistics import Estimate
from llmquant.eval.tasks.result import Document, Flips, Measure, Reply, Task

# Which elements end right of the window; it cannot be asked of a page without a script, so the test adds one.
_PROBE = """<script>
const wide = [...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  const end = e.closest("section")?.getBoundingClientRect().right ?? innerWidth;
  return box.width > 0 && (box.right > end + 1 || box.left < -1);
}).map(e => e.tagName + "." + e.className);
const small = [...document.querySelectorAll("svg text")].filter(e => {
  const to = e.getScreenCTM();
  return e.getBoundingClientRect().width > 0 && parseFloat(getComputedStyle(e).fontSize) * Math.hypot(to.a, to.b) < 9.5;
}).map(e => e.textContent);
document.title = JSON.stringify({inner: innerWidth, scroll: document.documentElement.scrollWidth, wide, small});
</script></body>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


@pytest.fixture(scope="module")
def page(report: EvalReport) -> str:
    """Twelve models with long names, and many tasks."""
    share, lost = Estimate(0.5, 0.4, 0.6), Estimate(-0.1, -0.2, 0.0)
    score = Measure("acc", "accuracy", share, share, lost, Flips(60, 30, 0.002))
    reply = Reply((), {})
    documents = (Document(0, "", reply, reply),) * 300
    tasks = tuple(Task(f"blimp_a_long_name_of_{n}", "1", "", 0, 0, (score,), (), documents) for n in range(7))
    whole = replace(report, sections={**report.sections, "tasks": Tasks("0", None, tasks, ())})
    return render_page([replace(whole, name=f"a-checkpoint-of-someone-int4-group-{place}") for place in range(12)])


def ask(browser: str, file: Path, *options: str) -> str:
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options, file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 768, 1000, 1280])
def test_nothing_is_wider_than_the_window(browser: str, page: str, tmp_path: Path, width: int) -> None:
    """In a frame of that width: a window of a desktop's browser cannot be narrower than 500 pixels."""
    inner = tmp_path / "page.html"
    inner.write_text(page.replace("</body>", _PROBE), encoding="utf-8")
    frame = tmp_path / "frame.html"
    copy = "<script>onload = () => document.title = frames[0].document.title</script>"
    frame.write_text(
        f'<!doctype html><iframe src="page.html" width="{width}" height="900" style="border:0"></iframe>{copy}'
    )
    shown = ask(browser, frame, "--allow-file-access-from-files", "--virtual-time-budget=10000", "--dump-dom")
    title = re.search("<title>(.*?)</title>", shown)
    assert title, shown[:500]
    found = json.loads(title[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert found["inner"] == width
    assert found["scroll"] <= width
    assert found["wide"] == []
    assert found["small"] == []
