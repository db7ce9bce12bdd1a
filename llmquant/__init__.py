"""llmquant: weight quantization for Hugging Face causal language models.

    import llmquant                                              # compressed-tensors weights now stay packed
    llmquant.quantize("org/model", "int4-g128-balanced", "model-int4")
    model = llmquant.load("model-int4")
    report = llmquant.evaluate("model-int4", baseline="org/model")

Importing the package is cheap: the functions below load what they need when they are first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from llmquant.hf import register as _register

if TYPE_CHECKING:
    from llmquant.api import evaluate, plan, quantize
    from llmquant.debugging.debug import debug
    from llmquant.debugging.inspect import inspect
    from llmquant.hf.in_place import prepare_qat
    from llmquant.hf.load import load
    from llmquant.hf.qat import convert_qat
    from llmquant.hf.recipe import RecipeConfig
    from llmquant.hub.push import push_to_hub
    from llmquant.recipe.presets import presets
    from llmquant.training.run import qat

__all__ = [
    "RecipeConfig",
    "convert_qat",
    "debug",
    "evaluate",
    "inspect",
    "load",
    "plan",
    "prepare_qat",
    "presets",
    "push_to_hub",
    "qat",
    "quantize",
]

_HOME = {
    "RecipeConfig": "llmquant.hf.recipe",
    "convert_qat": "llmquant.hf.qat",
    "debug": "llmquant.debugging.debug",
    "evaluate": "llmquant.api",
    "inspect": "llmquant.debugging.inspect",
    "load": "llmquant.hf.load",
    "plan": "llmquant.api",
    "prepare_qat": "llmquant.hf.in_place",
    "presets": "llmquant.recipe.presets",
    "push_to_hub": "llmquant.hub.push",
    "qat": "llmquant.training.run",
    "quantize": "llmquant.api",
}


def _push(model: Any, repo: str, options: Mapping[str, Any]) -> str | None:
    from llmquant.hub.model import push_model

    return push_model(model, repo, **options)


_register(_push)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("llmquant")
    if name not in _HOME:
        raise AttributeError(f"module 'llmquant' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
