"""transformers with packed weights: loading, `from_pretrained` with a recipe, and saving.

`import llmquant` calls `register`; everything heavy waits until transformers itself is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from llmquant.compat.late_import import after_import

Push = Callable[[Any, str, Mapping[str, Any]], str | None]


def register(push: Push | None = None) -> None:
    """Make transformers keep the integer weights of compressed-tensors checkpoints packed.

    `push` of (model, repository, options) is what `push_to_hub` of a packed model does, see `compat.model_methods`.

    It takes effect at once or, where transformers is not imported yet, as soon as its models can be loaded.
    """
    # Not the module of the quantizers, which our own import: nothing of ours may be half imported when this runs.
    after_import("transformers.modeling_utils", partial(_install, push))
    # Not peft itself, which transformers looks for without importing it: that would end the wait.
    after_import("peft.tuners.lora.model", _adapt)


def _install(push: Push | None) -> None:
    from llmquant.compat.model_methods import extend_models
    from llmquant.compat.quantizers import take_over
    from llmquant.hf.packed import PackedQuantizer
    from llmquant.hf.save import check_save
    from llmquant.hf.vocabulary import check_resize, count_parameters

    take_over(PackedQuantizer)
    extend_models(count_parameters, check_resize, check_save, push)


def _adapt() -> None:
    from llmquant.compat.adapters import add_lora_layers
    from llmquant.hf.lora import LAYERS

    add_lora_layers(LAYERS)
