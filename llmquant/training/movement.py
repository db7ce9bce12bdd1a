"""How far training moved codes and scales, for its log."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmquant.hf.qat import fake_layers
from llmquant.nn.fake_weight import FakeWeight
from llmquant.numerics.grid import Grid, round_to_grid
from llmquant.numerics.stored_scale import as_stored

_WATCHED = 1 << 20  # weights of a layer, in whole rows; of larger ones rows at equal distances stand for all


@dataclass(slots=True)
class _Seen:
    scales: Tensor
    first: Tensor  # codes
    last: Tensor


class Movement:
    """Compares the layers of a model with how they were when it was made, and when it was last asked.

    Keeps two bytes for each weight that it watches.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen: dict[str, _Seen] = {}
        for name, layer in fake_layers(model).items():
            codes, scales = _now(layer)
            self._seen[name] = _Seen(scales, codes, codes)

    def mark(self, model: nn.Module) -> None:
        """Take the codes as they are now for those of the last call."""
        for name, layer in fake_layers(model).items():
            if name in self._seen:
                self._seen[name].last = _now(layer)[0]

    @torch.no_grad()
    def facts(self, model: nn.Module) -> dict[str, float]:
        """What is added to the log.

        "scale_drift" is the mean absolute logarithm of scales over those of the start; "codes_flipped" the share of
        codes that differ from the start's, and "codes_flipped_since_log" from those at the last call; "dead_zone" the
        share of weights that are read as 0, where a small change of the weight changes nothing.
        """
        drift = groups = flipped = since = zeros = weights = 0.0
        for name, layer in fake_layers(model).items():
            seen = self._seen.get(name)
            if seen is None:  # wrapped, and called otherwise now
                continue
            codes, scales = _now(layer)
            drift += float((scales / seen.scales).abs().log().abs().sum())
            groups += scales.numel()
            flipped += int((codes != seen.first).sum())
            since += int((codes != seen.last).sum())
            zeros += int(_is_zero(codes, layer).sum())
            weights += codes.numel()
            seen.last = codes
        shares = {"codes_flipped": flipped, "codes_flipped_since_log": since, "dead_zone": zeros}
        return {"scale_drift": drift / max(groups, 1)} | {key: n / max(weights, 1) for key, n in shares.items()}


@torch.no_grad()
def _now(layer: FakeWeight) -> tuple[Tensor, Tensor]:
    """Codes and scales of the rows that are watched."""
    change = layer.weight_scale_change
    scales = layer.weight_scale if change is None else layer.weight_scale * _whole(change).exp()
    scales = _rows(as_stored(scales, layer.scale_dtype), layer)
    if layer.weight_codes is not None:
        return _rows(layer.weight_codes, layer), scales.clone()
    matrix = _rows(_whole(layer.matrix()), layer)
    zeros = None if layer.weight_zero_point is None else _rows(layer.weight_zero_point, layer)
    return round_to_grid(matrix, Grid(scales, zeros), layer.scheme), scales.clone()


def _rows(of: Tensor, layer: FakeWeight) -> Tensor:
    shape = layer.weight.shape if layer.weight is not None else layer.weight_codes.shape  # pyright: ignore[reportOptionalMemberAccess]
    return of[:: max(1, shape[0] * shape[1] // _WATCHED)] if of.shape[0] > 1 else of


def _is_zero(codes: Tensor, layer: FakeWeight) -> Tensor:
    if layer.weight_zero_point is None:
        return codes == 0
    zeros = _rows(layer.weight_zero_point, layer)
    return codes.view(codes.shape[0], zeros.shape[1], -1) == zeros.unsqueeze(-1)


def _whole(tensor: Tensor) -> Tensor:
    """Of a tensor that is spread over processes, all of it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]
