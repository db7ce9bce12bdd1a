"""Memory that the system refuses becomes an exception of Python, not the end of the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmquant.errors import LlmquantError, OutOfMemoryError
from llmquant.kernels.cpu import native

pytestmark = pytest.mark.skipif(native.library() is None, reason="the C++ kernels are not installed")

# One output of 2^22 inputs: quantizing four rows of them takes 32 MB, of which the system is left with 8.
STARVED = """
import resource
import torch
from llmquant.errors import OutOfMemoryError
from llmquant.kernels.cpu import native
from llmquant.kernels.cpu import ops as cpu_ops
from llmquant.kernels.cpu import weight as cpu_weight
from llmquant.kernels.product import PackedWeight, Product
torch.set_num_threads(1)
cols = 1 << 22
weight = cpu_weight.prepare(PackedWeight(torch.zeros(1, cols // 8, dtype=torch.int32), torch.ones(1, 1), None, 4, cols))
x = torch.ones(4, cols)
before = resource.getrlimit(resource.RLIMIT_AS)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (8 << 20), before[1]))
calls = (
    lambda: cpu_ops.linear(x, weight, None, 1, True),
    lambda: cpu_ops.linear_fused(x, Product([weight], [], [1], True)),
    lambda: native.map_huge(1 << 30),
)
for call in calls:
    try:
        call()
    except OutOfMemoryError as error:
        print("refused:", error)
resource.setrlimit(resource.RLIMIT_AS, before)
print(calls[0]().tolist())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS and /proc: Linux only")
def test_refused_memory_is_an_exception_and_the_next_call_works() -> None:
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    *refused, result = done.stdout.splitlines()
    assert [line.partition(";")[0] for line in refused] == [
        "refused: the C++ kernels got no memory for their inputs",
        "refused: the C++ kernels got no memory for their inputs",
        "refused: no memory for 1,073,741,824 bytes of weights: Cannot allocate memory",
    ]
    # Codes of 0 are weights of -8.
    assert result == str([[-8.0 * (1 << 22)]] * 4)


def test_statuses() -> None:
    native.check(0, "avx2")
    with pytest.raises(OutOfMemoryError):
        native.check(4, "avx2")
    with pytest.raises(LlmquantError, match="status 5"):
        native.check(5, "avx2")
