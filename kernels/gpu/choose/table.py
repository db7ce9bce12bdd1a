"""Tables of configurations that were measured: JSON files, one per GPU, checked when they are read.

    {"version": 1, "arch": "sm90", "processors": 132, "gpu": "NVIDIA H200",
     "runs": [{"date": "...", "llmquant": "...", "torch": "...", ...}],
     "entries": [{"kind": "w4a16", "m": [9, 16], "n": 4096, "k": [4096, 8192], "unit": 128,
                  "config": {"block_m": 16, "block_n": 128, "split_k": 4, "warps": 4, "stages": 4, "pdl": false},
                  "us": 5.1, "us_untuned": 6.0}]}

An entry is for products of `kind` with `m` rows, `n` outputs and `k` inputs, each a number or the least and the most,
and `unit` inputs per scale (0: all). Its config may be "dense". The first entry that fits is the one. `us` is what was
measured, `us_untuned` the same without a table. `runs` says what measured, and how: a table without runs measured
nothing, and those that ship have no entries then.

`llmquant bench --tune` writes such a file for the user's own card into the cache folder, where `user_file` finds it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from llmquant.errors import LlmquantError, OutputError
from llmquant.kernels.gpu.choose.config import DENSE, Config
from llmquant.kernels.gpu.choose.estimate import KINDS

VERSION = 1
VARIABLE = "LLMQUANT_GPU_TABLE"
_CHOICES = {
    "block_m": (16, 32, 64, 128, 256),
    "block_n": (64, 128, 256),
    "split_k": range(1, 1025),
    "warps": (1, 2, 4, 8, 16),
    "stages": range(1, 17),
}

Range = tuple[int, int]
Refuse = Callable[[str], NoReturn]


@dataclass(frozen=True, slots=True)
class Entry:
    """What to run for some products; see the module docstring."""

    kind: str
    m: Range
    n: Range
    k: Range
    unit: int
    config: Config
    us: float | None = None
    us_untuned: float | None = None

    def fits(self, kind: str, m: int, n: int, k: int, unit: int) -> bool:
        """Whether the entry is for such a product."""
        numbers = ((m, self.m), (n, self.n), (k, self.k))
        return (kind, unit) == (self.kind, self.unit) and all(least <= x <= most for x, (least, most) in numbers)


@dataclass(frozen=True, slots=True)
class Table:
    """A file of entries."""

    arch: str
    processors: int | None = None  # every GPU of the architecture
    gpu: str | None = None  # nothing was measured
    runs: tuple[dict[str, Any], ...] = ()
    entries: tuple[Entry, ...] = ()  # the first that fits counts

    def find(self, kind: str, m: int, n: int, k: int, unit: int) -> Config | None:
        """The configuration for a product, or None if there is no entry for it."""
        return next((entry.config for entry in self.entries if entry.fits(kind, m, n, k, unit)), None)

    def to_dict(self) -> dict[str, Any]:
        return {"version": VERSION} | asdict(self) | {"entries": [_entry_to_dict(entry) for entry in self.entries]}


def user_file(arch: str, processors: int) -> Path:
    """Where a user's own table for a GPU lies, whether there is one or not: `LLMQUANT_GPU_TABLE`, or in the cache."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "llmquant", "gpu", f"{arch}-{processors}.json")


def shipped_file(arch: str) -> Path:
    """The table that ships for an architecture, whether there is one or not."""
    return Path(__file__).with_name("tables") / f"{arch}.json"


