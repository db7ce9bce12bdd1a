"""Seeded damage to recipes, safetensors headers, configurations and whole folders.

Each function takes a random generator and what it damages, and says in a few words what it did.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What stands where something else was expected.
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 7, 31, 33, 1 << 16, 1 << 31, 1 << 63, 10**30, -(10**30), 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", " ", "x", "x" * 300, "\0", "a\0b", "../../etc/passwd", "/dev/zero", "os", "llama",
    "gpt2", "float32", "re:(.*)*!", "re:((.|..)*)*[!?]", "re:a{99999999999}", "*" * 50, "linear", "int4-g32",
    "\x1b[31m", "é\ud7ff", [], {}, [None], ["a", 1], [[[[]]]], {"a": {"b": {}}}, ["linear", "linear"], {"": ""},
]  # fmt: skip
KEYS = ["extra", "dtype", "transformers_weights", "quant_method", "auto_map", "weights", "ignore", "tokenizer_class"]
NAMES = ["", "lm_head.weight", "x" * 300, "a\0b", "²", "model.layers.².mlp.up_proj.weight", "model.norm.weight.x"]
DTYPES = {"BF16": ["F16", "I16", "U16"], "I32": ["F32", "U32"], "I64": ["F64"]}  # of the same size
SNIPPETS = [
    "!!int ''", "!!float ''", "!!python/object:os.system x", "&a [*a]", "0x" + "f" * 400, "9" * 5000, "[" * 3000,
    "{" * 200, "? x", "- ", "\t", "%YAML 1.9\n---\n", '"\\Uffffffff"', "!!binary x", "!!timestamp x", "1e999", ".nan",
    "2026-99-99", "<<: {a: 1}", "\ufeff", "...", "---", "*", "'re:(.*)*!'", "a" * 2000, "#", ": :", "version: 1",
]  # fmt: skip


def value(rng: random.Random) -> Any:
    """A copy of one of `VALUES`, or something nested too deep."""
    if rng.random() < 0.03:
        nested: Any = 1
        for _ in range(rng.choice([40, 70, 200])):
            nested = [nested] if rng.random() < 0.5 else {"a": nested}
        return nested
    return copy.deepcopy(rng.choice(VALUES))


def structure(rng: random.Random, data: Any) -> str:
    """Change one place of plain data, in place."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, item in list(node.items() if isinstance(node, dict) else enumerate(node)):
            places.append((node, key))
            if isinstance(item, (dict, list)):
                walk(item)

    walk(data)
    if not places:
        return "nothing to change"
    node, key = rng.choice(places)
    kind = rng.choice(["replace", "replace", "replace", "delete", "add", "swap"])
    if kind == "delete":
        del node[key]
    elif kind == "add" and isinstance(node, dict):
        node[rng.choice(KEYS)] = value(rng)
    elif kind == "swap":
        other, at = rng.choice(places)
        if key in _keys(node) and at in _keys(other):
            node[key] = copy.deepcopy(other[at])
    else:
        node[key] = value(rng)
    return f"{kind} at {key!r}"


def _keys(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))


def text(rng: random.Random, content: str) -> tuple[str, str]:
    """Change a text: bytes, lines, or something hostile in the middle."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    kind = rng.choice(["character", "delete", "repeat", "insert", "value", "cut"])
    if kind == "character":
        spot = rng.randrange(len(content))
        return content[:spot] + rng.choice("\0\t:{}[]&*!|>'\"%@`#,-é\u2028\x07") + content[spot + 1 :], "a character"
    if kind == "delete":
        del lines[at]
    elif kind == "repeat":
        lines.insert(at, lines[at])
    elif kind == "insert":
        lines.insert(at, rng.choice(SNIPPETS) + "\n")
    elif kind == "value":
        name, colon, _ = lines[at].partition(":")
        lines[at] = f"{name}{colon} {rng.choice(SNIPPETS)}\n"
    else:
        return content[: rng.randrange(len(content))], "cut"
    return "".join(lines), kind


def header(rng: random.Random, file: Path) -> str:
    """Change the header of a safetensors file, its length or its data."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    entries, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    kind = rng.choice(["length", "bytes", "entry", "entry", "entry", "entry", "rename", "metadata", "data"])
    if kind == "length":
        size = rng.choice([0, 1, size - 1, size + 1, 1 << 20, 1 << 40, (1 << 64) - 1])
        file.write_bytes(size.to_bytes(8, "little") + raw[8:])
        return f"header length {size}"
    if kind == "bytes":
        spot = rng.randrange(8, 8 + size)
        file.write_bytes(raw[:spot] + bytes([rng.randrange(256)]) + raw[spot + 1 :])
        return f"a byte of the header at {spot}"
    name = rng.choice([name for name in entries if name != "__metadata__"])
    if kind == "entry":
        what = _entry(rng, entries[name])
    elif kind == "rename":
        what = rng.choice(NAMES)
        entries[what] = entries.pop(name)
    elif kind == "metadata":
        what = repr(value(rng))[:30]
        entries["__metadata__"] = rng.choice(VALUES)
    else:
        what, data = "data", data[: rng.randrange(len(data))] if rng.random() < 0.5 else data + b"\0"
    new = json.dumps(entries).encode("utf-8", "surrogatepass")
    file.write_bytes(len(new).to_bytes(8, "little") + new + data)
    return f"{kind} of {name}: {what}"


