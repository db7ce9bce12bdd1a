"""Methods of every transformers model that read weights as they lie in memory, which packed ones do not do."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

_MARK = "_llmquant_extended"


def extend_models(
    count: Callable[[Any, bool, bool], int | None], resized: Callable[[Any, int | None, int | None], Any]
) -> None:
    """Let `num_parameters` and `resize_token_embeddings` ask us first. A second call changes nothing.

    On the class, and not on the models: copies, pickles and parts of a model have the methods of their class.

    `count` of (model, only trainable, without embeddings) is None for a model that is not packed. `resized` of (model,
    tokens, multiple) is the input embedding if there is nothing to do, None if transformers is to do it, and raises
    where it cannot.
    """
    from transformers.modeling_utils import PreTrainedModel

    if getattr(PreTrainedModel.num_parameters, _MARK, False):
        return
    count_all, resize = PreTrainedModel.num_parameters, PreTrainedModel.resize_token_embeddings

    @wraps(count_all)
    def num_parameters(self: Any, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        counted = count(self, only_trainable, exclude_embeddings)
        return count_all(self, only_trainable, exclude_embeddings) if counted is None else counted

    @wraps(resize)
    def resize_token_embeddings(
        self: Any, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> Any:
        kept = resized(self, new_num_tokens, pad_to_multiple_of)
        return resize(self, new_num_tokens, pad_to_multiple_of, mean_resizing) if kept is None else kept

    setattr(num_parameters, _MARK, True)
    PreTrainedModel.num_parameters = num_parameters
    PreTrainedModel.resize_token_embeddings = resize_token_embeddings
