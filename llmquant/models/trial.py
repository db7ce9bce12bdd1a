"""Does model code get along with packed layers? One forward of the model on the meta device, without weights, tells.

A packed layer has no `weight`. Most models never ask for it, but some multiply by it themselves, or look at its dtype.
No list of architectures can say which: here every layer that may be packed hides its weight, and whoever asks for it is
written down. The same forward shows which layers choose experts: what they compute goes into a top-k as it is.

Nothing is computed on meta, so the size of a model does not matter; of blocks that are alike only the first runs.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llmquant.compat.border import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 4
_HIDDEN = "_hidden_weight"
_SOURCES = "_computed_by"  # of a tensor: linear layers that it comes from, each with its number of outputs


@dataclass(slots=True)
class Trial:
    """What a forward showed.

    Attributes:
        readers: for each layer whose weight model code reads, where; such a layer cannot be packed.
        routers: the linear layers whose output goes into a top-k over all of it.
        failure: why the model does not run on the meta device, so that nothing is known; "" if it ran.
        initialised: for each layer whose weight the model asks for when it initialises what no file holds, where.
        recast: the first buffer that model code replaced by one of another dtype; "" if it replaced none.
        idle: the layers that did not run: tokens alone do not reach them.
    """

    readers: dict[str, str] = field(default_factory=dict)
    routers: set[str] = field(default_factory=set)
    failure: str = ""
    initialised: dict[str, str] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()
    recast: str = ""


def try_packed(
    model: PreTrainedModel,
    layers: Mapping[str, nn.Module],
    experts: Mapping[str, nn.Module],
    blocks: Sequence[nn.Module] = (),
) -> Trial:
    """Run a model as if `layers` were packed.

    The model, with parameters on meta, is the same afterwards. Which expert sees which token depends on data that is
    not there, so `experts` answer with what they are asked.
    """
    trial = Trial()
    with _on_meta(model), _passing(experts), _repeating(blocks), _hiding(layers) as hidden:
        asked = _Reads()
        trial.failure = _run(model, hidden, asked, trial)
        if not trial.failure:
            ran = {_template(name) for name in asked.ran}
            trial.idle = frozenset(name for name in layers if _template(name) not in ran)
        # Asking is not yet needing: `hasattr`, say. So those that were asked refuse, until the model runs.
        while not trial.failure and asked.where and trial.readers.keys() != asked.where.keys():
            refusing = _Reads(frozenset(asked.where.keys() - trial.readers.keys()))
            if not _run(model, hidden, refusing, Trial()) or refusing.last is None:
                break
            trial.readers[refusing.last] = asked.where[refusing.last]
        with _forgetting(model):
            trial.initialised = _initialise(model, hidden)
    for name, where in list(trial.readers.items()):
        trial.readers |= dict.fromkeys(_alike(name, layers), where)
    trial.routers |= {other for name in list(trial.routers) for other in _alike(name, layers)}
    return trial


@dataclass(slots=True)
class _Reads:
    """Who asked for which weight, and which layers ran. `last` is the layer that refused last."""

    refusing: frozenset[str] = frozenset()
    where: dict[str, str] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)
    last: str | None = None


def _alike(name: str, names: Iterable[str]) -> list[str]:
    """The names that differ from `name` only in numbers: the same layer in other blocks."""
    return [other for other in names if _template(other) == _template(name)]


def _template(name: str) -> str:
    return ".".join("#" if part.isdigit() else part for part in name.split("."))


def _run(model: PreTrainedModel, hidden: Mapping[int, str], reads: _Reads, found: Trial) -> str:
    """One forward, which adds what it shows to `found`; why it failed, or ""."""
    tokens = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    try:
        with _forgetting(model), _as_packed(hidden, reads), _Watch(found.routers):
            before = {name: buffer.dtype for name, buffer in model.named_buffers()}
            model(input_ids=tokens, **options)
            after = {name: buffer.dtype for name, buffer in model.named_buffers()}
            found.recast = next((name for name in before if after.get(name, before[name]) != before[name]), "")
    except Exception as error:  # noqa: BLE001 - other people's code on a device it was not written for
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


@contextmanager
def _as_packed(hidden: Mapping[int, str], reads: _Reads) -> Iterator[None]:
    _Hides.reads, _Hides.names = reads, hidden
    try:
        with torch.no_grad(), torch.device("meta"):
            yield
    finally:
        _Hides.reads, _Hides.names = None, {}


@contextmanager
def _forgetting(model: nn.Module) -> Iterator[None]:
    """Undo what modules set in themselves: some remember that they have run."""
    before = [(holder, dict(holder)) for module in model.modules() for holder in _holders(module)]
    try:
        yield
    finally:
        for holder, content in before:
            holder.clear()
            holder.update(content)


def _holders(module: nn.Module) -> tuple[Any, ...]:
    """The dicts of all that a module has."""
    return module.__dict__, module._parameters, module._buffers


def _initialise(model: PreTrainedModel, hidden: Mapping[int, str]) -> dict[str, str]:
    """The layers without which plain transformers, which has none of our stand-ins, cannot initialise a model."""
    from llmquant.compat.plain_loading import initialisations  # which imports transformers

    found: dict[str, str] = {}
    for initialise in initialisations(model):
        while True:
            reads = _Reads(frozenset(hidden.values()) - found.keys())
            with suppress(Exception), _as_packed(hidden, reads):
                initialise()
                break
            if reads.last is None:
                break  # of another kind, which is not ours to judge
            found[reads.last] = reads.where[reads.last]
    return found


class _Hides:
    """Mixed into the class of a layer while it passes for a packed one. One trial at a time."""

    reads: _Reads | None = None
    names: Mapping[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        if name != "weight" or (reads := _Hides.reads) is None:
            return super().__getattr__(name)  # pyright: ignore[reportAttributeAccessIssue]
        layer, caller = _Hides.names[id(self)], sys._getframe(1)
        reads.where.setdefault(layer, f"{Path(caller.f_code.co_filename).name}, in {caller.f_code.co_name}")
        if layer in reads.refusing:
            reads.last = layer
            raise AttributeError("a packed layer has no attribute 'weight'")
        return self.__dict__[_HIDDEN]

    def forward(self, x: Tensor) -> Tensor:
        if _Hides.reads is not None:
            _Hides.reads.ran.add(_Hides.names[id(self)])
        if isinstance(self, nn.Embedding):
            return self.__dict__[_HIDDEN].new_empty((*x.shape, self.embedding_dim))
        # The dense weight of a Conv1D is (inputs, outputs), that of a Linear (outputs, inputs).
        weight = self.__dict__[_HIDDEN]
        outputs = weight.shape[0] if isinstance(self, nn.Linear) else weight.shape[1]
        assert x.shape[-1] == weight.numel() // outputs
        result = x.new_empty((*x.shape[:-1], outputs))
        setattr(result, _SOURCES, frozenset({(_Hides.names[id(self)], outputs)}))
        return result


@cache
def _hiding_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_Hides, kind), {})


@contextmanager
def _hiding(layers: Mapping[str, nn.Module]) -> Iterator[Mapping[int, str]]:
    """Let layers pass for packed ones; their names by id."""
    kinds = {name: type(module) for name, module in layers.items()}
    try:
        for name, module in layers.items():
            module.__dict__[_HIDDEN] = module._parameters.pop("weight")
            module.__class__ = _hiding_class(kinds[name])
        yield {id(module): name for name, module in layers.items()}
    finally:
        for name, module in layers.items():
            if _HIDDEN not in module.__dict__:
                continue
            module.__class__ = kinds[name]
            own = {"weight": module.__dict__.pop(_HIDDEN), **module._parameters}  # where it was: first
            module._parameters.clear()
            module._parameters.update(own)


@contextmanager
def _passing(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Let modules answer with their first argument."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))

    try:
        for module in modules.values():
            module.__dict__["forward"] = answer
        yield
    finally:
        for module in modules.values():
            module.__dict__.pop("forward", None)


@contextmanager
def _repeating(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let a block answer with what the first block like it gave: on meta that is the same."""
    given: dict[Any, Any] = {}

    def first(block: nn.Module, key: Any) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            given[key] = type(block).forward(block, *args, **kwargs)
            return given[key]

        return forward

    def again(block: nn.Module, key: Any) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return given[key] if key in given else type(block).forward(block, *args, **kwargs)

        return forward

    seen = set()
    try:
        for block in blocks:
            key = _likeness(block)
            block.__dict__["forward"] = (again if key in seen else first)(block, key)
            seen.add(key)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _likeness(block: nn.Module) -> tuple[Any, ...]:
    """Equal for blocks that compute the same: their parts, sizes, and what they were told in words."""
    parts = []
    for name, module in block.named_modules():
        words = tuple((key, value) for key, value in module.__dict__.items() if isinstance(value, (bool, str)))
        sizes = tuple((key, value.shape) for key, value in module.named_parameters(recurse=False))
        parts.append((name, type(module), words, sizes))
    return tuple(parts)


