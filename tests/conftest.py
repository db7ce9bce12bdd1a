"""Fixtures of the whole suite: test data, a seed per test, one thread."""

from __future__ import annotations

import gc
import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import settings

from tests import shapes

shapes.install()  # before llmquant is imported

LONGEST = ("test_compile.py", "test_compare.py", "test_run_processes.py")
REPOSITORY = Path(__file__).resolve().parents[1]

settings.register_profile("house", deadline=None)  # on a busy machine an example takes as long as it takes
settings.load_profile("house")

if not torch.cuda.is_available():
    # Here, because it counts only before triton is imported, and torch.compile imports it in any test.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu`, with the reason, on a machine without a CUDA device; begin with the longest tests."""
    items.sort(key=lambda item: item.path.name not in LONGEST)  # which else end alone, on one core of several
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish() -> None:
    """Leave what the imports made out of garbage collections, which took a seventh of the processor time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    """Seed every generator from the test's own id, so that neither order nor selection changes a result."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the libraries we test still read numpy's global state
    torch.manual_seed(seed)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """One torch thread: tiny tensors gain nothing from more, and pytest-xdist already uses every core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def reference_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave packed layers on the reference, which has the bits of the dense layer, as LLMQUANT_CPU_KERNELS does."""
    from llmquant.kernels.cpu import native

    monkeypatch.setattr(native, "wanted", lambda: False)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the GPU kernels run in this test: on a GPU, or on the CPU in Triton's interpreter."""
    pytest.importorskip("triton", reason="triton is not installed: pip install 'llmquant[gpu]'")
    if torch.cuda.is_available():
        return "cuda"
    monkeypatch.setenv("LLMQUANT_GPU_KERNELS", "interpret")
    _dot_in_order(monkeypatch)
    return "cpu"


def _dot_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's interpreter sum the products of each row in the order of the inputs, as long as they are floats.

    It multiplies by numpy's BLAS, which sums a row in an order that depends on the processor, and on some on where the
    row stands in its block: bits that our kernels do not decide, so no test may depend on them.
    """
    from triton.runtime import interpreter

    by_blas = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, acc: Any, *precision: Any) -> Any:
        if not np.issubdtype(acc.data.dtype, np.floating):
            return by_blas(self, a, b, acc, *precision)
        left, right = a.data.astype(acc.data.dtype), b.data.astype(acc.data.dtype)
        total = np.zeros_like(acc.data)
        for k in range(left.shape[1]):
            total += left[:, k, None] * right[k]
        return interpreter.TensorHandle(total + acc.data, acc.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """Let tensors of other shapes than annotated through to the code that refuses them, as for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with test models and texts: $LLMQUANT_TEST_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("LLMQUANT_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "models").is_dir():
        pytest.skip(f"no test data at {folder}; set LLMQUANT_TEST_DATA to a folder that holds models/ and text/")
    return folder
