"""Opens a packed folder with every class that can, and says which stored tensor is not where it came from.

    python open_classes.py DENSE PACKED CLASS [CLASS ...]

It runs in plain transformers, in a process that never imports llmquant, and is imported by the tests that do. The dense
folder tells where a class puts a tensor: its values are all different, so a parameter is known by its content.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def misplaced(dense: Path, packed: Path, class_name: str) -> list[str]:
    """What is wrong with the packed folder as the class loads it; empty if nothing is."""
    auto: Any = getattr(transformers, class_name)
    before = auto.from_pretrained(dense, dtype="auto").state_dict()
    after = auto.from_pretrained(packed, dtype="auto").state_dict()
    source, stored = read(dense), read(packed)
    keys = {_content(tensor): key for key, tensor in source.items()}
    wrong, seen = [], 0
    for name, tensor in before.items():
        key = keys.get(_content(tensor))
        if key is None:  # a new head, or a buffer
            continue
        seen += 1
        if key in stored:
            same = name in after and torch.equal(after[name], stored[key])
        else:
            base, module = key.removesuffix(".weight"), name.removesuffix(".weight")
            own = [part for part in PARTS if f"{base}.{part}" in stored]
            same = bool(own) and all(
                f"{module}.{part}" in after and torch.equal(after[f"{module}.{part}"], stored[f"{base}.{part}"])
                for part in own
            )
        if not same:
            wrong.append(f"{class_name}: {name} is not {key}")
    extra = [name for name in after if name.rpartition(".")[2] in PARTS and _dense_name(name) not in before]
    return wrong + extra + ([] if seen > 10 else [f"{class_name}: only {seen} tensors recognised"])


def _content(tensor: Tensor) -> bytes:
    return str(tuple(tensor.shape)).encode() + tensor.float().numpy().tobytes()


def _dense_name(name: str) -> str:
    return f"{name.rpartition('.')[0]}.weight"


if __name__ == "__main__":
    places = [Path(folder) for folder in sys.argv[1:3]]
    found = [problem for name in sys.argv[3:] for problem in misplaced(places[0], places[1], name)]
    assert "llmquant" not in sys.modules
    print(json.dumps(found))
