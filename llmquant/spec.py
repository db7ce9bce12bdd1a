"""What a tensor becomes: `Scheme`, a frozen description with the short name that users type.

Conventions used everywhere: a quantized weight is `scale * (code - zero)`, with signed codes in
[-2^(bits-1), 2^(bits-1) - 1]; a symmetric scheme has no zero (it is 0) and may have negative scales, which puts the
element of largest magnitude on the extra negative code; groups run along in_features. Rounding is half to even.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Granularity = Literal["group", "channel", "tensor"]
Activations = Literal["dynamic", "static"]

BITS = (2, 3, 4, 8)
_NAME = re.compile(r"int(?P<bits>[2348])(?:-g(?P<group>[1-9]\d*)|-(?P<tensor>tensor))?(?P<asym>-asym)?")
EXAMPLES = ("int8", "int8-g128", "int4-g128", "int4-g32", "int4-g128-asym", "int3-g32", "w8a8-dynamic", "keep")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one weight is stored.

    Attributes:
        bits: width of a code, 2, 3, 4 or 8; 16 means the tensor is kept as it is.
        granularity: what shares a scale: `group_size` inputs of one output, one output channel, or the whole tensor.
        group_size: inputs that share a scale, for granularity "group" only.
        symmetric: no zero points.
        activations: None for weight-only; "dynamic" or "static" for 8-bit activations (W8A8).
    """

    bits: int
    granularity: Granularity = "channel"
    group_size: int | None = None
    symmetric: bool = True
    activations: Activations | None = None

    def __post_init__(self) -> None:
        if self.bits not in (*BITS, 16):
            raise ValueError(f"a scheme has {', '.join(map(str, BITS))} bits (or 16 for keep), not {self.bits}")
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError(
                f"group_size goes with granularity 'group' only; got {self.granularity!r}, {self.group_size}"
            )
        if self.activations and (self.bits, self.granularity, self.symmetric) != (8, "channel", True):
            raise ValueError("8-bit activations go with symmetric 8-bit weights per channel only")

    @classmethod
    def parse(cls, name: str) -> Scheme:
        """Read a short name such as "int4-g128-asym".

        Raises:
            ValueError: if the name is not one; the message lists examples.
        """
        if name == "keep":
            return KEEP
        if name in ("w8a8-dynamic", "w8a8-static"):
            return cls(8, activations="dynamic" if name.endswith("dynamic") else "static")
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"unknown scheme {name!r}; schemes look like {', '.join(EXAMPLES)}")
        group = int(match["group"]) if match["group"] else None
        granularity = "group" if group else "tensor" if match["tensor"] else "channel"
        return cls(int(match["bits"]), granularity, group, symmetric=not match["asym"])

    @property
    def name(self) -> str:
        """The short name; `Scheme.parse(scheme.name) == scheme`."""
        if self.is_keep:
            return "keep"
        if self.activations:
            return f"w8a8-{self.activations}"
        size = {"group": f"-g{self.group_size}", "channel": "", "tensor": "-tensor"}[self.granularity]
        return f"int{self.bits}{size}{'' if self.symmetric else '-asym'}"

    @property
    def is_keep(self) -> bool:
        """Whether the tensor stays in its 16-bit (or 32-bit) format."""
        return self.bits == 16

    @property
    def code_min(self) -> int:
        """Smallest signed code."""
        return -(1 << (self.bits - 1))

    @property
    def code_max(self) -> int:
        """Largest signed code."""
        return (1 << (self.bits - 1)) - 1

    def divides(self, in_features: int) -> bool:
        """Whether whole groups cover `in_features` inputs."""
        return self.group_size is None or in_features % self.group_size == 0

    def scale_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Shape of scales (and zeros): (out_features, groups), with one row for a per-tensor scheme.

        Raises:
            ValueError: if the group size does not divide in_features.
        """
        if not self.divides(in_features):
            raise ValueError(f"groups of {self.group_size} do not divide in_features = {in_features}")
        if self.granularity == "tensor":
            return (1, 1)
        return (out_features, in_features // self.group_size if self.group_size else 1)

    def __str__(self) -> str:
        return self.name


KEEP = Scheme(16)