def _entry(rng: random.Random, entry: dict[str, Any]) -> str:
    key = rng.choice(list(entry))
    kind = rng.choice(["value", "same size", "transpose", "item"])
    if kind == "same size" and key == "dtype":
        entry["dtype"] = rng.choice(DTYPES.get(entry["dtype"], ["F8"]))
    elif kind == "transpose":
        entry["shape"].reverse()
    elif kind == "item" and isinstance(entry[key], list) and entry[key]:
        entry[key][rng.randrange(len(entry[key]))] = value(rng)
    else:
        entry[key] = value(rng)
    return f"{key} -> {str(entry[key])[:40]}"


def _json_file(rng: random.Random, file: Path) -> str:
    data = json.loads(file.read_text())
    done = [structure(rng, data) for _ in range(rng.choice([1, 1, 1, 2, 4]))]
    file.write_text(json.dumps(data))
    return f"{file.name}: {'; '.join(done)}"


def config(rng: random.Random, folder: Path) -> str:
    """Change config.json, or sometimes another JSON file of the folder."""
    names = ["config.json"] * 8 + sorted(path.name for path in folder.glob("*.json"))
    return _json_file(rng, folder / rng.choice(names))


def folder(rng: random.Random, path: Path) -> str:
    """Do something to a file as a whole."""
    file = rng.choice(sorted(path.iterdir()))
    other = rng.choice(sorted(path.iterdir()))
    raw = file.read_bytes()
    name, action = rng.choice(_FILE_DAMAGE)
    file.unlink()
    action(rng, file, raw, other)
    return f"{name}: {file.name}"


def _swap(_rng: random.Random, file: Path, raw: bytes, other: Path) -> None:
    if other.exists():
        shutil.copyfile(other, file)
        other.write_bytes(raw)


def _other_name(rng: random.Random, file: Path) -> Path:
    return file.with_name(rng.choice(["x.bin", "adapter_config.json", "y.safetensors", "custom.json"]))


def _fill(make: Callable[[random.Random, bytes], bytes]) -> Callable[[random.Random, Path, bytes, Path], None]:
    def action(rng: random.Random, file: Path, raw: bytes, _other: Path) -> None:
        file.write_bytes(make(rng, raw))

    return action


_FILE_DAMAGE: list[tuple[str, Callable[[random.Random, Path, bytes, Path], object]]] = [
    ("gone", lambda _rng, _file, _raw, _other: None),
    ("empty", _fill(lambda _rng, _raw: b"")),
    ("cut", _fill(lambda rng, raw: raw[: rng.randrange(len(raw) + 1)])),
    ("longer", _fill(lambda rng, raw: raw + rng.randbytes(rng.randrange(1, 100)))),
    ("a flipped byte", _fill(lambda rng, raw: raw[: (at := rng.randrange(len(raw) or 1))] + b"\xff" + raw[at + 1 :])),
    ("noise", _fill(lambda rng, _raw: rng.randbytes(200))),
    ("deep JSON", _fill(lambda rng, _raw: b'{"a":' * 5000 + b"1" + b"}" * 5000)),
    ("a huge number", _fill(lambda rng, _raw: b'{"hidden_size": ' + b"9" * 5000 + b"}")),
    ("a JSON list", _fill(lambda rng, _raw: b"[1, 2]")),
    ("UTF-16", _fill(lambda rng, raw: raw.decode("latin-1").encode("utf-16"))),
    ("pipe", lambda _rng, file, _raw, _other: os.mkfifo(file)),
    ("folder", lambda _rng, file, _raw, _other: file.mkdir()),
    ("device", lambda _rng, file, _raw, _other: file.symlink_to("/dev/zero")),
    ("a lost link", lambda _rng, file, _raw, _other: file.symlink_to("nowhere")),
    ("a link to itself", lambda _rng, file, _raw, _other: file.symlink_to(file.name)),
    ("a link to another", lambda _rng, file, _raw, other: file.symlink_to(other.name)),
    ("swapped", _swap),
    ("renamed", lambda rng, file, raw, _other: _other_name(rng, file).write_bytes(raw)),
]  # fmt: skip
