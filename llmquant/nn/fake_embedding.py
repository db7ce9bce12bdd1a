"""`FakeEmbedding`: a table of rows that is trained as it will be read once it is rounded."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmquant.nn.embedding import scale_of_rows
from llmquant.nn.fake_linear import FakeLinear
from llmquant.nn.fake_weight import FakeWeight
from llmquant.numerics.fake_quant import dequantize, fake_quantize


@final
class FakeEmbedding(FakeWeight, nn.Embedding):  # pyright: ignore[reportIncompatibleVariableOverride]  # no weight
    """Rows of the packed table that it becomes, with gradients; only rows that are looked up are rounded."""

    embed_scale: float | None = None  # what the rows are multiplied with (Gemma), rounded to their dtype first

    def __init__(self, module: nn.Embedding) -> None:
        """Stand for a dense embedding, but for its weight, which `hold` gives it."""
        with torch.device("meta"):
            super().__init__(module.num_embeddings, module.embedding_dim, module.padding_idx)
        self.embed_scale, self.dense_class = scale_of_rows(module), type(module)

    def make_head(self, bias: nn.Parameter | None) -> FakeLinear:
        """The head that shares the weight."""
        head = FakeLinear(self.embedding_dim, self.num_embeddings, bias)
        head.share(self)
        return head

    def forward(self, input: Tensor) -> Tensor:
        """Look up rows: (*input.shape, embedding_dim)."""
        rows = self._rows(input.flatten()).view(*input.shape, self.embedding_dim)
        return rows if self.embed_scale is None else rows * torch.tensor(self.embed_scale).to(rows.dtype)

    def _rows(self, ids: Tensor) -> Tensor:
        self.follow()
        scales, zeros = self.scales(), self.weight_zero_point
        if scales.shape[0] > 1:
            scales = functional.embedding(ids, scales)
            zeros = None if zeros is None else zeros[ids]
        if self.weight_codes is not None:
            return dequantize(self.weight_codes[ids], scales, zeros, self.scale_dtype, self.dense_dtype)
        rows = functional.embedding(ids, self.matrix(), self.padding_idx)
        if not self.fake_quant:
            return rows.to(self.dense_dtype)
        return fake_quantize(rows, scales, zeros, self.scheme, self.scale_dtype, self.dense_dtype)
