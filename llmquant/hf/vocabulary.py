"""What transformers' own methods say and do about a packed model: its parameters, and the size of its vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmquant.errors import QuantizationError
from llmquant.nn.counting import is_packed, weight_count
from llmquant.nn.storage import PackedStorage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def count_parameters(model: PreTrainedModel, trainable: bool, without_embeddings: bool) -> int | None:
    """`num_parameters` of a packed model: the weights it stands for; None for any other."""
    if not is_packed(model):
        return None
    return weight_count(model, trainable=trainable, embeddings=not without_embeddings)


def check_resize(model: PreTrainedModel, tokens: int | None, multiple: int | None) -> Any:
    """Refuse to resize a packed vocabulary: new rows have no codes, and the config would not describe them.

    `tokens` is the number of rows wanted (None: as many as there are), rounded up to a `multiple`. Returns the input
    embedding where it is packed and stays as it is; None where transformers can go on.

    Raises:
        QuantizationError: if the embedding or the head is packed and would have to change.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    packed = [module for module in (table, head) if isinstance(module, PackedStorage)]
    if not packed:
        return None
    rows = packed[0].out_features
    wanted = rows if tokens is None else tokens
    if multiple:
        wanted = -(-wanted // multiple) * multiple
    if wanted == rows:
        return table
    part = "the embedding" if packed[0] is table else "lm_head"
    raise QuantizationError(
        f"{part} of this model is packed ({packed[0].scheme}, {rows} tokens) and cannot be resized to {wanted}; make "
        "the model dense first, by model.dequantize() or llmquant.load(..., packed=False), resize that, and quantize "
        "it again"
    )
