"""Results of blocks in a folder, so that a run that was killed need not make them again.

For each block a safetensors file of codes, scales and zeros, written whole or not at all, and beside it the edits that
came before. What is damaged counts as not there: the same comes out when it is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, distributed

from llmquant.algorithms.rounding.base import LayerResult
from llmquant.engine.drive import Results
from llmquant.engine.layer import digest
from llmquant.engine.output.edits import write_edits
from llmquant.engine.output.folder import EDITS
from llmquant.errors import OutputError
from llmquant.files import read_plain
from llmquant.formats.safetensors_file import write_shard
from llmquant.models.edits import Edit, edits_from_bytes
from llmquant.numerics.quantized import QuantizedTensor


class KeptResults:
    """What blocks became on some calibration text; another text has a folder of its own."""

    def __init__(self, folder: Path, windows: Tensor | None) -> None:
        """`windows` are the token ids that the results come from; None where they come from weights alone."""
        ids = b"" if windows is None else windows.cpu().contiguous().numpy().tobytes()
        self._folder = folder / hashlib.sha256(ids).hexdigest()[:16]

    def write(self, block: int | None, results: Results, edits: Sequence[Edit]) -> None:
        """Keep what one block became (None: what lies outside the blocks). Of several processes the first does.

        Raises:
            OutputError: if it cannot be written.
        """
        if distributed.is_available() and distributed.is_initialized() and distributed.get_rank():
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {self._folder} ({error.strerror})") from error
        tensors, facts = {}, {}
        for name, (result, seconds) in results.items():
            quantized = result.quantized
            tensors |= {f"{name}.codes": quantized.codes, f"{name}.scales": quantized.scales}
            if quantized.zeros is not None:
                tensors[f"{name}.zeros"] = quantized.zeros
            facts[name] = [result.loss, result.counters, seconds, digest(quantized)]
        about = {"results": facts, "edits": write_edits(self._folder, _unit(block), edits)}
        write_shard(self._file(block), tensors, {"about": json.dumps(about)})

    def read(self, block: int | None) -> tuple[Results, list[Edit]] | None:
        """What was kept of a block; None if that is nothing, or damaged."""
        try:
            with safe_open(self._file(block), "pt") as file:
                about = json.loads(file.metadata()["about"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            edits = read_plain(self._folder / EDITS / _unit(block), OutputError)
            if hashlib.sha256(edits).hexdigest() != about["edits"]:
                return None
            results = {name: _result(name, tensors, *known) for name, known in about["results"].items()}
            return results, edits_from_bytes(edits)
        except (OSError, OutputError, SafetensorError, LookupError, TypeError, ValueError):
            return None

    def _file(self, block: int | None) -> Path:
        return self._folder / f"{_unit(block)}.safetensors"


def _unit(block: int | None) -> str:
    return "outside" if block is None else str(block)


def _result(
    name: str, tensors: dict[str, Tensor], loss: float, counters: dict[str, Any], seconds: float, known: str
) -> tuple[LayerResult, float]:
    quantized = QuantizedTensor(tensors[f"{name}.codes"], tensors[f"{name}.scales"], tensors.get(f"{name}.zeros"))
    if digest(quantized) != known:
        raise ValueError(f"{name} is not what was written")
    return LayerResult(quantized, loss, counters), seconds
