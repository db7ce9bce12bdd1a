"""What is checked: models of the test data, recipes, and which readers get them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmquant.recipe.load import load_recipe
from llmquant.recipe.schema import recipe_to_dict

MODELS = ("stories260K", "babyllama-361", "llama2xs", "gutenberg-llama-4m")
SERVED = "gutenberg-llama-4m"  # the only one whose head size vLLM takes on CPU
PRESETS = ("int4-g32", "int4-g32-gptq", "int8", "mixed-int4-int8", "mixed-portable")


@dataclass(frozen=True, slots=True)
class Case:
    """One result folder.

    Attributes:
        model: folder name in the test data.
        recipe: name of a preset, or of one of `INLINE`.
        dtype: the model is cast to it first; None leaves it as it is.
        vllm: served by vLLM too.
    """

    model: str
    recipe: str
    dtype: str | None = None
    vllm: bool = False

    @property
    def name(self) -> str:
        """Short and unique; also the folder's name."""
        model = f"{self.model}@{self.dtype}" if self.dtype else self.model
        return f"{model}--{self.recipe.replace(', ', '+').replace(' ', '-')}"


INLINE: dict[str, list[dict[str, Any]]] = {
    "int4-g64": [{"match": "linear", "scheme": "int4-g64"}],
    "int4": [{"match": "linear", "scheme": "int4"}],
    "int4-asym": [{"match": "linear", "scheme": "int4-asym"}],
    "int4-tensor": [{"match": "linear", "scheme": "int4-tensor"}],
    "int8-g128-asym": [{"match": "linear", "scheme": "int8-g128-asym"}],
    "int2-g64": [{"match": "linear", "scheme": "int2-g64"}],
    "int4-g128, down w8a8": [
        {"match": "linear", "scheme": "int4-g128"},
        {"match": "mlp.down", "scheme": "w8a8-dynamic"},
    ],
    "int4-g128-asym, attention g32": [
        {"match": "linear", "scheme": "int4-g128-asym"},
        {"match": "attention", "scheme": "int4-g32-asym"},
    ],
    "int4-g128-asym, down sym": [
        {"match": "linear", "scheme": "int4-g128-asym"},
        {"match": "mlp.down", "scheme": "int4-g32"},
    ],
}

FOR_VLLM = (
    *PRESETS,
    *("int4-g128", "int4-g128-asym", "int8-g128", "int3-g32", "w8a8-dynamic"),
    *INLINE,
)

CASES: tuple[Case, ...] = (
    *(Case(model, recipe) for model in MODELS if model != SERVED for recipe in PRESETS),
    *(Case(SERVED, recipe, vllm=True) for recipe in FOR_VLLM),
    # float16 is sharper than bfloat16 by a factor of ten; float32 is served in bfloat16.
    *(Case(SERVED, recipe, "float16", vllm=True) for recipe in ("int4-g32", "int4-g128-asym", "mixed-portable")),
    Case(SERVED, "int4-g32", "float32", vllm=True),
    Case("llama2xs", "int4-g128", vllm=True),  # head size 8
)


def recipe_of(case: Case, data: Path) -> Mapping[str, Any]:
    """The recipe, with a small calibration text of the test data where it needs one."""
    if case.recipe in INLINE:
        return {"version": 1, "name": case.recipe, "rules": INLINE[case.recipe]}
    recipe = recipe_to_dict(load_recipe(case.recipe))
    if "calibration" in recipe:
        dataset = str(data / "text" / "tinystories.train1000.json")
        recipe["calibration"] = {"dataset": dataset, "samples": 32, "length": 128}
    return recipe
