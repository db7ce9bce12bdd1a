"""Each layer is calibrated on what it will see: the inputs that the quantized blocks before its own produce."""

import pytest
import torch
from torch import Tensor

from llmquant.data.calibration import load_calibration
from llmquant.engine import drive as drive_module
from llmquant.engine.in_memory import quantize_loaded
from llmquant.engine.prepare import load_tokenizer, prepare
from llmquant.models.skeleton import decoder_blocks
from llmquant.recipe.load import load_recipe
from tests.engine.conftest import tiny_llama


@torch.no_grad()
def hessians(model, names: list[str], windows: Tensor) -> dict[str, Tensor]:
    """X^T X / tokens of these layers in a forward of the whole model, in float64."""
    found: dict[str, Tensor] = {}

    def hook(name: str):
        def remember(_module, args) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).double()
            found[name] = x.T @ x / len(x)

        return remember

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    model.base_model(input_ids=windows, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def test_statistics_come_from_behind_the_quantized_blocks(checkpoint, gptq_recipe, monkeypatch: pytest.MonkeyPatch):
    rules = [{"match": "linear", "scheme": "int2-g32"}]
    prepared = prepare(checkpoint, load_recipe({**gptq_recipe, "rules": rules}))
    assert prepared.plan.recipe.calibration is not None
    windows = load_calibration(prepared.plan.recipe.calibration, load_tokenizer(checkpoint)).windows
    seen = {}
    quantize_layer = drive_module.quantize_layer

    def spy(row, weight, statistics, scale_dtype):
        seen[row.module.name] = statistics.values["hessian"].double()
        return quantize_layer(row, weight, statistics, scale_dtype)

    monkeypatch.setattr(drive_module, "quantize_layer", spy)
    results = quantize_loaded(tiny_llama(), prepared.plan, windows).results

    twin = tiny_llama().float()
    path, blocks = decoder_blocks(twin)
    inner = list(dict.fromkeys(name.split(f"{path}.0.", 1)[1] for name in results if f"{path}.0." in name))
    original = hessians(twin, list(results), windows)
    for index in range(len(blocks)):
        names = [f"{path}.{index}.{name}" for name in inner]
        true = hessians(twin, names, windows)
        for name in names:
            torch.testing.assert_close(seen[name], true[name], rtol=1e-3, atol=1e-5)
            if index:  # 2 bits leave little of the original inputs
                assert (seen[name] - original[name]).norm() > 0.05 * original[name].norm()
        for name in names:
            twin.get_submodule(name).weight.data = results[name].quantized.dequantize().float()
