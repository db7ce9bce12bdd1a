"""What takes part in the GPU benchmark: somebody's kernel for one format, ours and the peers' alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from llmquant.kernels.bench.contender import Shape
from llmquant.kernels.bench.gpu_cases import FORMATS, Format
from llmquant.kernels.bench.gpu_weights import Weight

OURS, CUBLAS = "llmquant", "cublas"


class Kernel(ABC):
    """One way to compute `x @ weight.T`.

    Args:
        owner: whose it is, such as "llmquant" or "vllm-marlin".
        form: the format that it computes; cuBLAS, which stands beside all, has "bf16".
        variant: what else tells it from others of the same owner and format.
    """

    #: Whether it computes with other numbers than the weight's, so that its error says nothing.
    requantizes = False
    #: Of outputs and inputs, that it takes without padding them first.
    multiples = (1, 1)
    #: What `compile` has to be called for: every layer, the kernel as a whole, or nothing.
    compiles: Literal["layer", "kernel", ""] = ""

    def __init__(self, owner: str, form: str, variant: str = "") -> None:
        self.owner, self.form, self.variant = owner, form, variant

    @property
    def name(self) -> str:
        """For tables, and as a key."""
        return " ".join(word for word in (self.owner, self.form, self.variant) if word)

    @property
    def layout(self) -> str:
        """Kernels with the same prepared weights say the same, and share them."""
        return self.name

    @property
    def format(self) -> Format:
        """What it computes."""
        return FORMATS[self.form]

    def why_not(self, shape: Shape, m: int) -> str | None:  # noqa: ARG002 - for some it depends on rows too
        """Why it cannot run, or should not, in words for a report; None if it can."""
        n, k = self.multiples
        return None if shape.n % n == 0 and shape.k % k == 0 else f"{shape} is no multiple of {n}x{k}"

    @abstractmethod
    def prepare(self, weight: Weight) -> Any:
        """The tensors that `call` needs, alone or in tuples; the copies that are called in turn are clones of them."""

    @abstractmethod
    def call(self, x: Tensor, prepared: Any) -> Tensor:
        """`x` (m, k) to (m, n)."""

    def describe(self, shape: Shape, m: int) -> dict[str, Any]:  # noqa: ARG002
        """How it runs, for the file of results: a configuration, where it has one."""
        return {}

    def compile(self, shape: Shape, batches: Sequence[int]) -> None:  # noqa: B027
        """Leave compiled code for some numbers of rows where the next process finds it."""


@dataclass(frozen=True)
class Peer:
    """Somebody else's kernels.

    Attributes:
        name: such as "vllm".
        kernels: none if it is absent.
        absent: why it is absent; None if it is not.
    """

    name: str
    kernels: tuple[Kernel, ...] = ()
    absent: str | None = None
