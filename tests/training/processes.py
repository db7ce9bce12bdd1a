"""What two processes do in test_run_processes.py; the launcher starts this file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import state
from accelerate.utils import DistributedType
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from llmquant import load
from llmquant.training import run
from llmquant.training.run import qat
from tests.training.conftest import prepared, rows, trainer
from tests.training.test_run import Options, options

STEPS = 3
AS_TWO: dict[str, Any] = {"device": "cpu", "options": Options(per_device=2, save_steps=4)}
BEGIN, MAKE_WHOLE = state.AcceleratorState.__init__, run.make_whole
LOW_RANK = {"lora": {"rank": 4, "alpha": 8.0}, "learning_rate": 0.05}


def losses_of(model: Any, ids: list[torch.Tensor]) -> list[float]:
    """Of a few steps on these batches, with torch's own loop."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    found = []
    for batch in ids:
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def batches(rank: int | None = None) -> list[torch.Tensor]:
    """Four rows a step; of a rank two of them."""
    ids = torch.stack([row["input_ids"] for row in rows(4 * STEPS)]).view(STEPS, 4, -1)
    return list(ids if rank is None else ids[:, 2 * rank : 2 * rank + 2])


def shard(out: Path) -> None:
    """Train with FSDP2, and let the first process save what all hold together."""
    model, rank = prepared(), distributed.get_rank()
    for block in model.model.layers:
        fully_shard(block)
    fully_shard(model)
    assert isinstance(model.model.layers[0].mlp.up_proj.weight_scale_change, DTensor)
    losses_of(model, batches(rank))
    whole = {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }
    if rank == 0:
        torch.save(whole, out)
    distributed.destroy_process_group()


def adapter_losses(folder: Path, out: Path, world: int = 1) -> list[float]:
    """Of an adapter of peft on a packed model."""
    torch.manual_seed(0)
    model: Any = get_peft_model(load(folder, dtype=torch.float32), LoraConfig(r=4, target_modules="all-linear"))
    made = trainer(model, out, callbacks=[], per_device_train_batch_size=4 // world, learning_rate=1e-2)
    made.train()
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def note(losses: list[float], out: Path) -> None:
    """By the first process."""
    if distributed.get_rank() == 0:
        out.write_text(json.dumps(losses))


def let_accelerate_shard(*, cast: bool) -> None:
    """On the CPU: accelerate asks for a GPU first, torch's FSDP2 does not.

    `cast`: gather weights in bfloat16, as accelerate does on a GPU for what `llmquant qat` asks for there.
    """

    def __init__(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        BEGIN(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        self.fsdp_plugin = fsdp_plugin or self.fsdp_plugin
        if self.fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
        if cast and fsdp_plugin is not None:
            fsdp_plugin.set_mixed_precision("bf16")

    state.AcceleratorState.__init__ = __init__


def make_whole(model: Any) -> None:
    """See that it was sharded."""
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    MAKE_WHOLE(model)


if __name__ == "__main__":
    torch.set_num_threads(1)
    source, text, folder, *sharded = sys.argv[1:]
    if sharded:
        run.make_whole = make_whole
        let_accelerate_shard(cast=True)
        qat(source, options(**LOW_RANK), text, Path(folder, "sharded"), **AS_TWO)
        let_accelerate_shard(cast=False)
        note(adapter_losses(Path(folder, "two"), Path(folder, "adapter"), world=2), Path(folder, "sharded.json"))
    else:
        qat(source, options(), text, Path(folder, "two"), **AS_TWO)
        qat(source, options(**LOW_RANK), text, Path(folder, "two-low-rank"), **AS_TWO)
        note(adapter_losses(Path(folder, "two"), Path(folder, "adapter"), world=2), Path(folder, "two.json"))
        shard(Path(folder, "two.pt"))