@contextmanager
def _on_meta(model: nn.Module) -> Iterator[None]:
    """Move buffers, and tensors that are plain attributes, to meta for a while; parameters are there already."""
    with ExitStack() as stack:
        for module in model.modules():
            for holder in _holders(module):
                real = {k: v for k, v in holder.items() if isinstance(v, Tensor) and not v.is_meta}
                stack.callback(holder.update, real)
                holder.update({name: _meta(tensor) for name, tensor in real.items()})
        yield


def _meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


class _Watch(TorchFunctionMode):
    """Answers what has no answer on meta, and follows what linear layers compute to the top-k that it goes into."""

    def __init__(self, routers: set[str]) -> None:
        super().__init__()
        self._routers = routers

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _ANSWERS and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return _ANSWERS[name]
        result = func(*args, **(kwargs or {}))
        if name in _PRODUCTS:
            return result
        tensors = [arg for arg in (*args, *(kwargs or {}).values()) if isinstance(arg, Tensor)]
        sources = frozenset().union(*(getattr(tensor, _SOURCES, frozenset()) for tensor in tensors))
        if name == "topk" and len(sources) == 1:
            layer, outputs = next(iter(sources))
            if tensors[0].shape[-1] == outputs:
                self._routers.add(layer)
        for out in result if isinstance(result, tuple) else (result,):
            if sources and isinstance(out, Tensor):
                setattr(out, _SOURCES, sources)
        return result


# Behind these nothing is what a linear layer computed.
_PRODUCTS = {
    "linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "conv1d",
    "scaled_dot_product_attention",
}  # fmt: skip
_ANSWERS = {"__bool__": False, "__contains__": False, "item": 1, "__int__": 1, "__index__": 1, "__float__": 1.0}
