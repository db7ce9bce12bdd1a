"""Edits: rewrites of a model's tensors that leave what it computes as it was, as data.

An edit is small, exact and knows its parameter by name, so it can be written beside a run and applied again on resume,
to a checkpoint that is read (`source.Edited`) as to a model in memory (`apply_edits`). A chain of edits of one tensor
is computed in float64 and rounded once, to the dtype in which the tensor is stored.

Legend: W a weight as layers use it, y = W x; "out" is the dimension of y, "in" that of x. In memory W is (..., out, in)
with any dimensions in front (experts); `turned` ones, those of Conv1D, are (..., in, out). Vectors have "out" only.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from llmquant.errors import OutputError, QuantizationError

Kind = Literal["scale_out", "scale_in", "rotate_out", "rotate_in", "set", "add", "untie", "config"]


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """One edit.

    Attributes:
        kind: "scale_out" and "scale_in" multiply the weight along that dimension by `by`, a vector. "rotate_out" and
            "rotate_in" multiply it by the orthogonal matrix R = `by`, so that y becomes R y, or x may come as R x; a
            smaller R rotates each of the pieces that it fits into. "set" replaces the whole tensor by `by`, or creates
            it; "add" adds `by`. "untie" makes the tensor a copy of another, which `value` names, as that is at this
            point. "config" sets an entry of config.json to `value`.
        name: of the parameter in the model; of a "config" edit, the keys down to the entry, joined by dots.
        by: float64.
        turned: whether the weight lies in memory as (in, out).
        offset: of scales: what the layer adds to the tensor before it uses it, such as 1 in the norms of Gemma.
        value: see `kind`.
    """

    kind: Kind
    name: str
    by: Tensor | None = None
    turned: bool = field(default=False, kw_only=True)
    offset: float = field(default=0.0, kw_only=True)
    value: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"an edit is one of {', '.join(get_args(Kind))}, not {self.kind!r}")
        if (self.by is None) != (self.kind in ("untie", "config")):
            raise ValueError(
                f"an edit {self.kind!r} of {self.name} {'takes no' if self.by is not None else 'needs a'} tensor"
            )
        if self.by is not None:
            object.__setattr__(self, "by", self.by.detach().to("cpu", torch.float64).contiguous())


def fold_norm(
    norm: str, weight: Tensor, readers: Iterable[str], *, turned: bool = False, offset: float = 0.0
) -> list[Edit]:
    """The edits that move the weight of a norm without bias into the layers that read it.

    `readers` are the weights of all layers that read it, and of nothing else, all of them `turned` or none. The norm
    multiplies with `offset` + its `weight` (features,).
    """
    factors = weight.double() + offset
    ones = Edit("set", norm, torch.full_like(factors, 1 - offset))
    return [*(Edit("scale_in", reader, factors, turned=turned) for reader in readers), ones]


def untie(name: str, owner: str) -> list[Edit]:
    """The edits that give a tied parameter, such as "lm_head.weight", values of its own: those of `owner` now."""
    return [Edit("untie", name, value=owner), Edit("config", "tie_word_embeddings", value=False)]


def edited_value(name: str, edits: Sequence[Edit], read: Callable[[str], Tensor | None]) -> Tensor | None:
    """What edits make of one tensor.

    `read` gives a parameter without edits, None where there is none of that name. Returns float64; None where no edit
    creates what is not there.
    """
    value = read(name)
    value = None if value is None else value.double()
    for position, edit in enumerate(edits):
        if edit.name == name and edit.kind != "config":
            if edit.kind == "untie":
                value = edited_value(edit.value, edits[:position], read)
            elif edit.kind == "set":
                value = cast(Tensor, edit.by).clone()
            elif value is None:
                raise QuantizationError(f"{name}: an edit {edit.kind!r} of a tensor that is not there")
            else:
                value = _applied(value, edit)
    return value


def round_to(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The value in the dtype in which it is stored.

    Raises:
        QuantizationError: if that cannot hold it.
    """
    rounded = value.to(dtype)
    if not bool(rounded.isfinite().all()):
        largest = value.abs().max().item()
        raise QuantizationError(
            f"{name}: an edit makes its largest magnitude {largest:.4g}, which {dtype} cannot hold; use a weaker "
            "transform, or none"
        )
    return rounded


