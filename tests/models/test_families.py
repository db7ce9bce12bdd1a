"""The rows of known families say what their decoder layers do; that their norms do is proved by the transforms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmquant.models.families import FAMILIES, find_family
from llmquant.models.skeleton import decoder_blocks
from tests.algorithms.transforms.conftest import TOKENS
from tests.algorithms.transforms.test_contract import TYPES
from tests.architectures.tiny import tiny_model


@pytest.mark.parametrize("model_type", TYPES)
def test_without_what_writes_to_the_residual_stream_a_layer_does_nothing(model_type: str) -> None:
    model = tiny_model(model_type, dtype=torch.float32)
    _, blocks = decoder_blocks(model)
    layer = blocks[0]
    family = find_family(layer)
    assert family is not None
    assert family is FAMILIES[type(layer).__name__]
    for name in family.writes:
        for parameter in layer.get_submodule(name).parameters():
            nn.init.zeros_(parameter)
    seen = []
    layer.register_forward_hook(
        lambda _, args, kwargs, output: seen.append((args[0] if args else kwargs["hidden_states"], output)),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(input_ids=TOKENS)
    inputs, output = seen[0]
    output = output if isinstance(output, torch.Tensor) else output[0]
    assert torch.equal(inputs, output)


def test_code_of_others_with_the_same_names_is_not_known() -> None:
    stranger = type("LlamaDecoderLayer", (nn.Module,), {})()
    assert find_family(stranger) is None
