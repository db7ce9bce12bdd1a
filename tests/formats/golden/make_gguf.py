"""Write the golden file of the installed `gguf` package, llama.cpp's own: `python make_gguf.py` in its environment.

Under "q4.weight" and "q8.weight" blocks that the package made of floats, under "q4.dense" and "q8.dense" the floats
that it reads in them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

gguf: Any = import_module("gguf")


def main() -> None:
    path = Path(__file__).parent / f"gguf_{version('gguf')}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("none")
    values = np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)
    values[0] *= 1e-4
    for name, kind in (("q4", gguf.GGMLQuantizationType.Q4_0), ("q8", gguf.GGMLQuantizationType.Q8_0)):
        blocks = gguf.quantize(values, kind)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)
        writer.add_tensor(f"{name}.dense", gguf.dequantize(blocks, kind))
    writer.add_tensor("norm.weight", values[1, :7])
    writer.add_tensor("half.weight", values[:2, :5].astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
