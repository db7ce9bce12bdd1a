"""llama.cpp's side of decode.py: write a random Q4_0 model, and time prompts and single tokens on request.

Runs in an environment that has llama-cpp-python, gguf and numpy, and nothing of ours:

    python benchmarks/llama_cpp_decode.py '{"shape": .., "threads": 1}'

Reads {"prompt": n, "steps": n} as lines of JSON, answers {"prefill_s": .., "step_s": [..]} to each.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, BLOCK_BYTES = 32, 18  # Q4_0: one float16 scale and 16 bytes for 32 weights; 4.5 bits


def write_model(path: Path, shape: dict[str, Any]) -> None:
    """Write a GGUF file of a Llama shape, every matrix in Q4_0 with random codes, without a vocabulary."""
    import gguf
    import numpy as np

    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    heads = shape["num_attention_heads"]
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_rope_dimension_count(shape["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)

    for name, size in tensors(shape):
        if len(size) == 1:
            writer.add_tensor(name, np.ones(size, dtype=np.float32))
            continue
        blocks = np.empty((size[0], size[1] // BLOCK, BLOCK_BYTES), dtype=np.uint8)
        blocks[..., 2:] = random.integers(0, 256, blocks[..., 2:].shape, dtype=np.uint8)
        scales = random.uniform(0.002, 0.004, (*blocks.shape[:2], 1)).astype(np.float16)
        blocks[..., :2] = scales.view(np.uint8)
        writer.add_tensor(name, blocks.reshape(size[0], -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(shape: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes of a Llama's tensors in a GGUF file."""
    hidden, ffn, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    kv = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    yield "token_embd.weight", (vocabulary, hidden)
    yield "output_norm.weight", (hidden,)
    yield "output.weight", (vocabulary, hidden)
    for layer in range(shape["num_hidden_layers"]):
        for name, size in (
            ("attn_norm", (hidden,)), ("attn_q", (hidden, hidden)), ("attn_k", (kv, hidden)), ("attn_v", (kv, hidden)),
            ("attn_output", (hidden, hidden)), ("ffn_norm", (hidden,)), ("ffn_gate", (ffn, hidden)),
            ("ffn_up", (ffn, hidden)), ("ffn_down", (hidden, ffn)),
        ):  # fmt: skip
            yield f"blk.{layer}.{name}.weight", size


class Model:
    """A loaded model with a context of its own."""

    def __init__(self, path: Path, context: int, threads: int) -> None:
        from llama_cpp import llama_cpp as lib

        self.lib = lib
        lib.llama_backend_init()
        self.quiet = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self.quiet, None)
        options = lib.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(str(path).encode(), options)
        options = lib.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, 512, 512
        options.n_threads = options.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, options)

    def run(self, tokens: list[int]) -> float:
        """Seconds of one pass over tokens that follow those of the passes before it."""
        array = (self.lib.llama_token * len(tokens))(*tokens)
        start = time.perf_counter()
        if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError("llama_decode failed")
        self.lib.llama_synchronize(self.context)
        return time.perf_counter() - start

    def forget(self) -> None:
        """Start a new sequence."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)


def main() -> None:
    """Answer requests until standard input ends."""
    task = json.loads(sys.argv[1])
    shape = task["shape"]
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "model.gguf"
        write_model(path, shape)
        model = Model(path, shape["max_position_embeddings"], task["threads"])
        import llama_cpp

        print(json.dumps({"version": llama_cpp.__version__, "bytes": path.stat().st_size}), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            model.forget()
            prefill = model.run([token % shape["vocab_size"] for token in range(request["prompt"])])
            steps = [model.run([token]) for token in range(request["steps"])]
            print(json.dumps({"prefill_s": prefill, "step_s": steps}), flush=True)


if __name__ == "__main__":
    main()
