"""Units of work: each becomes one shard of the result, and is either on disk as a whole or made again.

One unit holds what lies outside the decoder blocks (embeddings, final norm, head); then there is one for each block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from llmquant.compat.loading import KeyMap
from llmquant.errors import CheckpointError
from llmquant.formats.base import Content
from llmquant.models.safetensors_header import TensorInfo
from llmquant.recipe.plan import MatrixRow, Plan
from llmquant.spec import KEEP

_CALIBRATED = 100  # work of a weight that needs statistics, where one that is only rounded is 1


@dataclass(frozen=True, slots=True)
class Unit:
    """Attributes:
    block: index of the decoder block, None for what is outside.
    file: its name; where a format has a file for each unit, of that file.
    copied: checkpoint keys that go into the shard as they are.
    quantized: rows of the plan with the checkpoint key of their weight.
    """

    block: int | None
    file: str
    copied: tuple[str, ...]
    quantized: tuple[tuple[MatrixRow, str], ...]

    @property
    def work(self) -> float:
        """About how long it takes, compared with other units; only for estimates of the time left."""
        costs = ((prod(row.matrix.shape), row.needs) for row, _ in self.quantized)
        return 1.0 + sum(weights * (_CALIBRATED if calibrated else 1) for weights, calibrated in costs)


def split_into_units(plan: Plan, tensors: Mapping[str, TensorInfo], key_map: KeyMap, blocks_path: str) -> list[Unit]:
    """Deal the tensors of a checkpoint to units.

    Raises:
        CheckpointError: if a weight to be quantized is missing, has another shape than the config says, is not a
            tensor of its own, or has tensors beside it that only quantized weights have.
    """
    quantized = {row.matrix.key: row for row in plan.quantized}
    copies = {f"{row.module.name}.weight" for row in plan.rows if row.module.tied_to and not row.scheme.is_keep}
    copied: dict[int | None, list[str]] = {None: []}
    chosen: dict[int | None, list[tuple[MatrixRow, str]]] = {None: []}
    found = set()
    for key in sorted(tensors):
        parameter = key_map.parameter.get(key)
        block = _block_of(parameter or key, blocks_path)
        row = quantized.get(parameter or "")
        if parameter in copies:
            continue  # of a tied weight that is quantized; readers make it again
        if row is None:
            copied.setdefault(block, []).append(key)
            continue
        if key in key_map.merged:
            raise CheckpointError(
                f"{row.name} is assembled from several checkpoint tensors ({key}, ...), which cannot be "
                "quantized one by one; keep it with a rule"
            )
        _check_shape(row, tensors[key])
        check_alone(key, plan.format.names(key, row.scheme), tensors)
        found.add(parameter)
        chosen.setdefault(block, []).append((row, key))
    if missing := quantized.keys() - found:
        raise CheckpointError(
            f"the checkpoint has no tensor for {sorted(missing)[0]}, which config.json describes and the recipe "
            "quantizes; the weights and the config do not belong together"
        )
    order = [None, *sorted(b for b in copied.keys() | chosen.keys() if b is not None)]
    rank = {row.name: i for i, row in enumerate(plan.rows)}
    return [
        Unit(
            block,
            f"model-{index:05d}-of-{len(order):05d}{plan.format.UNIT_SUFFIX}",
            tuple(copied.get(block, ())),
            tuple(sorted(chosen.get(block, ()), key=lambda pair: rank[pair[0].name])),
        )
        for index, block in enumerate(order, 1)
    ]


def _check_shape(row: MatrixRow, tensor: TensorInfo) -> None:
    wanted = row.matrix.stored_shape
    if tensor.shape != wanted:
        raise CheckpointError(
            f"{tensor.name} has shape {tensor.shape} in the checkpoint, but config.json describes {wanted}; "
            "the weights and the config do not belong together"
        )


def contents_of(units: Sequence[Unit], tensors: Mapping[str, TensorInfo]) -> dict[str, Content]:
    """What the result of all units will hold, by the keys of the checkpoint."""
    schemes = {}
    for unit in units:
        schemes |= {key: row.scheme for row, key in unit.quantized} | dict.fromkeys(unit.copied, KEEP)
    return {key: Content(tensors[key].shape, tensors[key].dtype, scheme) for key, scheme in schemes.items()}


def check_alone(key: str, made: Sequence[str], tensors: Mapping[str, TensorInfo]) -> None:
    """Check that a checkpoint does not hold what quantizing the weight `key` makes, such as its scales.

    Raises:
        CheckpointError: naming the first that it holds.
    """
    taken = [name for name in made if name in tensors and name != key]
    if taken:
        raise CheckpointError(
            f"the checkpoint holds {taken[0]} beside {key}, so this weight is quantized already, though config.json "
            "does not say so; give the model that it was made from"
        )


def _block_of(name: str, blocks_path: str) -> int | None:
    prefix = f"{blocks_path}."
    if not name.startswith(prefix):
        return None
    number = name[len(prefix) :].split(".", 1)[0]
    return int(number) if number.isdigit() else None
