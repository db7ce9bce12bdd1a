"""Split-K counters: who shares them, and who never does. What only a GPU can show is marked `gpu`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from llmquant.kernels.gpu.counters import Counters, counters_for
from llmquant.kernels.gpu.fallback import fallbacks, forget_fallbacks

GPU = torch.device("cuda", 0)


class Fake:
    """A GPU as far as counters see it; tensors lie on the CPU."""

    def __init__(self, reserve: int = 256) -> None:
        self.is_capturing, self.stream = False, 0
        self.made: list[int] = []  # sizes of what stays
        self.set = Counters(lambda: self.is_capturing, lambda _: self.stream, self._for_good, self._zeros, reserve)

    def _for_good(self, index: int, count: int) -> Tensor:
        assert not self.is_capturing
        self.made.append(count)
        return self._zeros(index, count)

    def _zeros(self, index: int, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int32)

    def get(self, count: int, *, stream: int = 0, capturing: bool = False, device: torch.device = GPU) -> Tensor:
        self.stream, self.is_capturing = stream, capturing
        found = self.set.get(device, count)
        assert found.dtype == torch.int32
        assert found.numel() >= count
        assert not found.any()
        return found


@pytest.fixture
def fake() -> Fake:
    forget_fallbacks()
    return Fake()


def places(counters: Tensor, count: int) -> set[int]:
    return {counters.data_ptr() + 4 * i for i in range(count)}


def test_a_stream_has_one_buffer_and_shares_it_with_no_other(fake: Fake) -> None:
    first = fake.get(10)
    assert fake.get(7).data_ptr() == first.data_ptr()
    other = fake.get(10, stream=5)
    assert not places(first, first.numel()) & places(other, other.numel())
    assert fake.get(10, stream=5).data_ptr() == other.data_ptr()
    assert fake.get(10, device=torch.device("cuda", 1)).data_ptr() not in (first.data_ptr(), other.data_ptr())


def test_a_buffer_grows_and_the_old_one_stays_for_launches_under_way(fake: Fake) -> None:
    first = fake.get(1)
    address, size = first.data_ptr(), first.numel()
    del first
    grown = fake.get(size + 1)
    assert grown.numel() == 2 * size
    assert address not in places(grown, grown.numel())
    made = len(fake.made)
    assert fake.get(size).data_ptr() == grown.data_ptr()
    assert fake.get(5 * size).numel() == 5 * size
    assert len(fake.made) == made + 1


def test_every_captured_call_has_counters_of_its_own(fake: Fake) -> None:
    eager = fake.get(40)
    taken = places(eager, eager.numel())
    for _ in range(8):
        captured = fake.get(17, capturing=True)
        assert captured.numel() == 17
        assert not taken & places(captured, 17)
        taken |= places(captured, 17)
    assert fallbacks() == {}


def test_captured_calls_lie_128_bytes_apart(fake: Fake) -> None:
    fake.get(1)
    first, second, third = (fake.get(count, capturing=True) for count in (1, 33, 1))
    assert second.data_ptr() - first.data_ptr() == 128
    assert third.data_ptr() - second.data_ptr() == 256


def test_an_exhausted_reserve_is_noted_and_a_larger_one_made_outside_the_capture(fake: Fake) -> None:
    fake.get(1)
    reserved = [fake.get(64, capturing=True) for _ in range(4)]
    made = len(fake.made)
    extra = [fake.get(300, capturing=True), fake.get(64, capturing=True)]
    assert len(fake.made) == made
    (count,) = fallbacks().values()
    assert count == 2
    fake.get(1)
    assert fake.made[-1] == 2 * (320 + 64)
    fake.get(1)
    assert len(fake.made) == made + 1  # once
    late = fake.get(300, capturing=True)
    assert sum(fallbacks().values()) == 2
    before = set().union(*(places(one, one.numel()) for one in (*reserved, *extra)))
    assert not before & places(late, 300)


def test_a_capture_without_any_call_before_it(fake: Fake) -> None:
    fake.get(5, capturing=True)
    assert fake.made == []
    assert sum(fallbacks().values()) == 1
    fake.get(5)
    fake.get(5, capturing=True)
    assert sum(fallbacks().values()) == 1


def test_borrowed_counters_go_back(fake: Fake) -> None:
    fake.get(1)
    kept = fake.get(32, capturing=True)
    addresses = []
    for _ in range(20):  # 20 times 192 would not fit
        with fake.set.borrowed():
            addresses.append(fake.get(192, capturing=True).data_ptr())
    assert len(set(addresses)) == 1
    assert addresses[0] not in places(kept, 32)
    assert fake.get(32, capturing=True).data_ptr() == addresses[0]
    assert fallbacks() == {}


def test_a_reserve_made_while_counters_are_borrowed_is_free_afterwards(fake: Fake) -> None:
    fake.get(1)
    with fake.set.borrowed():
        fake.get(512, capturing=True)
        fake.get(1)
        inside = fake.get(512, capturing=True).data_ptr()
    assert fake.get(512, capturing=True).data_ptr() == inside
    with fake.set.borrowed():
        pass
    assert fake.get(512, capturing=True).data_ptr() == inside + 4 * 512


def test_threads_that_capture_at_once_share_nothing() -> None:
    fake = Fake(reserve=1 << 16)
    fake.get(1)
    fake.is_capturing = True
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: fake.set.get(GPU, 32).data_ptr(), range(1000)))
    assert len(set(found)) == 1000


def test_the_interpreter_has_fresh_zeros() -> None:
    first = counters_for(torch.device("cpu"), 3)
    first += 1
    assert counters_for(torch.device("cpu"), 3).tolist() == [0, 0, 0]


@pytest.mark.gpu
def test_on_a_gpu_graphs_and_streams_have_their_own() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    forget_fallbacks()
    with torch.inference_mode():
        eager = counters_for(device, 100)
    assert not eager.is_inference()
    with torch.cuda.stream(torch.cuda.Stream()):
        other = counters_for(device, 100)
    assert not places(eager, 100) & places(other, 100)
    captured = []
    for _ in range(2):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured.append(counters_for(device, 100))
            captured[-1].add_(1)
        graph.replay()
    torch.cuda.synchronize()
    assert [one.unique().tolist() for one in captured] == [[1], [1]]
    assert not eager.any()
    assert fallbacks() == {}
    for one in captured:
        one.zero_()  # as every kernel leaves them


@pytest.mark.gpu
def test_on_a_gpu_buffers_survive_a_pool_that_is_taken_back() -> None:
    """What allocates in the warm-up of torch.compile's CUDA graphs must not keep memory of their pool."""
    device = torch.device("cuda", torch.cuda.current_device())
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool), torch.cuda.stream(torch.cuda.Stream()):
        counters_for(device, 1 << 14)
    assert not pool.snapshot()
