"""Why a quantized model is slower than a dense one: what its parts took, and what is known of those that took longer.

Only what the run shows, or what is a fact of the machine, is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from llmquant.eval.lines import is_slower
from llmquant.eval.metrics.memory import parameter_bytes
from llmquant.eval.speed.contender import Contender
from llmquant.eval.speed.speeds import PHASES, Phase, Row, Slower, Speeds
from llmquant.eval.speed.throughput import Cell, tokens
from llmquant.eval.speed.time_shares import Shares, linears, packed_names, time_shares
from llmquant.machine import multiplies_bfloat16
from llmquant.turns import take_turns
from llmquant.words import bytes_text, number, percent, shortened

if TYPE_CHECKING:
    from collections.abc import Mapping

_STEPS = 8  # of decoding that are watched
_MUCH = 0.1  # of the dense model's time: what a part has to take longer to be named
_READING = 0.25  # share of the time: below it, reading the weights is not what takes the time
_LARGE = 0.3  # share of the time of layers that packing does not touch, from which on they are named


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One of the two models in one cell, as its parts were watched."""

    name: str
    dtype: str  # in which it computes
    prefill: Shares
    decode: Shares
    packed_bytes: int  # of the weights of the layers that the quantized model packs
    kernels: Mapping[str, int]  # packed layers by kernel

    def shares(self, phase: Phase) -> Shares:
        """Of one phase."""
        return self.prefill if phase == "prefill" else self.decode

    @property
    def read(self) -> float:
        """Bytes per second that decoding reached in these layers: memory gives at least as many."""
        return self.packed_bytes / self.decode.packed if self.decode.packed else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What both models have in common."""

    tokens: int  # of one pass, of all sequences together
    weights: int  # of the layers that the quantized model packs
    kept: Sequence[str]  # names of the other linear layers
    slow_dtypes: Mapping[str, str]  # dtypes that the processor has no instructions for, and how to say so


def explained(speeds: Speeds, contenders: Sequence[Contender]) -> Speeds:
    """With reasons wherever a quantized row is slower than a dense one; both run again there, and are watched.

    `contenders` are those of the first rows. Those with a cache of fixed size are left out: a graph cannot be
    watched.
    """
    models = dict(zip((id(row) for row in speeds.rows), contenders, strict=False))
    rows = []
    for row in speeds.rows:
        found = []
        for place, cell in enumerate(speeds.cells):
            slow: dict[Phase, Row] = {phase: other for phase in PHASES if (other := _faster(speeds, row, place, phase))}
            watched: dict[int, Watched] = {}
            for phase, other in slow.items():
                if id(row) not in models or id(other) not in models or row.static:
                    continue
                pair = [(each, models[id(each)]) for each in (row, other)]
                if not all(id(each) in watched for each, _ in pair):
                    watched |= _watch(pair, cell, speeds.decode_tokens)
                found.append(_slower(cell, phase, watched[id(row)], watched[id(other)], _facts(pair, cell, phase)))
        rows.append(replace(row, slower=tuple(found)))
    return replace(speeds, rows=tuple(rows))


def _faster(speeds: Speeds, row: Row, place: int, phase: Phase) -> Row | None:
    """The dense row that is the last of those that a quantized one is compared with and slower than."""
    if row.dense:
        return None
    dense = (other for other in speeds.against(row, place, phase) if other.dense)
    slower = [other for other in dense if is_slower(row.cells[place].over(other.cells[place], phase))]
    return slower[-1] if slower else None


def _watch(pair: Sequence[tuple[Row, Contender]], cell: Cell, decode_tokens: int) -> dict[int, Watched]:
    """Each row of the pair twice in turn, the quantized one first."""
    packed = packed_names(pair[0][1].model)
    ids = tokens(pair[0][1].model, cell, min(decode_tokens, _STEPS))

    def run(contender: Contender) -> tuple[Shares, Shares]:
        contender.choose()
        return time_shares(contender.model, ids, cell.context, packed)

    rounds = take_turns([partial(run, contender) for _, contender in pair], lambda done: done < 2)
    found = {}
    for (row, contender), turns in zip(pair, zip(*rounds, strict=True), strict=True):
        prefill, decode = (one.least(two) for one, two in zip(*turns, strict=True))
        layers = [each for name, each in linears(contender.model).items() if name in packed]
        found[id(row)] = Watched(
            name=row.name, dtype=row.dtype, prefill=prefill, decode=decode, kernels=row.kernels,
            packed_bytes=sum(map(parameter_bytes, layers)),
        )  # fmt: skip
    return found


def _facts(pair: Sequence[tuple[Row, Contender]], cell: Cell, phase: Phase) -> Facts:
    model = pair[0][1].model
    packed, layers = packed_names(model), linears(model)
    slow = {"bfloat16": "this CPU has no instructions for bfloat16"}
    return Facts(
        tokens=cell.batch_size * (cell.context if phase == "prefill" else 1),
        weights=sum(each.in_features * each.out_features for name, each in layers.items() if name in packed),
        kept=[name for name in layers if name not in packed],
        slow_dtypes=slow if model.device.type == "cpu" and multiplies_bfloat16() is False else {},
    )


def _slower(cell: Cell, phase: Phase, here: Watched, there: Watched, facts: Facts) -> Slower:
    one, two = here.shares(phase), there.shares(phase)
    return Slower(
        cell=cell, phase=phase, against=there.name, packed=(one.packed, two.packed), kept=(one.kept, two.kept),
        rest=(one.rest, two.rest), because=explain(here, there, phase, facts),
    )  # fmt: skip


def explain(quantized: Watched, dense: Watched, phase: Phase, facts: Facts) -> tuple[str, ...]:
    """What the run shows of why one takes longer than the other, first where the time goes; in sentences."""
    here, there = quantized.shares(phase), dense.shares(phase)
    found = [_where(here, there, dense.name, "a prefill" if phase == "prefill" else "a decode step")]
    if here.total <= there.total:
        return *found, "so it was not slower when the models ran alone"
    longer = [part for part in ("packed", "kept", "rest") if _longer(here, there, part)]
    if "packed" in longer:
        found.append(_packed(quantized, dense, phase, facts))
    unlike = [part for part in longer if part != "packed"] if quantized.dtype != dense.dtype else []
    if unlike:
        names = {"kept": f"kept layers ({shortened(facts.kept, 2)})", "rest": "attention and norms"}
        slow = facts.slow_dtypes.get(quantized.dtype, "")
        found.append(
            f"{' and '.join(names[part] for part in unlike)} compute in {quantized.dtype} here, in {dense.dtype} there"
            + (f"; {slow}" if slow else "")
        )
    if "kept" not in longer and here.kept > _LARGE * here.total:
        found.append(
            f"kept layers ({shortened(facts.kept, 2)}) take {percent(here.kept / here.total, 0)} of the time, which "
            "packing the others does not shorten"
        )
    if len(found) == 1:
        found.append("no part stands out")
    return tuple(found)


def _longer(here: Shares, there: Shares, part: str) -> bool:
    return getattr(here, part) - getattr(there, part) > _MUCH * there.total


def _where(here: Shares, there: Shares, name: str, what: str) -> str:
    parts = (
        f"{words} {_ms(getattr(here, part))} ({_ms(getattr(there, part))})"
        for part, words in (("packed", "packed layers"), ("kept", "kept layers"), ("rest", "the rest"))
        if getattr(here, part) or getattr(there, part)
    )
    return f"{what} takes {_ms(here.total)} ms (in {name} {_ms(there.total)}): {', '.join(parts)}"


def _ms(seconds: float) -> str:
    return number(1000 * seconds)


def _packed(quantized: Watched, dense: Watched, phase: Phase, facts: Facts) -> str:
    """Why packed layers take longer than dense ones, as far as it is known."""
    slow = [f"{name} ({count})" for name, count in quantized.kernels.items() if "reference" in name]
    if slow:
        return f"no fast kernel: packed layers run on {'; '.join(slow)}, which unpacks weights and then multiplies them"
    here, there = (each.shares(phase).packed for each in (quantized, dense))
    read = max(quantized.read, dense.read)
    reading = quantized.packed_bytes / read / here if read else 1.0
    if reading > _READING or not there:
        return "packed layers take longer; why was not found"
    work = 2 * facts.weights * facts.tokens / 1e9
    return (
        f"arithmetic decides, not memory: to read {bytes_text(quantized.packed_bytes)} of packed weights takes at most "
        f"{percent(reading, 0)} of that, at the {number(read / 1e9)} GB/s that decoding reached; the multiplications "
        f"are those of the dense layers, {number(work / there)} GFLOP/s there, and {number(work / here)} GFLOP/s here, "
        "where codes are unpacked too"
    )
