"""llmquant.json beside a packed model that `save_pretrained` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant import formats
from llmquant.engine.output.folder import JOURNAL, PROVENANCE
from llmquant.engine.output.verify import hash_bytes, hash_file
from llmquant.errors import OutputError
from llmquant.formats.safetensors_file import write_json_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write_provenance(model: PreTrainedModel, made: Mapping[str, Any], folder: Path) -> None:
    """Compare the saved files with the model in memory, and write llmquant.json beside them.

    Raises:
        OutputError: if a tensor is not what the model holds.
    """
    saved = formats.find(formats.DEFAULT).open(folder)
    hashes = {name: hash_bytes(saved.read(name)) for name in sorted(saved.tensors)}
    for name, tensor in model.state_dict().items():
        if name in hashes and not tensor.is_meta and hash_bytes(tensor.detach().cpu().contiguous()) != hashes[name]:
            raise OutputError(
                f"{name} was saved as something else than the model holds; is the disk of {folder} sound?"
            )
    before = made.get("tensors")
    changed = sum(before.get(name) != found for name, found in hashes.items()) if before else 0
    small = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != JOURNAL]
    files = [path for path in small if not path.name.endswith((".safetensors", ".index.json"))]
    facts = {
        "changed": changed,
        "verified_tensors": len(hashes),
        "tensors": hashes,
        "metadata": dict(saved.metadata),
        "files": {path.name: hash_file(path) for path in files},
    }
    write_json_atomic(folder / PROVENANCE, {**made, **facts})
