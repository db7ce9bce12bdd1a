"""`PackedEmbedding`: a table of rows, such as a vocabulary, that stays packed integers.

Its parameters are those of a `PackedLinear` with one output for each row, so one set of tensors can serve as embedding
and as lm_head of a model that ties them. Once lm_head is prepared for fast kernels, it alone holds the weight, and the
embedding reads there. A lookup dequantizes the rows it needs and no others.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from llmquant.kernels.backend import embedding_name
from llmquant.kernels.ops.embedding_int import OP
from llmquant.nn.linear import PackedLinear
from llmquant.nn.storage import STORED, PackedStorage


@final
class PackedEmbedding(PackedStorage):
    """Rows of a packed weight, in the dtype of its scales."""

    embed_scale: float | None = None  # what the rows are multiplied with (Gemma), rounded to their dtype first
    dense_class: type[nn.Embedding] = nn.Embedding  # that it stands for, or a subclass that scales its rows
    padding_idx: int | None = None  # as of that class; it matters to training only
    head: PackedLinear | None = None  # the layer with which it shares its weight, if it does; not a submodule

    @property
    def num_embeddings(self) -> int:
        """Rows."""
        return self.out_features

    @property
    def embedding_dim(self) -> int:
        """Columns of the table."""
        return self.in_features

    def stand_for(self, module: nn.Embedding) -> PackedEmbedding:
        """Take over from a dense embedding everything but its weight; returns self."""
        self.embed_scale = scale_of_rows(module)
        self.dense_class, self.padding_idx = type(module), module.padding_idx
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """Look up rows: (*ids.shape, embedding_dim) in the dtype of the scales."""
        head, width = self.head, self.embedding_dim
        if head is not None and head.lent is not None:
            head.settle()
        if head is not None and head.weight_prepared is not None and head.kernels is not None:
            rows = head.kernels.rows(ids, head.weight_prepared, self.num_embeddings, width, self.rows_like.dtype)
        else:
            weight = self.packed()
            rows = OP(ids, *weight, weight.scale.dtype)
        return rows if self.embed_scale is None else rows * torch.tensor(self.embed_scale).to(rows.dtype)

    def make_head(self, bias: nn.Parameter | None) -> PackedLinear:
        """The head that shares the weight."""
        head = PackedLinear(self.in_features, self.out_features, self.scheme, device="meta")
        for name, parameter in self.named_parameters():
            setattr(head, name, parameter)
        head.bias = bias
        self.__dict__["head"] = head  # an ordinary assignment would make it a submodule
        return head

    def prepare(self) -> bool:
        """Prepare lm_head, if it shares the weight, and leave the weight to it; other rows are read as stored."""
        if self.head is None or not self.head.prepare():
            # Its reason is ours too: once it is gone, after a move for instance, both try again.
            self.unprepared = self.head.unprepared if self.head else ""
            return False
        self.unprepared = ""
        if self._holds_weight():
            # Empty; its dtype follows that of the scales through casts.
            self.register_buffer("rows_like", self.weight_scale.detach().new_empty(0), persistent=False)
            for name in STORED:
                delattr(self, name)
            self.head.settle()  # of the tensors that were ours too it need not think any more
        return True

    def stored(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The checkpoint's tensors: packed, scale, zero point; those of lm_head once it alone holds them."""
        return super().stored() if self.head is None or self._holds_weight() else self.head.stored()

    def _holds_weight(self) -> bool:
        return "weight_packed" in self._parameters

    def __getattr__(self, name: str) -> Any:
        if name in STORED and self.head is not None and not self._holds_weight():
            return getattr(self.head, name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in STORED and self.head is not None and not self._holds_weight():
            setattr(self.head, name, value)
        else:
            super().__setattr__(name, value)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        if not self._holds_weight():
            named = zip(STORED, self.stored(), strict=True)
            destination |= {prefix + name: tensor.detach() for name, tensor in named if tensor is not None}
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        if not self._holds_weight():  # lm_head loads it
            state_dict = {key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in STORED}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def dense(self) -> nn.Embedding:
        """The embedding that this one stands for, with the dequantized weight in the dtype of the scales."""
        extra: dict[str, Any] = {} if self.embed_scale is None else {"embed_scale": self.embed_scale}
        with torch.device("meta"):
            module = self.dense_class(self.num_embeddings, self.embedding_dim, self.padding_idx, **extra)
        module.weight = nn.Parameter(self.dequantize())
        if self.embed_scale is not None:
            module.register_buffer(
                "embed_scale", torch.tensor(self.embed_scale, device=module.weight.device), persistent=False
            )
        return module

    def kernel_name(self) -> str:
        """What runs this layer where it lies now, such as "embedding_int8: avx2 unpack"."""
        if self.head is not None and self.head.weight_prepared is not None:
            return f"embedding_int{self.scheme.bits}: rows of the prepared lm_head"
        return embedding_name(self.scheme.bits, self.stored()[0].device)

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        scale = "" if self.embed_scale is None else f", embed_scale={self.embed_scale:g}"
        return f"{self.num_embeddings}, {self.embedding_dim}, scheme={self.scheme}{scale}"


def is_table(module: nn.Module) -> bool:
    """Whether a `PackedEmbedding` can stand for a module: an nn.Embedding, or one of Gemma's, which scale the rows.

    Other subclasses compute their row numbers (OPT's positions) or something else.
    """
    if type(module) is nn.Embedding:
        return module.max_norm is None
    return isinstance(module, nn.Embedding) and scale_of_rows(module) is not None


def scale_of_rows(module: nn.Embedding) -> float | None:
    """What an embedding of Gemma's kind multiplies its rows with; None for others."""
    named = type(module).__name__.endswith("ScaledWordEmbedding")
    scale = getattr(module, "scalar_embed_scale", None)
    return float(scale) if named and isinstance(scale, (int, float)) else None
