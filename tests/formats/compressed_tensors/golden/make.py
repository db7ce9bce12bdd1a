"""Write the golden file of the installed compressed-tensors: `python make.py` in its environment.

For each case the integers that were meant (codes, zeros), the scales, the tensors that compressed-tensors packs and the
weight that it unpacks, under "<case>|meant|..." and "<case>|packed|...", "<case>|dense".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressed_tensors
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import save_file

# name, bits, strategy, group size, symmetric, scale dtype, (out, in)
CASES = [
    ("int2-g32", 2, "group", 32, True, torch.float32, (8, 64)),
    ("int3-g32", 3, "group", 32, True, torch.float32, (8, 64)),
    ("int3-g32-asym", 3, "group", 32, False, torch.float32, (11, 64)),
    ("int4-g32", 4, "group", 32, True, torch.bfloat16, (8, 64)),
    ("int4-g32-asym", 4, "group", 32, False, torch.float16, (13, 64)),
    ("int4", 4, "channel", None, True, torch.float32, (6, 44)),
    ("int4-asym", 4, "channel", None, False, torch.float32, (6, 44)),
    ("int4-tensor", 4, "tensor", None, True, torch.float32, (4, 36)),
    ("int4-tensor-asym", 4, "tensor", None, False, torch.float32, (4, 36)),
    ("int8", 8, "channel", None, True, torch.bfloat16, (6, 38)),
    ("int8-g32", 8, "group", 32, True, torch.float32, (4, 64)),
    ("int8-g32-asym", 8, "group", 32, False, torch.float32, (5, 64)),
    ("w8a8-dynamic", 8, "channel", None, True, torch.float32, (4, 36)),
]


def make_case(bits: int, strategy: str, group: int | None, symmetric: bool, dtype: torch.dtype, shape: tuple) -> dict:
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    rows = 1 if strategy == "tensor" else shape[0]
    groups = shape[1] // group if group else 1
    codes = torch.randint(low, high, shape)
    codes[0, :2] = torch.tensor([low, high - 1])
    zeros = torch.zeros(rows, groups, dtype=torch.int64) if symmetric else torch.randint(low, high, (rows, groups))
    # Powers of two: compressed-tensors only packs floats, and must find the codes again without rounding.
    scales = 2.0 ** torch.randint(-6, 0, (rows, groups)) * (-1) ** torch.randint(0, 2, (rows, groups))
    wide = [part.repeat_interleave(group or shape[1], 1).expand(shape) for part in (zeros, scales)]
    weight = ((codes - wide[0]) * wide[1]).to(dtype)
    stored = scales.to(dtype).reshape(1) if strategy == "tensor" else scales.to(dtype)
    state = {"weight": weight, "weight_scale": stored}
    if not symmetric:
        state["weight_zero_point"] = zeros.to(torch.int8).reshape(stored.shape)
    return {"codes": codes.to(torch.int8), "scales": scales.to(dtype), "zeros": zeros.to(torch.int8), "state": state}


def main() -> None:
    torch.manual_seed(0)
    tensors = {}
    for name, bits, strategy, group, symmetric, dtype, shape in CASES:
        case = make_case(bits, strategy, group, symmetric, dtype, shape)
        weights = {"num_bits": bits, "symmetric": symmetric, "strategy": strategy, "group_size": group}
        activations = name == "w8a8-dynamic"
        inputs = {"num_bits": 8, "strategy": "token", "dynamic": True} if activations else None
        config = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
        scheme = QuantizationScheme.model_validate(config)
        layout = "int-quantized" if activations else "pack-quantized"
        compressor = BaseCompressor.get_value_from_registry(layout)
        packed: dict[str, Any] = compressor.compress(dict(case["state"]), scheme)
        dense: Any = compressor.decompress(dict(packed), scheme)["weight"]
        assert torch.equal(dense, case["state"]["weight"]), name
        tensors |= {f"{name}|packed|{key}": value.contiguous() for key, value in packed.items()}
        tensors |= {f"{name}|meant|{key}": case[key].contiguous() for key in ("codes", "scales")}
        if not symmetric:
            tensors[f"{name}|meant|zeros"] = case["zeros"]
        tensors[f"{name}|dense"] = dense.contiguous()
    path = Path(__file__).parent / f"compressed_tensors_{compressed_tensors.__version__}.safetensors"
    save_file({key: value.clone() for key, value in tensors.items()}, path)
    path.chmod(0o644)


if __name__ == "__main__":
    main()
