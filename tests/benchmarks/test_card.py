"""benchmarks/card.py: its dry run as a whole, and stages that fail or hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_dry_run(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'llmquant[gpu]'")
    path = tmp_path / "new" / "card.json"
    done = subprocess.run(
        [sys.executable, str(repository / "benchmarks" / "card.py"), "--dry-run", "--json", str(path)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(path.read_text())
    assert [(stage["name"], stage["exit"]) for stage in result["stages"]] == [
        ("tests_kernels", 0), ("kernels", 0), ("decode", 0),
    ]  # fmt: skip
    tests = result["tests_kernels"]
    assert tests["tests"] > tests["skipped"]
    assert (tests["failures"], tests["failed"]) == (0, [])
    (run,) = result["kernels"]["runs"]
    assert (run["left_out"], run["failures"], run["crashes"], run["fallbacks"]) == ([], [], [], {})
    assert {(row["kernel"], row["mode"], row["m"]) for row in run["rows"]} == {
        (kernel, mode, m)
        for kernel, mode in (("torch dense", "fp16"), ("llmquant", "exact"), ("llmquant", "fast"))
        for m in (1, 5)
    }
    assert all(row["error"] < 1e-2 and "us" not in row for row in run["rows"])
    decode = result["decode"]
    assert decode["failures"] == []
    assert all(check["ok"] for check in decode["checks"])
    (report,) = decode["reports"]
    assert {(row["name"], row["accuracy"], row["static"]) for row in report["rows"]} == {
        (*each, static)
        for each in (("fp16", None), ("int4-g128", "exact"), ("int4-g128", "fast"))
        for static in (False, True)
    }
    kernels = {row["accuracy"]: list(row["kernels"]) for row in report["rows"]}
    assert kernels["exact"] == ["linear_int4: interpreter triton, exact"]


def test_a_real_run_fits_nine_minutes(part: Any, tmp_path: Path) -> None:
    card = part("card")
    stages = card.stages(tmp_path, dry=False, vllm_library="marlin.so")
    assert [stage.name for stage in stages] == ["tests_kernels", "kernels", "decode", "tests_gpu"]
    assert sum(stage.seconds for stage in stages) <= card.SECONDS <= 540
    (kernels,) = (stage.command for stage in stages if stage.name == "kernels")
    assert "marlin.so" in kernels


def test_a_stage_that_fails_or_hangs_costs_no_other(part: Any, tmp_path: Path) -> None:
    card = part("card")
    test, report, path = tmp_path / "test_it.py", tmp_path / "it.xml", tmp_path / "card.json"
    test.write_text("def test_good(): pass\ndef test_bad(): assert 1 == 2, 'one is not two'\n")
    written = tmp_path / "good.json"
    began = time.monotonic()
    result = card.run(
        [
            card.Stage("hangs", ("-c", "import time; print('begun', flush=True); time.sleep(60)", "missing.json"), 1.5),
            card.Stage("tests", ("-m", "pytest", "-q", str(test), "--junitxml", str(report)), 60),
            card.Stage("good", ("-c", "import sys; open(sys.argv[1], 'w').write('{\"a\": 1}')", str(written)), 60),
        ],
        path,
        seconds=200,
    )
    assert time.monotonic() - began < 60
    assert json.loads(path.read_text()) == result
    assert [stage["exit"] for stage in result["stages"]] == [None, 1, 0]
    assert result["stages"][0]["output"] == "begun\n"
    assert (result["hangs"], result["good"]) == (None, {"a": 1})
    assert (result["tests"]["tests"], result["tests"]["failures"]) == (2, 1)
    (failed,) = result["tests"]["failed"]
    assert failed["test"].endswith("test_bad")
    assert "one is not two" in failed["said"]
    late = card.run([card.Stage("late", ("-c", "1", "x.json"), 60)], None, seconds=0)
    assert late["stages"][0]["exit"] is None
