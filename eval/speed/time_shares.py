"""Where the time of a pass goes: linear layers that the quantized model packs, those that it keeps, and the rest.

Packed layers are watched at their kernels, since a fused decoder layer calls those and not the layers; others by hooks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from llmquant.eval.speed.throughput import now
from llmquant.nn.embedding import PackedEmbedding
from llmquant.nn.int8_linear import Int8Linear

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_KERNELS = ("linear", "linear_fused")


@dataclass(frozen=True, slots=True)
class Shares:
    """Seconds of one pass."""

    packed: float  # in the linear layers that the quantized model packs, maybe with norms that are fused into them
    kept: float  # in other linear layers
    rest: float  # attention, norms, Python

    @property
    def total(self) -> float:
        """Of the whole pass."""
        return self.packed + self.kept + self.rest

    def least(self, other: Shares) -> Shares:
        """The less of both in each part: whatever else the machine does makes a time longer, never shorter."""
        return Shares(min(self.packed, other.packed), min(self.kept, other.kept), min(self.rest, other.rest))


def linears(model: nn.Module) -> dict[str, Any]:
    """Everything that multiplies with a weight, by name; of whatever tool."""
    tables = (nn.Embedding, PackedEmbedding)
    return {
        name: each
        for name, each in model.named_modules()
        if hasattr(each, "in_features") and not isinstance(each, tables)
    }


def packed_names(model: nn.Module) -> set[str]:
    """Names of the linear layers that are more than torch's."""
    return {name for name, each in linears(model).items() if type(each) is not nn.Linear}


def time_shares(model: PreTrainedModel, ids: Tensor, context: int, packed: Iterable[str]) -> tuple[Shares, Shares]:
    """Watch a prefill of `context` tokens, and a decode step, the mean of those that ids (batch_size, tokens) leave."""
    ids, steps, cache = ids.to(model.device), ids.shape[1] - context, None
    found = []
    with _watched(model, set(packed)) as seconds:
        for begin, end in ((0, context), (context, ids.shape[1])):
            seconds.clear()
            start = now(model.device)
            for part in [ids[:, begin:end]] if not begin else ids[:, begin:end].split(1, dim=1):
                cache = model(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
            passed, count = now(model.device) - start, steps if begin else 1
            known = seconds["packed"], seconds["kept"]
            found.append(Shares(*(each / count for each in (*known, max(0.0, passed - sum(known))))))
    return found[0], found[1]


@contextmanager
def _watched(model: nn.Module, packed: set[str]) -> Iterator[dict[str, float]]:
    """Seconds by part, as they pass inside the block."""
    seconds: dict[str, float] = defaultdict(float)
    proxies: dict[int, Any] = {}
    device: torch.device = next(model.parameters()).device
    with ExitStack() as stack:
        for name, module in linears(model).items():
            part = "packed" if name in packed else "kept"
            kernels = getattr(module, "kernels", None)
            if kernels is None or isinstance(module, Int8Linear):  # which calls its kernel by itself
                stack.enter_context(_hooked(module, part, device, seconds))
                continue
            # One for all layers of the same kernels, since only those share a fused call.
            proxy = proxies.setdefault(id(kernels), _Watch(kernels, device, seconds))
            stack.callback(setattr, module, "kernels", kernels)
            module.kernels = proxy
        yield seconds


@contextmanager
def _hooked(module: nn.Module, part: str, device: torch.device, seconds: dict[str, float]) -> Iterator[None]:
    began: list[float] = []

    def after(*_: Any) -> None:
        seconds[part] += now(device) - began.pop()

    hooks = [
        module.register_forward_pre_hook(lambda *_: began.append(now(device))),
        module.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Watch:
    """Kernels that tell how long they took."""

    def __init__(self, kernels: Any, device: torch.device, seconds: dict[str, float]) -> None:
        self._kernels, self._device, self._seconds = kernels, device, seconds

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._kernels, name)
        return self._timed(found) if name in _KERNELS else found

    def _timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            start = now(self._device)
            result = work(*args)
            self._seconds["packed"] += now(self._device) - start
            return result

        return run
