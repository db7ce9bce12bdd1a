"""Which inputs count for which layer."""

import pytest
import torch
from torch import Tensor, nn

from llmquant.errors import QuantizationError
from llmquant.statistics.collect import HessianCollector


class Block(nn.Module):
    """Three layers; a test says what each of them gets."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abc":
            self.add_module(name, nn.Linear(4, 4, bias=False))

    def forward(self, inputs: dict[str, Tensor]) -> None:
        for name, x in inputs.items():
            self.get_submodule(name)(x)


@torch.no_grad()
def collect(*batches: dict[str, Tensor]) -> HessianCollector:
    block = Block()
    collector = HessianCollector(dict(block.named_children()))
    with collector.attached(block):
        for batch in batches:
            block(batch)
    return collector


def assert_measured(collector: HessianCollector, name: str, inputs: Tensor) -> None:
    taken = collector.take(name)
    flat = inputs.reshape(-1, 4)
    assert taken.tokens == len(flat)
    torch.testing.assert_close(taken.hessian, flat.T @ flat / len(flat))


def test_layers_without_tokens_in_a_batch_are_not_taken_for_one():
    first, second, third = torch.randn(3, 4), torch.randn(5, 4), torch.randn(2, 4)
    empty = [torch.empty(0, 4) for _ in range(3)]
    assert empty[0].data_ptr() == empty[1].data_ptr()
    collector = collect(
        {"a": empty[0], "b": empty[1], "c": empty[2]}, {"a": first, "b": second, "c": empty[2]}, {"b": third}
    )
    assert_measured(collector, "a", first)
    assert_measured(collector, "b", torch.cat([second, third]))
    with pytest.raises(QuantizationError, match="no calibration token reached c"):
        collector.take("c")


def test_a_slice_that_begins_where_the_whole_does_is_another_input():
    whole = torch.randn(2, 6, 4)
    collector = collect({"a": whole, "b": whole[:, :1], "c": whole.transpose(0, 1)})
    assert_measured(collector, "a", whole)
    assert_measured(collector, "b", whole[:, :1])
    assert_measured(collector, "c", whole)


def test_a_tensor_that_was_written_to_is_another_input():
    x = torch.randn(3, 4)
    before = x.clone()
    block = Block()
    block.get_submodule("a").register_forward_hook(lambda *_: [x.mul_(3)].clear())
    collector = HessianCollector(dict(block.named_children()))
    with torch.no_grad(), collector.attached(block):
        block({"a": x, "b": x})
    assert_measured(collector, "a", before)
    assert_measured(collector, "b", 3 * before)


def test_layers_that_share_their_input_share_one_matrix():
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    collector = collect({"a": x, "b": x, "c": y})
    a, b, c = (collector.take(name).hessian for name in "abc")
    assert a is b
    assert a is not c
    torch.testing.assert_close(a, x.T @ x / 3)
    with pytest.raises(QuantizationError, match="b shared its input with a, then with b"):
        collect({"a": x, "b": x}, {"a": x, "b": y})
