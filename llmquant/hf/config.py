"""`RecipeConfig`: what to pass to `from_pretrained` to quantize a model while it loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from llmquant.compat.quantizers import add_quantizer
from llmquant.device import resolve_device
from llmquant.recipe.load import load_recipe
from llmquant.recipe.schema import Recipe

METHOD = "llmquant"  # of the config object in memory only; no checkpoint ever carries it


class RecipeConfig(QuantizationConfigMixin):
    """Quantize by a recipe in `from_pretrained(..., quantization_config=RecipeConfig("int4-g128"))`.

    Data-free recipes are applied tensor by tensor while the weights are read; recipes that need calibration data are
    applied after the whole model is loaded (`llmquant.quantize` does it without ever holding the whole model).
    `save_pretrained` then writes the same portable folder as `llmquant.quantize`.

    Args:
        recipe: name of a preset, path of a recipe file, or a recipe as a mapping.
        tokenizer: for recipes that need calibration data: a tokenizer, or the folder or hub id of one. By default the
            one beside the model.
        device: that does the work: "auto" (a GPU where there is one, else the CPU), "cuda:1", "cpu". The model itself
            goes where `device_map` says.

    Raises:
        RecipeError: if the recipe does not exist or is malformed.
        DeviceError: if there is no such device.
    """

    def __init__(
        self,
        recipe: str | Path | Mapping[str, Any] | Recipe,
        *,
        tokenizer: Any = None,
        device: str = "auto",
    ) -> None:
        from llmquant.hf.recipe import RecipeQuantizer

        add_quantizer(METHOD, RecipeQuantizer)
        self.quant_method = METHOD  # pyright: ignore[reportAttributeAccessIssue]  # an enum of transformers' own
        self.recipe = load_recipe(recipe)
        self.tokenizer = tokenizer
        self.device = resolve_device(device)

    def to_dict(self) -> dict[str, Any]:
        """For messages only: a model that was quantized by it carries a compressed-tensors config instead."""
        return {"quant_method": METHOD, "recipe": self.recipe.model_dump(mode="json")}