@torch.no_grad()
def apply_edits(
    module: nn.Module, edits: Sequence[Edit], *, prefix: str = "", dtype: torch.dtype | None = None
) -> None:
    """Edit the parameters of a module in place.

    What it does not have is left out, as are edits of the config; parameters on the meta device stay there. `prefix` is
    the name of the module in the model that the edits name the parameters of, `dtype` the one that tensors are stored
    in, if not that which they have here.

    Raises:
        QuantizationError: if a value does not fit the dtype.
    """
    start = f"{prefix}." if prefix else ""
    modules = dict(module.named_modules(remove_duplicate=False))
    parameters = dict(module.named_parameters(remove_duplicate=False))

    def read(name: str) -> Tensor | None:
        parameter = parameters.get(name.removeprefix(start))
        return None if parameter is None else parameter.detach().cpu()

    values = {}
    for name in dict.fromkeys(edit.name for edit in edits if edit.kind != "config" and edit.name.startswith(start)):
        inner = name.removeprefix(start)
        owner = inner.rpartition(".")[0]
        there = parameters.get(inner)
        if (there is not None and there.is_meta) or owner not in modules:
            continue
        value = edited_value(name, edits, read)
        assert value is not None
        like = there if there is not None else next(modules[owner].parameters())
        values[inner] = round_to(value, dtype or like.dtype, name).to(like)
    for inner, value in values.items():
        owner, _, leaf = inner.rpartition(".")
        there = parameters.get(inner)
        if there is not None and all(edit.kind != "untie" for edit in edits if edit.name == f"{start}{inner}"):
            there.copy_(value)  # a tied parameter changes wherever it is used
        else:
            setattr(modules[owner], leaf, nn.Parameter(value, requires_grad=False))


def edited_config(config: Mapping[str, Any], edits: Iterable[Edit]) -> dict[str, Any]:
    """A copy of the content of config.json with the "config" edits in it."""
    result = copy.deepcopy(dict(config))
    for edit in edits:
        if edit.kind == "config":
            *path, last = edit.name.split(".")
            place = result
            for key in path:
                place = place.setdefault(key, {})
            place[last] = edit.value
    return result


def edits_to_bytes(edits: Sequence[Edit]) -> bytes:
    """Edits as one safetensors file, with all but their tensors as JSON in its metadata."""
    rows, tensors, stored = [], {}, {}
    for edit in edits:
        row = {"kind": edit.kind, "name": edit.name, "turned": edit.turned, "offset": edit.offset, "value": edit.value}
        if edit.by is not None:  # one that several edits share goes there once
            row["by"] = stored.setdefault((edit.by.data_ptr(), edit.by.shape), str(len(stored)))
            tensors[row["by"]] = edit.by.clone()  # others may be views of its memory, which safetensors refuses
        rows.append(row)
    return safetensors.torch.save(tensors, {"edits": json.dumps(rows, sort_keys=True)})


def edits_from_bytes(data: bytes) -> list[Edit]:
    """The edits that `edits_to_bytes` wrote.

    Raises:
        OutputError: if the bytes are damaged.
    """
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        rows = cast(list[dict[str, Any]], json.loads(header["__metadata__"]["edits"]))
        return [Edit(by=tensors[row.pop("by")] if "by" in row else None, **row) for row in rows]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise OutputError(f"the edits of an earlier run are damaged ({error}); start again with --overwrite") from error


def _applied(value: Tensor, edit: Edit) -> Tensor:
    """A tensor (float64) behind one edit of its own."""
    by = edit.by
    assert by is not None
    if edit.kind == "add":
        _require(by.shape == value.shape, value, edit)
        return value + by
    out = edit.kind.endswith("_out")
    _require(value.ndim > 1 or out, value, edit)
    moved = value.unsqueeze(-1) if value.ndim == 1 else value.mT if edit.turned else value  # (..., out, in)
    moved = moved if out else moved.mT
    if edit.kind.startswith("scale"):
        _require(by.shape == moved.shape[-2:-1], value, edit)
        moved = (moved + edit.offset) * by.unsqueeze(-1) - edit.offset
    else:
        size = moved.shape[-2]
        _require(by.ndim == 2 and by.shape[0] == by.shape[1] and size % by.shape[0] == 0, value, edit)
        moved = (by @ moved.unflatten(-2, (-1, by.shape[0]))).flatten(-3, -2)
    moved = moved if out else moved.mT
    return moved.squeeze(-1) if value.ndim == 1 else moved.mT if edit.turned else moved


def _require(fits: bool, value: Tensor, edit: Edit) -> None:
    if not fits:
        assert edit.by is not None
        raise QuantizationError(
            f"{edit.name}: an edit {edit.kind!r} by {list(edit.by.shape)} does not fit the shape {list(value.shape)}"
        )
