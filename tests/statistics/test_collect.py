"""Which inputs count for which layer."""

import pytest
import torch
from torch import Tensor, nn

from llmquant.errors import QuantizationError
from llmquant.statistics.collect import Collector

HESSIANS = {name: {"hessian"} for name in "abc"}


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
def collect(*batches: dict[str, Tensor]) -> Collector:
    block = Block()
    collector = Collector(dict(block.named_children()), HESSIANS)
    with collector.attached(block):
        for batch in batches:
            block(batch)
    return collector


def assert_measured(collector: Collector, name: str, inputs: Tensor) -> None:
    taken = collector.take(name)
    flat = inputs.reshape(-1, 4)
    assert taken.tokens == len(flat)
    torch.testing.assert_close(taken.get("hessian"), flat.T @ flat / len(flat))


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
    collector = Collector(dict(block.named_children()), HESSIANS)
    with torch.no_grad(), collector.attached(block):
        block({"a": x, "b": x})
    assert_measured(collector, "a", before)
    assert_measured(collector, "b", 3 * before)


def test_layers_that_share_their_input_share_one_matrix():
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    collector = collect({"a": x, "b": x, "c": y})
    a, b, c = (collector.take(name).get("hessian") for name in "abc")
    assert a is b
    assert a is not c
    torch.testing.assert_close(a, x.T @ x / 3)
    with pytest.raises(QuantizationError, match="b shared its input with a, then with b"):
        collect({"a": x, "b": x}, {"a": x, "b": y})


def test_each_layer_gets_what_it_needs_and_no_more():
    x, y = torch.randn(3, 4), torch.randn(5, 4)
    block = Block()
    needs = {"a": {"hessian"}, "b": {"absmax", "hessian"}, "c": {"absmax"}}
    collector = Collector(dict(block.named_children()), needs)
    with torch.no_grad(), collector.attached(block):
        block({"a": x, "b": x, "c": x})
        block({"a": y, "b": y, "c": y})
    a, b, c = (collector.take(name) for name in "abc")
    assert [set(taken.values) for taken in (a, b, c)] == [{"hessian"}, {"absmax", "hessian"}, {"absmax"}]
    assert a.get("hessian") is b.get("hessian")
    assert b.get("absmax") is c.get("absmax")
    torch.testing.assert_close(b.get("absmax"), torch.cat([x, y]).abs().amax(0), rtol=0, atol=0)


def test_collectors_of_two_halves_merge():
    x, y = torch.randn(3, 4), torch.randn(5, 4)
    one, other = collect({"a": x, "b": x}), collect({"a": y, "b": y, "c": y})
    one.merge(other)
    for name, inputs in {"a": torch.cat([x, y]), "b": torch.cat([x, y])}.items():
        assert_measured(one, name, inputs)
    with pytest.raises(QuantizationError, match="b shared its input with a, then with b"):
        collect({"a": x, "b": x}).merge(collect({"a": x, "b": y}))


class Chain(nn.Module):
    """Two linear layers with something between them that writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.second(self.first(x).relu_()),)


def test_gradients_estimate_what_an_error_of_an_output_does():
    chain, x = Chain(), torch.randn(7, 4)
    needs = {"first": {"gradients"}, "second": {"gradients", "absmax"}}
    collector = Collector(dict(chain.named_children()), needs)
    with torch.no_grad():
        expected = chain(x)[0]
        with collector.attached(chain):
            assert all(torch.equal(chain(x)[0], expected) for _ in range(4000))
        live = (chain.first(x) > 0).float().mean(0)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(collector.take("second").get("gradients"), torch.ones(3))
    matters = chain.second.weight.square().sum(0) * live
    torch.testing.assert_close(collector.take("first").get("gradients"), matters, rtol=0.1, atol=0)
