"""Starts the measuring process, writes down what it tells, and starts another one where it dies or hangs.

Results are written after every cell, all of them or nothing, so that whoever ends this process loses nothing.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmquant.kernels.bench import gpu_facts
from llmquant.kernels.bench.gpu_cases import Plan, cells
from llmquant.kernels.bench.gpu_kernel import OURS
from llmquant.kernels.bench.gpu_rows import failures
from llmquant.kernels.bench.gpu_sweep import SWEEP

Result = dict[str, Any]

_MOST_STARTS = 8
_SILENCE = 100.0  # seconds without a word after which a process counts as hung
_SILENCE_TUNING = 400.0
_GRACE = 15.0  # after the budget
_CLOCKS_EVERY = 20.0
_START = "start of the measuring process"


class Watch:
    """A run under way.

    Args:
        plan: of the run.
        result: facts that are known before; completed with everything that is told.
        path: where to write the result; None for nowhere.
        command: starts a measuring process, which reads its task from standard input.
        silence: seconds without a word after which it counts as hung; None for what the plan calls for.
    """

    def __init__(
        self, plan: Plan, result: Result, path: Path | None, command: list[str], silence: float | None = None
    ) -> None:
        self.plan, self.result, self.path, self.command = plan, result, path, command
        self.silence = silence or (_SILENCE_TUNING if plan.tune_peers else _SILENCE)
        self.began = time.time()
        self.deadline = self.began + plan.budget
        self.done: set[str] = set()
        self.excluded: set[str] = set()
        self._rows: dict[tuple[str, str, int], Any] = {}
        self._step = ""
        result |= {"peers": {}, "ceilings": [], "sweep": [], "rows": [], "crashes": [], "complete": False}
        self._failures: list[str] = []

    def run(self) -> Result:
        """Measure until everything is done, or the time is over."""
        for _ in range(_MOST_STARTS):
            reason = self._process()
            if reason is None:
                break
            self._exclude(reason)
            if self._step == _START or time.time() > self.deadline - _GRACE:
                break
        self._write()
        return self.result

    def _process(self) -> str | None:
        """One measuring process, to its end; why it ended too early, if it did."""
        wrong = {case["form"] for case in self.result["sweep"] if case["wrong"]}
        task = {
            "plan": self.plan.plain(), "deadline": self.deadline, "done": sorted(self.done),
            "excluded": sorted(self.excluded), "wrong": sorted(wrong),
        }  # fmt: skip
        self._step = _START
        # A group of its own, which ends with all its compilers; not a session, which might outlive this process.
        process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=os.setpgrp
        )
        assert process.stdin
        process.stdin.write(json.dumps(task))
        process.stdin.close()
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
        reader.start()
        try:
            for message in self._messages(lines):
                self._take(message)
        except TimeoutError as error:
            return str(error)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join()
        return None if process.returncode == 0 else f"exit code {process.returncode}"

    def _messages(self, lines: queue.Queue[str | None]) -> Iterator[dict[str, Any]]:
        while True:
            left = self.deadline + _GRACE - time.time()
            try:
                line = lines.get(timeout=max(0.1, min(self.silence, left)))
            except queue.Empty:
                raise TimeoutError("the time is over" if left < self.silence else "it hung") from None
            if line is None:
                return
            yield json.loads(line)

    def _take(self, message: dict[str, Any]) -> None:
        result = self.result
        if "begin" in message:
            self._step = message["begin"]
        result |= {name: message[name] for name in ("gpu", "peers", "built", "fallbacks") if name in message}
        for name in ("ceilings", "sweep"):
            if name in message:
                result[name].append(message[name])
        if "failure" in message:
            self._failures.append(message["failure"])
        for row in message.get("rows", ()):
            key = row["name"], row["layer"], row["m"]
            # What was measured beside the peers replaces what was measured alone.
            if not (row["failed"] and "us" in self._rows.get(key, ())):
                self._rows[key] = row
        if "done" in message:
            self.done.add(message["done"])
            self._note_clocks()
            print(f"{time.time() - self.began:6.1f} s  {message['done']}", file=sys.stderr, flush=True)
            self._write()

    def _note_clocks(self) -> None:
        """What the clocks are while something runs, now and then."""
        seconds, noted = time.time() - self.began, self.result["clocks"]
        if self.result["gpu"] and (not noted or seconds > noted[-1]["seconds"] + _CLOCKS_EVERY):
            noted.append({"seconds": round(seconds, 1)} | (gpu_facts.clocks() or {}))

    def _exclude(self, reason: str) -> None:
        """Note a crash, and keep what ran then from running again."""
        print(f"{self._step}: {reason}; another process goes on", file=sys.stderr, flush=True)
        self.result["crashes"].append({"step": self._step, "reason": reason})
        kernel, _, cell = self._step.partition(" @ ")
        if kernel == "all":  # nobody knows who it was
            self.done.add(cell)
        self.excluded.add(self._step)

    def _write(self) -> None:
        result = self.result
        result["rows"] = list(self._rows.values())
        todo = [cell.name for cell in cells(self.plan) if cell.name not in self.done]
        crashed = [f"{crash['step']}: {crash['reason']}" for crash in result["crashes"] if is_ours(crash["step"])]
        result |= {
            "seconds": round(time.time() - self.began, 1), "left_out": todo, "complete": not todo,
            "failures": [*failures(result["rows"], result["sweep"]), *crashed, *self._failures],
        }  # fmt: skip
        if self.path:
            write(self.path, result)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Pass on what a process prints, and None at its end."""
    assert process.stdout
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    process.wait()
    lines.put(None)


def is_ours(step: str) -> bool:
    """Whether a step is one of our kernels, or of their sweep; or nothing could start."""
    return step.startswith((f"{OURS} ", f"{SWEEP} ", _START))


def write(path: Path, result: Result) -> None:
    """Write a file, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def serve(run: Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], None]) -> None:
    """The other side: read the task, and give `run` a way to tell; everything else that is printed goes to stderr.

    Args:
        run: takes the task and the way to tell.
    """
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    run(json.load(sys.stdin), lambda message: print(json.dumps(message), file=told))
