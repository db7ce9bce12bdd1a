"""Ranks that share the windows count together what one process counts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from llmquant.engine.drive import Setting, drive
from llmquant.engine.in_memory import QuantizedInMemory
from llmquant.engine.prepare import prepare
from llmquant.engine.ranks import Distributed, Ranks
from llmquant.errors import QuantizationError
from llmquant.recipe.load import load_recipe


def quantized(checkpoint: Path, recipe: dict[str, Any], ranks: Ranks) -> QuantizedInMemory:
    """All results of a drive."""
    work = prepare(checkpoint, load_recipe(recipe)).work()
    sink = QuantizedInMemory([None, *range(len(work.blocks))])
    windows = torch.randint(1, 250, (10, 32), generator=torch.Generator().manual_seed(0))
    drive(work, windows, sink, Setting(ranks=ranks))
    return sink


def one_rank(rank: int, size: int, checkpoint: Path, recipe: dict[str, Any], folder: Path) -> None:
    """What a process of the group does."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=size)
    results = quantized(checkpoint, recipe, Distributed()).results
    torch.save(
        {name: (r.quantized.codes, r.quantized.scales, r.loss) for name, r in results.items()}, folder / str(rank)
    )
    distributed.destroy_process_group()


class Two(Ranks):
    size = 2


def test_tuning_in_several_processes_is_refused(checkpoint: Path, gptq_recipe: dict[str, Any]) -> None:
    """Each would tune on its own windows, to weights of its own."""
    recipe = {**gptq_recipe, "tuning": [{"method": "scale_refit", "steps": 1}]}
    with pytest.raises(QuantizationError, match="scale_refit sees the windows of one process"):
        quantized(checkpoint, recipe, Two())


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_several_processes(checkpoint: Path, gptq_recipe: dict[str, Any], tmp_path: Path, size: int) -> None:
    alone = quantized(checkpoint, gptq_recipe, Ranks()).results
    spawn(one_rank, (size, checkpoint, gptq_recipe, tmp_path), nprocs=size)
    ranks = [torch.load(tmp_path / str(rank)) for rank in range(size)]
    for name, result in alone.items():
        codes, scales, loss = ranks[0][name]
        for other in ranks[1:]:
            assert torch.equal(codes, other[name][0])
            assert torch.equal(scales, other[name][1])
        assert loss == pytest.approx(result.loss, rel=1e-3)
        assert (codes != result.quantized.codes).float().mean() < 0.02  # sums in another order turn a few
