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
from typing import Any

from llmquant.kernels.bench.common.contender import OURS
from llmquant.kernels.bench.common.plan import Plan
from llmquant.kernels.bench.common.rows import failures

Result = dict[str, Any]
Tell = Callable[[dict[str, Any]], None]

_WORKER = [sys.executable, "-m", "llmquant.kernels.bench.common.worker"]
_MOST_STARTS = 8
_SILENCE = 100.0  # seconds without a word after which a process counts as hung; one cell of the CPU takes less
_GRACE = 15.0  # after the budget
_START = "start of the measuring process"


class Watch:
    """A run under way; `write` is given the result after each cell.

    `command` starts a measuring process, which reads its task from standard input; after `silence` seconds without a
    word it counts as hung.
    """

    def __init__(self, plan: Plan, write: Tell, command: list[str] = _WORKER, silence: float = _SILENCE) -> None:
        self.plan, self._write_result, self.command, self.silence = plan, write, command, silence
        self.began = time.time()
        self.deadline = self.began + plan.budget
        self.result: Result = {"plan": dict(vars(plan)), "peers": {}, "rows": [], "crashes": [], "fallbacks": {}}
        self._done: set[str] = set()
        self._excluded: set[str] = set()
        self._step = ""
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
        task = {
            "plan": self.result["plan"], "deadline": self.deadline, "done": sorted(self._done),
            "excluded": sorted(self._excluded),
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
        self._step = message.get("begin", self._step)
        self.result |= {name: message[name] for name in ("peers", "fallbacks") if name in message}
        self.result["rows"] += message.get("rows", ())
        if "failure" in message:
            self._failures.append(message["failure"])
        if "done" in message:
            self._done.add(message["done"])
            print(f"{time.time() - self.began:6.1f} s  {message['done']}", file=sys.stderr, flush=True)
            self._write()

    def _exclude(self, reason: str) -> None:
        """Note a crash, and keep what ran then from running again."""
        print(f"{self._step}: {reason}; another process goes on", file=sys.stderr, flush=True)
        self.result["crashes"].append({"step": self._step, "reason": reason})
        kernel, _, cell = self._step.partition(" @ ")
        if kernel == "all":  # nobody knows who it was
            self._done.add(cell)
        self._excluded.add(self._step)

    def _write(self) -> None:
        todo = [cell.name for cell in self.plan.cells() if cell.name not in self._done]
        crashed = [
            f"{crash['step']}: {crash['reason']}"
            for crash in self.result["crashes"]
            if crash["step"].startswith((f"{OURS} ", _START))
        ]
        self.result |= {
            "seconds": round(time.time() - self.began, 1), "left_out": todo,
            "failures": [*failures(self.result["rows"]), *crashed, *self._failures],
        }  # fmt: skip
        self._write_result(self.result)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Pass on what a process prints, and None at its end."""
    assert process.stdout
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    process.wait()
    lines.put(None)


def serve(run: Callable[[dict[str, Any], Tell], None]) -> None:
    """The other side: read the task, and give `run` a way to tell; everything else that is printed goes to stderr."""
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    run(json.load(sys.stdin), lambda message: print(json.dumps(message), file=told))
