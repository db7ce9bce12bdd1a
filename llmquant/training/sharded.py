"""Training that is sharded over processes by FSDP2, as `accelerate launch --use_fsdp` sets it up.

Rounding needs whole weights, and so does packing: every process loads and rounds the model before it is sharded, and
the first makes it whole again from the best checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from llmquant.errors import DeviceError

# What accelerate tells its processes, and what it has to be.
_NEEDED = {
    "FSDP_VERSION": ("2", "fsdp_version: 2", "scales and weights keep their own shapes only there"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": (
        "false", "fsdp_cpu_ram_efficient_loading: false", "each process rounds the weights it has loaded"
    ),
    "FSDP_STATE_DICT_TYPE": (
        "FULL_STATE_DICT", "fsdp_state_dict_type: FULL_STATE_DICT", "the best checkpoint becomes the packed model"
    ),
}  # fmt: skip


def check_sharding(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse what accelerate's FSDP cannot do here, before any work.

    Raises:
        DeviceError: names the setting of `accelerate config`.
    """
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    for name, (wanted, setting, why) in _NEEDED.items():
        if environment.get(name, "").lower() != wanted.lower():
            raise DeviceError(
                f"FSDP with {name}={environment.get(name, '')!r}: training of rounded weights needs `{setting}` in the "
                f"config of accelerate, because {why}"
            )


def make_whole(model: nn.Module) -> None:
    """Undo sharding in this process alone: plain modules, and in the place of each shard NaN, for values to be loaded.

    What FSDP hooked to the forward pass stays, so the model is good to be packed, not to be called.
    """
    made: dict[int, nn.Parameter] = {}  # tied ones stay tied
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.__class__ = type(module).__bases__[1]  # it derived one of both
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                nothing = torch.full(parameter.shape, torch.nan, dtype=parameter.dtype)
                whole = made.setdefault(id(parameter), nn.Parameter(nothing, parameter.requires_grad))
                module.register_parameter(name, whole)
