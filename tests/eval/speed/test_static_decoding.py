"""Decoding with a static cache, by CUDA graphs where there are some, finds the logits of the whole sequence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from llmquant.eval.speed.static_decoding import StaticDecoding

CONTEXT = 8


def check(model: Any, **tolerance: Any) -> None:
    ids = torch.arange(20, device=model.device).view(2, 10) * 3 % model.config.vocab_size
    decoding = StaticDecoding(model, ids, CONTEXT)
    for _ in range(2):  # the second time the cache begins anew
        with torch.inference_mode():
            decoding()
        torch.testing.assert_close(decoding.logits, model(ids).logits[:, -1:], **tolerance)


def test_a_static_cache_finds_the_same_logits(baseline) -> None:
    check(baseline)


@pytest.mark.gpu
def test_a_cuda_graph_finds_the_same_logits(baseline) -> None:
    check(copy.deepcopy(baseline).to("cuda"), rtol=1e-3, atol=1e-3)
