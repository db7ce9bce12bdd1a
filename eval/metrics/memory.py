"""Bytes: of a checkpoint on disk, of a model in memory, and at the peak of a piece of work."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from llmquant.errors import CheckpointError
from llmquant.eval.result import Memory
from llmquant.memory import return_free_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class CheckpointSize:
    """Bytes of the safetensors files of a folder, with headers, and of the tensors alone."""

    file_bytes: int
    tensor_bytes: int

    def bits_per_weight(self, parameters: int) -> float:
        """Bits of all stored tensors (scales, zeros and kept tensors too) per weight of the original model."""
        return 8 * self.tensor_bytes / parameters


def checkpoint_size(folder: str | Path) -> CheckpointSize:
    """Size of the safetensors files that a folder's index names, or of all where it has no index.

    Raises:
        CheckpointError: if there is none, or one is missing or truncated.
    """
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: no safetensors files; give a folder that holds a model")
    sizes = [_file_size(file) for file in files]
    return CheckpointSize(sum(total for total, _ in sizes), sum(tensors for _, tensors in sizes))


def _file_size(file: Path) -> tuple[int, int]:
    """Bytes of a file and of its tensors: all but the 8-byte length and the JSON header."""
    if not file.is_file():
        raise CheckpointError(f"{file}: named by the index, but missing; copy the checkpoint again")
    total = file.stat().st_size
    with file.open("rb") as stream:
        header = 8 + int.from_bytes(stream.read(8), "little")
    if total < header:
        raise CheckpointError(f"{file}: truncated: {total} bytes, its header alone needs {header}; copy it again")
    return total, total - header


def parameter_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers; memory shared by tied tensors counts once."""
    sizes = {}
    for tensor in (*model.parameters(), *model.buffers()):
        # By where a tensor begins: prepared weights share a storage that is larger than all of them.
        sizes[tensor.data_ptr(), tensor.device] = tensor.nbytes
    return sum(sizes.values())


@dataclass(frozen=True, slots=True)
class Peak(Generic[Result]):
    """What a call returned, and the rise of the process's peak resident memory while it ran (None: cannot be told)."""

    result: Result
    rise_bytes: int | None
    note: str


def peak_rss_of(work: Callable[[], Result]) -> Peak[Result]:
    """Run `work` and measure how far resident memory rises above its level before.

    Linux only: VmHWM of /proc/self/status, reset through /proc/self/clear_refs. Where the reset is not permitted the
    process's peak so far may hide the rise, and none is reported.
    """
    gc.collect()
    return_free_memory()  # work that reuses freed heap would be measured as free of cost
    if not _STATUS.is_file():
        return Peak(work(), None, "peak memory is measured on Linux only")
    try:
        _CLEAR_REFS.write_text("5")  # 5 resets the peak resident set size, see proc_pid_clear_refs(5)
    except OSError:
        return Peak(work(), None, f"the peak counter cannot be reset here; process peak {status_bytes('VmHWM')} bytes")
    before = status_bytes("VmRSS")
    result = work()
    return Peak(result, max(0, status_bytes("VmHWM") - before), "rise of the peak resident set (VmHWM) over its start")


def status_bytes(key: str) -> int:
    """A memory figure of this process from /proc/self/status, such as VmRSS or VmHWM (Linux only)."""
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def measure_memory(model: PreTrainedModel, work: Callable[[], object]) -> Memory:
    """Memory of a loaded model, and what `work` (one window scored by it) needs on top."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        work()
        rise = torch.cuda.max_memory_allocated(model.device) - before
        return Memory(parameter_bytes(model), rise, "rise of the peak of GPU memory allocated by torch")
    peak = peak_rss_of(work)
    return Memory(parameter_bytes(model), peak.rise_bytes, peak.note)
