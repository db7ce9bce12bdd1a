"""transformers with packed weights: loading, `from_pretrained` with a recipe, and saving.

`import llmquant` calls `register`; everything heavy waits until transformers itself is imported.
"""

from __future__ import annotations

from llmquant.compat.late_import import after_import


def register() -> None:
    """Make transformers keep the integer weights of compressed-tensors checkpoints packed.

    It takes effect at once or, where transformers is not imported yet, when its quantizers are.
    """
    after_import("transformers.quantizers.auto", _install)


def _install() -> None:
    from llmquant.compat.quantizers import take_over
    from llmquant.hf.packed import PackedQuantizer

    take_over(PackedQuantizer)
