"""The sections of decode_gpu.py, in the order of what they are worth."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from gpu_check import check_logits, check_tokens
from gpu_decode import Decoder, Way, greedy, prefill, take_turns, time_decode, time_prefill
from gpu_models import DENSE, SHAPES, Kind, build
from gpu_profile import our_kernels, record, summary
from gpu_report import Report, Row, show, timing
from gpu_warm import begin, finish
from torch import Tensor

from llmquant.nn.accuracy import Accuracy, kernels_used, set_accuracy

_PROFILED = 8  # steps
_SHARE = 0.15  # of the time, after which a section starts no more rounds
_COMPILE_SECONDS = 120.0  # that must be left for a model to be compiled


Run = Callable[[], float]


class Contender(NamedTuple):
    """A model in one accuracy; None if it has no packed layers."""

    name: str
    model: Any
    accuracy: Accuracy | None

    def choose(self) -> None:
        """Let the model compute so."""
        if self.accuracy:
            set_accuracy(self.model, self.accuracy)


class Session:
    """A run: the models that exist so far, and what is done with them."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        """Take the plan from the command line; without a GPU steps run one by one where a graph would."""
        self.args, self.device = args, device
        self.dry: bool = args.dry_run
        self.static: Way = "graph" if device.type == "cuda" else "static"
        plan = {key: value for key, value in vars(args).items() if key not in ("json", "commit")}
        self.report = Report(plan, device, args.json, args.seconds, args.commit)
        self.contenders: list[Contender] = []
        self.weights: dict[str, int] = {}

    def add_model(self, kind: Kind) -> list[Row]:
        """Build a model; a 4-bit one runs in both accuracies."""
        memory, start = Memory(self.device), time.perf_counter()
        model = build(kind, SHAPES[self.args.shape], getattr(torch, self.args.dtype), self.device)
        row = {
            "model": kind.name, "build_s": round(time.perf_counter() - start, 2), "weights_bytes": memory.kept(),
            "build_peak_bytes": memory.peak(), "kernels": kernels_used(model),
        }  # fmt: skip
        self.weights[kind.name] = memory.kept() or 0
        self.contenders += [Contender(kind.name, model, accuracy) for accuracy in kind.accuracies]
        return [row]

    def check(self, contender: Contender) -> list[Row]:
        """Logits in this accuracy; in the exact one also which kernels run, and the tokens of a graph."""
        contender.choose()
        row: Row = {"model": contender.name, "accuracy": contender.accuracy}
        exact = contender.accuracy == "exact"
        rows = [row | {"check": "logits"} | check_logits(contender.model, self.prompt(1, self.args.context), exact)]
        if not exact:
            return rows
        # The reference would be right too, and its times of no interest.
        kernels = kernels_used(contender.model)
        rows.append(row | {"check": "Triton kernels", "ok": all("triton" in name for name in kernels)})
        for batch in sorted({self.args.batches[0], self.args.batches[-1]}):
            prompt = self.prompt(batch, self.args.context)
            found = check_tokens(contender.model, prompt, self.args.steps, self.static)
            rows.append(row | {"check": f"{self.static}, batch {batch}"} | found)
        return rows

    def decode(self, batch: int) -> list[Row]:
        """All contenders eagerly and by a graph; of the accuracy "fast" only the graph."""
        runs: list[Run] = []
        rows: list[Row] = []
        for contender in self.contenders:
            for way in ("eager", self.static) if contender.accuracy != "fast" else (self.static,):
                memory = Memory(self.device)
                decoder = Decoder(contender.model, self.prompt(batch, self.args.context), self.args.steps, way)
                run = partial(self._turn, contender, partial(time_decode, decoder, self.args.steps))
                if self.report.attempt(f"decode {contender.name}, {way}, batch {batch}", run) is not None:
                    runs.append(run)
                    rows.append(self._row(contender, way, batch, self.args.context, memory))
        return self._timed(rows, runs, batch)

    def prefill(self, tokens: int) -> list[Row]:
        """A prompt of one sequence, all contenders."""
        runs: list[Run] = []
        rows: list[Row] = []
        for contender in self.contenders:
            memory = Memory(self.device)
            run = partial(self._turn, contender, partial(time_prefill, contender.model, self.prompt(1, tokens)))
            if self.report.attempt(f"prefill {contender.name}, {tokens}", run) is not None:
                runs.append(run)
                rows.append(self._row(contender, "eager", 1, tokens, memory))
        return self._timed(rows, runs, tokens)

    def profile(self, contender: Contender, what: str, batch: int, tokens: int) -> list[Row]:
        """Where the time of a decoded token (by a graph) or of a prompt goes."""
        row: Row = {"model": contender.name, "accuracy": contender.accuracy, "what": f"{what}, {batch} x {tokens}"}
        if self.dry:
            return [row | {"device_us": None}]
        contender.choose()
        if what == "decode":
            decoder = Decoder(contender.model, self.prompt(batch, tokens), _PROFILED + 1, self.static)
            decoder.start()
            step: Callable[[], object] = decoder.step
        else:
            step = partial(prefill, contender.model, self.prompt(batch, tokens))
        measured = self._median_us(contender, what, batch, tokens)
        return [row | summary(record(step, _PROFILED), our_kernels(), _PROFILED, measured)]

    def compiled(self, contender: Contender) -> list[Row]:
        """Decode one sequence by torch.compile, and how many of its tokens are those of the model itself."""
        torch.compiler.reset()
        contender.choose()
        prompt, steps = self.prompt(1, self.args.context), self.args.steps
        memory, start = Memory(self.device), time.perf_counter()
        decoder = Decoder(contender.model, prompt, steps, "compiled")
        tokens = greedy(decoder, steps)
        extra = {"compile_s": round(time.perf_counter() - start, 1)}
        plain = greedy(Decoder(contender.model, prompt, steps, "static"), steps)
        extra["same_tokens"] = round((tokens == plain).float().mean().item(), 4)
        row = self._row(contender, "compiled", 1, self.args.context, memory) | extra
        return self._timed([row], [partial(self._turn, contender, partial(time_decode, decoder, steps))], 1)

    def prompt(self, batch: int, tokens: int) -> Tensor:
        """Ids (batch, tokens), the same at every call."""
        generator = torch.Generator().manual_seed(tokens)
        vocabulary = SHAPES[self.args.shape]["vocab_size"]
        return torch.randint(vocabulary, (batch, tokens), generator=generator).to(self.device)

    @staticmethod
    def _turn(contender: Contender, run: Run) -> float:
        contender.choose()
        return run()

    def _row(self, contender: Contender, way: Way, batch: int, context: int, memory: Memory) -> Row:
        extra = memory.peak()
        return {
            "model": contender.name, "accuracy": contender.accuracy, "way": way, "batch": batch, "context": context,
            "memory_bytes": None if extra is None else self.weights[contender.name] + extra,
        }  # fmt: skip

    def _timed(self, rows: list[Row], runs: list[Run], tokens: int) -> list[Row]:
        """Let the runs take turns and add the times to their rows."""
        if self.dry:
            return [row | timing(None, tokens, None) for row in rows]
        until = self.report.left() - self.args.seconds * _SHARE
        times = take_turns(runs, self.args.rounds, lambda: self.report.left() > max(0.0, until))
        dense = {row["way"]: taken for row, taken in zip(rows, times, strict=True) if row["model"] == DENSE}
        return [row | timing(taken, tokens, dense.get(row["way"])) for row, taken in zip(rows, times, strict=True)]

    def _median_us(self, contender: Contender, what: str, batch: int, tokens: int) -> float | None:
        wanted = (contender.name, contender.accuracy, self.static if what == "decode" else "eager", batch, tokens)
        for row in self.report.result.get(what, ()):
            if (row["model"], row["accuracy"], row["way"], row["batch"], row["context"]) == wanted:
                return 1e3 * row["ms"]["median"]
        return None


class Memory:
    """Memory of the device that is taken from now on."""

    def __init__(self, device: torch.device) -> None:
        """Begin to count; on the CPU nothing is counted."""
        self._device = device if device.type == "cuda" else None
        if self._device:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)

    def kept(self) -> int | None:
        """Bytes that are still taken."""
        return torch.cuda.memory_allocated(self._device) - self._before if self._device else None

    def peak(self) -> int | None:
        """Most bytes that were taken at once."""
        return torch.cuda.max_memory_allocated(self._device) - self._before if self._device else None


@torch.no_grad()
def run(args: argparse.Namespace) -> int:
    """Run the plan of the command line; the exit status."""
    if not args.dry_run and not torch.cuda.is_available():
        print("there is no CUDA device; --dry-run needs none", file=sys.stderr)
        return 2
    session = Session(args, torch.device("cpu" if args.dry_run else "cuda"))
    section, has = session.report.section, set(args.sections)
    compiling = None if args.dry_run else session.report.attempt("compile ahead", partial(begin, args))
    for name in args.models:
        section("models", f"build {name}", partial(session.add_model, Kind.parse(name)))
    if compiling:
        section("compiled_ahead", "compile ahead", partial(finish, compiling, args.seconds))
    packed = [each for each in session.contenders if each.accuracy]
    for each in packed if "checks" in has else ():
        section("checks", f"check {each.name} {each.accuracy}", partial(session.check, each))
    for batch in args.batches if "decode" in has else ():
        section("decode", f"decode, batch {batch}", partial(session.decode, batch))
    for tokens in args.prefill if "prefill" in has else ():
        section("prefill", f"prefill, {tokens} tokens", partial(session.prefill, tokens))
    if "profile" in has:
        cases = [("decode", batch, args.context) for batch in sorted({args.batches[0], args.batches[-1]})]
        for what, batch, tokens in cases + [("prefill", 1, tokens) for tokens in args.prefill]:
            for each in session.contenders:
                name = f"profile {what}, {batch} x {tokens}, {each.name} {each.accuracy}"
                section("profile", name, partial(session.profile, each, what, batch, tokens))
    exact = [each for each in session.contenders if each.accuracy != "fast"]
    for each in exact if "compiled" in has and not args.dry_run else ():
        section("decode", f"compile {each.name}", partial(session.compiled, each), _COMPILE_SECONDS)
    session.report.save(finished=True)
    print(show(session.report.result), end="")
    return 0 if session.report.good() else 1
