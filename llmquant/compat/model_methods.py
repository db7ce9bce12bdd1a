"""Methods of every transformers model that take weights for what they are not once they are packed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

_MARK = "_llmquant_extended"


def extend_models(
    count: Callable[[Any, bool, bool], int | None],
    resized: Callable[[Any, int | None, int | None], Any],
    check_save: Callable[[Any, Any], None],
    push: Callable[[Any, str, dict[str, Any]], str | None] | None = None,
) -> None:
    """Let the methods below ask us first; a second call does nothing.

    On the class, and not on the models: copies, pickles and parts of a model have the methods of their class.

    `count` of (model, only trainable, without embeddings) is None for a model that is not packed. `resized` of (model,
    tokens, multiple) is the input embedding if there is nothing to do, None if transformers is to do it, and raises
    where it cannot. `check_save` of (model, folder) raises where a model must not be saved. `push` of (model,
    repository, options) publishes a model and returns its address; None leaves that to transformers.
    """
    from transformers.modeling_utils import PreTrainedModel

    if getattr(PreTrainedModel.num_parameters, _MARK, False):
        return
    count_all, resize = PreTrainedModel.num_parameters, PreTrainedModel.resize_token_embeddings
    save, publish = PreTrainedModel.save_pretrained, PreTrainedModel.push_to_hub

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

    @wraps(save)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        check_save(self, save_directory)
        return save(self, save_directory, *args, **kwargs)

    @wraps(publish)
    def push_to_hub(self: Any, repo_id: str, **kwargs: Any) -> Any:
        address = push(self, repo_id, kwargs) if push else None
        return publish(self, repo_id, **kwargs) if address is None else address

    setattr(num_parameters, _MARK, True)
    PreTrainedModel.num_parameters = num_parameters
    PreTrainedModel.resize_token_embeddings = resize_token_embeddings
    PreTrainedModel.save_pretrained = save_pretrained
    setattr(PreTrainedModel, push_to_hub.__name__, push_to_hub)
