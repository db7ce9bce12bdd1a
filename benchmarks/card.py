"""Everything that a GPU is needed for, in one call of at most nine minutes and one JSON file.

    python benchmarks/card.py --json card.json [--vllm-library PATH]
    python benchmarks/card.py --dry-run

The tests of the GPU kernels and all others that need a GPU; every kernel of ours checked and timed beside its peers
(`python -m llmquant.kernels.bench`); decode and prefill of an 8B-shaped Llama (benchmarks/decode.py). Each is a process
of its own, which is ended where its time is over; the file is written after each. The exit code is 1 if one failed.
--dry-run needs no GPU: a few tests, tiny kernels and models in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 535.0  # for everything, starting processes included
_TAIL = 4000  # characters of what a stage printed


@dataclass(frozen=True)
class Stage:
    """One process."""

    name: str  # a key of the result
    command: tuple[str, ...]  # for Python, without its own file; the last word is the file it writes
    seconds: float  # after which it is ended; it should end by itself before


def stages(folder: Path, dry: bool, vllm_library: str | None) -> list[Stage]:
    """What to do, what matters most first; the files lie in `folder`."""
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    kernels = ("-m", "llmquant.kernels.bench")
    if dry:
        tests = (*pytest, "tests/kernels/gpu/test_counters.py")
        kernels += ("--device", "dry", "--quick")
        decode = ("benchmarks/decode.py", "--dry-run")
        gpu = ()
    else:
        tests = (*pytest, "-m", "not slow and not bench and not clients", "tests/kernels/gpu")
        gpu = (*pytest, "-m", "gpu", "--ignore", "tests/kernels/gpu", "tests")
        kernels += ("--device", "cuda", "--budget", "190")
        kernels += ("--vllm-library", vllm_library) if vllm_library else ()
        decode = ("benchmarks/decode.py", "--random", "8b", "--device", "cuda", "--seconds", "12", "--budget", "125")
    made = [
        Stage("tests_kernels", (*tests, "--junitxml", str(folder / "tests_kernels.xml")), 110),
        Stage("kernels", (*kernels, "--json", str(folder / "kernels.json")), 210),
        Stage("decode", (*decode, "--json", str(folder / "decode.json")), 150),
    ]
    return [*made, Stage("tests_gpu", (*gpu, "--junitxml", str(folder / "tests_gpu.xml")), 60)] if gpu else made


def run(made: list[Stage], path: Path | None, seconds: float) -> dict[str, Any]:
    """Run stages one after the other, in so many seconds, and write the result after each."""
    end = time.monotonic() + seconds
    result: dict[str, Any] = {"stages": []}
    for stage in made:
        began = time.monotonic()
        code, tail = _process(stage.command, min(stage.seconds, end - began))
        took = round(time.monotonic() - began, 1)
        print(f"{stage.name}: {'ok' if code == 0 else f'exit code {code}'} ({took} s)\n{tail}", flush=True)
        result["stages"].append({"name": stage.name, "exit": code, "seconds": took, "output": tail})
        result[stage.name] = _read(Path(stage.command[-1]))
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _process(command: tuple[str, ...], seconds: float) -> tuple[int | None, str]:
    """Exit code of a Python process, None where its time was over, and the end of what it printed."""
    if seconds <= 0:
        return None, "no time left"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        code: int | None = None
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started
        process.wait()
        said.seek(0)
        return code, said.read()[-_TAIL:]


def _read(path: Path) -> Any:
    """What a stage wrote: JSON, or counts and failures out of JUnit's XML; None where it is missing."""
    if not path.is_file():
        return None
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    (suite,) = ElementTree.parse(path).getroot().iter("testsuite")
    failed = [
        {"test": f"{case.get('classname')}.{case.get('name')}", "said": (problem.get("message") or "")[:500]}
        for case in suite.iter("testcase")
        for problem in case
        if problem.tag in ("failure", "error")
    ]
    return {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")} | {"failed": failed}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="everything that a GPU is needed for, in nine minutes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--vllm-library", metavar="PATH", help="vLLM's _C_stable_libtorch.abi3.so, for Marlin")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(stages(Path(folder), args.dry_run, args.vllm_library), args.json, SECONDS)
    sys.exit(0 if all(stage["exit"] == 0 for stage in result["stages"]) else 1)


if __name__ == "__main__":
    main()
