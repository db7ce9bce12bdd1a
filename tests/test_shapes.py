"""That the suite checks the shapes that annotations say, in each room that has them."""

from __future__ import annotations

from collections.abc import Callable

import jaxtyping
import pytest
import torch

from llmquant.algorithms.rounding.rtn import Options, quantize
from llmquant.formats.gguf.blocks import decode
from llmquant.numerics.pack import unpack_zeros
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme
from llmquant.statistics.absmax import start
from llmquant.statistics.base import LayerStatistics

INT4 = Scheme(4, "group", 32)
CODES, SCALES = torch.zeros(4, 64, dtype=torch.int8), torch.ones(4, 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: quantize(torch.ones(64), LayerStatistics(), INT4, Options(), scale_dtype=torch.float32),
        lambda: decode("layer", torch.zeros(4, 36), INT4),
        lambda: unpack_zeros(CODES, 4, 4),
        lambda: QuantizedTensor(CODES, SCALES, CODES),
        lambda: start().add(torch.ones(64)),
    ],
    ids=["algorithms", "formats", "numerics", "fields that differ", "statistics"],
)
def test_a_wrong_shape_is_seen(call: Callable[[], object]) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


def test_right_shapes_pass() -> None:
    QuantizedTensor(CODES, SCALES, torch.zeros(4, 2, dtype=torch.int8))