def read(file: Path) -> Table:
    """Read and check a table.

    Raises:
        LlmquantError: names the file, the entry and the key.
    """

    def refuse(problem: str) -> NoReturn:
        raise LlmquantError(f"{file}: {problem}; correct it, or delete it: llmquant bench --tune writes a new one")

    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LlmquantError(f"{file}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        refuse(f"is no JSON ({error})")
    return _table(data, refuse)


def write(file: Path, table: Table) -> None:
    """Write a table, all of it or nothing, an entry a line.

    Raises:
        OutputError: if that is not possible.
    """
    data = table.to_dict()
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in data.pop("entries"))
    head = json.dumps(data, indent=1).removesuffix("\n}")
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(f'{head},\n "entries": [\n{lines}\n ]\n}}\n', encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise OutputError(f"{file} cannot be written: {error.strerror or error}") from error


def _table(data: Any, refuse: Refuse) -> Table:
    if not isinstance(data, dict) or data.get("version") != VERSION:
        got = data.get("version") if isinstance(data, dict) else type(data).__name__
        refuse(f"this llmquant reads tables of version {VERSION}, not {got!r}")
    _check_keys(data, {"version", "arch"}, {"version", *_names(Table)}, refuse)
    for key, good, wanted in (
        ("arch", isinstance(data["arch"], str), "a name such as 'sm90'"),
        ("processors", data.get("processors") is None or _is_count(data["processors"]), "a number or null"),
        ("runs", isinstance(data.get("runs", []), list), "a list"),
        ("entries", isinstance(data.get("entries", []), list), "a list"),
    ):
        if not good:
            refuse(f"{key} is {data[key]!r}; it is {wanted}")
    entries = []
    for number, entry in enumerate(data.get("entries", [])):
        entries.append(_entry(entry, lambda problem, number=number: refuse(f"entry {number}: {problem}")))
    return Table(data["arch"], data.get("processors"), data.get("gpu"), tuple(data.get("runs", [])), tuple(entries))


def _entry(data: Any, refuse: Refuse) -> Entry:
    if not isinstance(data, dict):
        refuse(f"it has keys such as kind and config; got {data!r}")
    _check_keys(data, {"kind", "m", "n", "k", "unit", "config"}, set(_names(Entry)), refuse)
    if data["kind"] not in KINDS:
        refuse(f"kind is {data['kind']!r}; it can be {', '.join(KINDS)}")
    if not (_is_count(data["unit"]) or (type(data["unit"]) is int and data["unit"] == 0)):
        refuse(f"unit is {data['unit']!r}; it is a number of inputs, or 0")
    for key in ("us", "us_untuned"):
        if not (data.get(key) is None or isinstance(data[key], int | float)):
            refuse(f"{key} is {data[key]!r}; it is a number of microseconds")
    values: dict[str, Any] = {**data, "config": _config(data["config"], refuse)}
    for key in ("m", "n", "k"):
        values[key] = _range(key, data[key], refuse)
    return Entry(**values)


def _range(key: str, value: Any, refuse: Refuse) -> Range:
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or not all(map(_is_count, pair)) or pair[0] > pair[1]:
        refuse(f"{key} is {value!r}; it is a number, or a list of the least and the most")
    return pair[0], pair[1]


def _config(data: Any, refuse: Refuse) -> Config:
    if data == "dense":
        return DENSE
    if not isinstance(data, dict):
        refuse(f"config is {data!r}; it has keys such as block_m, or is 'dense'")
    wanted = {field.name for field in fields(Config) if field.default is MISSING}
    _check_keys(data, wanted, set(_names(Config)), refuse)
    for key, value in data.items():
        if key == "pdl":
            if not isinstance(value, bool):
                refuse(f"pdl is {value!r}; it is true or false")
        elif not _is_count(value) or value not in _CHOICES[key]:
            choices = _CHOICES[key]
            shown = f"1 to {choices[-1]}" if isinstance(choices, range) else ", ".join(map(str, choices))
            refuse(f"{key} is {value!r}; it can be {shown}")
    return Config(**data)


def _check_keys(data: dict[str, Any], wanted: set[str], known: set[str], refuse: Refuse) -> None:
    if unknown := sorted(data.keys() - known):
        refuse(f"unknown key {unknown[0]!r}; the keys are {', '.join(sorted(known))}")
    if missing := sorted(wanted - data.keys()):
        refuse(f"{missing[0]} is missing")


def _names(of: Any) -> list[str]:
    return [field.name for field in fields(of)]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _entry_to_dict(entry: Entry) -> dict[str, Any]:
    data = asdict(entry) | {"config": "dense" if entry.config == DENSE else asdict(entry.config)}
    for key in ("m", "n", "k"):
        least, most = data[key]
        data[key] = least if least == most else [least, most]
    return {key: value for key, value in data.items() if value is not None}
