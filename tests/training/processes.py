"""What two processes do in test_run_processes.py; the launcher starts this file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from llmquant.training.run import qat
from tests.training.conftest import prepared, rows
from tests.training.test_run import Options, options

STEPS = 3


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    source, text, folder = sys.argv[1:]
    qat(source, options(), text, Path(folder, "two"), device="cpu", options=Options(per_device=2, save_steps=4))
    shard(Path(folder, "two.pt"))
