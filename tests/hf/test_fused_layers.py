"""Models on the GPU kernels: loaded, fused, moved, saved. What fusing promises everywhere is in test_fuse.py.

Without a GPU the kernels run in Triton's interpreter: a tenth of a second for a product of a tiny model, so few tokens,
and wrong in bfloat16, so float16 and float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, StaticCache

import llmquant
from llmquant.hf.fuse import fuse, is_fused, unfuse
from llmquant.kernels.backend import GpuKernels
from llmquant.kernels.cpu import native
from llmquant.kernels.gpu import runtime
from llmquant.nn.accuracy import kernels_used
from llmquant.nn.storage import PackedStorage
from llmquant.spec import Scheme
from tests.hf.conftest import MODELS, schemes_in_blocks, write_packed
from tests.hf.test_fuse import CHANGES, LAYERS, Calls, difference, layer_training, make, packed
from tests.hf.test_packed import load_strict

SCHEME = "int4"  # one scale per output is the fastest in the interpreter
TOKENS = torch.arange(6).reshape(2, 3)
PADDED = torch.tensor([[0, 1, 1], [1, 1, 1]])


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    counted, kernel = Calls(), GpuKernels.linear_fused

    def count(*args: Any) -> list[Tensor]:
        counted.count += 1
        return kernel(*args)

    monkeypatch.setattr(GpuKernels, "linear_fused", count)
    return counted


def layers_of(model: nn.Module) -> list[PackedStorage]:
    return [module for module in model.modules() if isinstance(module, PackedStorage)]


def logits(model: Any, **more: Any) -> Tensor:
    return model(TOKENS.to(model.device), **more).logits.cpu()


def on_reference(model: Any) -> Any:
    reference = copy.deepcopy(model)
    for layer in layers_of(reference):
        layer.unprepare()
    return reference


@pytest.mark.parametrize("family", ["llama-bias", "qwen3"])
def test_same_logits(family: str, device: str, calls: Calls) -> None:
    model = make(family, SCHEME).to(device)
    assert all(isinstance(layer.kernels, GpuKernels) for layer in layers_of(model))
    mask, token = PADDED.to(device), torch.tensor([[7], [8]], device=device)

    def steps(run: Any) -> Tensor:
        """Logits of a prefill, and of the token after it."""
        prefill = run(TOKENS.to(device), attention_mask=mask, use_cache=True)
        following = run(token, past_key_values=prefill.past_key_values)
        return torch.cat((prefill.logits[mask.bool()], following.logits[:, 0])).cpu()

    plain = steps(model)
    assert difference(plain, steps(on_reference(model))) < 1e-5
    assert calls.taken() == 0
    assert fuse(model) == LAYERS
    assert difference(steps(model), plain) < 1e-5
    assert calls.taken() == 2 * 4 * LAYERS


def test_float16_is_as_close_to_float32(device: str) -> None:
    model = make("qwen3", "int4-asym", torch.float16).to(device)
    wide = logits(on_reference(copy.deepcopy(model).float()))
    plain = difference(logits(model), wide)
    assert fuse(model) == LAYERS
    assert 0 < difference(logits(model), wide) <= 1.2 * plain


def other_width(model: Any) -> None:
    model.model.layers[1].self_attn.v_proj = packed(nn.Linear(64, 32, bias=False), Scheme.parse("int3-g32"))


def with_zeros(model: Any) -> None:
    model.model.layers[1].mlp.up_proj = packed(nn.Linear(64, 96, bias=False), Scheme.parse(f"{SCHEME}-asym"))


def not_prepared(model: Any) -> None:
    model.model.layers[1].self_attn.o_proj.unprepare()


DIFFERENT = [*(change for change in CHANGES if change is not layer_training), other_width, with_zeros, not_prepared]


@pytest.mark.parametrize("change", DIFFERENT, ids=lambda change: change.__name__)
def test_a_layer_that_is_different_is_not_fused(change: Callable[[Any], None], device: str) -> None:
    model = make(scheme=SCHEME)
    change(model)
    assert fuse(model.to(device)) == LAYERS - 1


def test_a_layer_that_changes_later_runs_as_it_is(device: str, calls: Calls) -> None:
    model = make(scheme=SCHEME)
    fuse(model)
    with_zeros(model)
    found = logits(model.to(device))
    assert calls.taken() == 4 * (LAYERS - 1)
    unfuse(model)
    assert difference(found, logits(model)) < 1e-5


def test_gradients_take_the_original_forward(device: str, calls: Calls) -> None:
    model = make(scheme=SCHEME).to(device)
    fuse(model)
    with torch.enable_grad():
        embedded = model.get_input_embeddings()(TOKENS.to(device)).requires_grad_()
        model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad.abs().sum() > 0
    assert calls.taken() == 0


@pytest.mark.skipif(native.library() is None, reason="the C++ kernels are not installed")
def test_copies_and_moves_stay_fused(device: str, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(scheme=SCHEME).to(device)
    fuse(model)
    wanted, state = logits(model), {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    calls.taken()
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), wanted)
    assert calls.taken() == 4 * LAYERS
    if device == "cpu":
        monkeypatch.delenv(runtime.VARIABLE)
    model.to("cpu")
    assert list(kernels_used(model)) == [f"linear_int4: {native.isa()}, exact"]
    assert difference(logits(model), wanted) < 1e-4
    assert calls.taken() == 0
    assert sum(map(is_fused, model.modules())) == LAYERS
    if device == "cpu":
        monkeypatch.setenv(runtime.VARIABLE, "interpret")
    model.to(device)
    assert torch.equal(logits(model), wanted)
    assert calls.taken() == 4 * LAYERS
    assert all(torch.equal(tensor.cpu(), state[name]) for name, tensor in model.state_dict().items())


def test_compiles_in_one_graph_with_a_static_cache(device: str) -> None:
    model = make(scheme=SCHEME).to(device)

    def step(run: Any) -> Tensor:
        cache = StaticCache(config=model.config, max_cache_len=8)
        return run(TOKENS[:, :1].to(device), past_key_values=cache, use_cache=True).logits

    wanted = step(model)
    fuse(model)
    torch._dynamo.reset()
    assert difference(step(torch.compile(model, fullgraph=True, backend="aot_eager")), wanted) < 1e-5


def packed_folder(name: str, scheme: str, vocabulary: str | None, folder: Path) -> tuple[Path, Any]:
    """A packed float16 checkpoint, and the dense model that it stands for."""
    torch.manual_seed(7)
    MODELS[name]().half().save_pretrained(folder / "dense")
    schemes = schemes_in_blocks(AutoModelForCausalLM.from_pretrained(folder / "dense"), scheme)
    if vocabulary:
        schemes["model.embed_tokens"] = Scheme.parse(vocabulary)
    return folder / "q", write_packed(folder / "dense", folder / "q", schemes)


@pytest.mark.parametrize(
    ("name", "scheme", "vocabulary"), [("llama", "int4-g32-asym", None), ("qwen3-tied", "int4", "int8")]
)
def test_checkpoints_load_run_and_save(
    name: str, scheme: str, vocabulary: str | None, device: str, tmp_path: Path, calls: Calls
) -> None:
    folder, fake = packed_folder(name, scheme, vocabulary, tmp_path)
    model = load_strict(folder, device_map=device)
    used = {f"linear_int4: {runtime.arch(device)} triton, exact": 14}
    if vocabulary:
        used["embedding_int8: rows of the prepared lm_head"] = 1
        used[f"linear_int8: {runtime.arch(device)} triton, exact"] = 1
    assert kernels_used(model) == used
    assert difference(logits(model), logits(fake)) < 2e-3
    assert calls.taken() == 4 * LAYERS
    assert model.generate(TOKENS.to(device), max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (2, 5)
    assert calls.taken() == 2 * 4 * LAYERS
    model.save_pretrained(tmp_path / "again")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert difference(logits(model.dequantize(torch.float16)), logits(fake)) < 2e-3


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """What the interpreter cannot show: bfloat16, CUDA graphs, and torch.compile with its own kernels around ours."""
    model = make("qwen3", "int4-g32", torch.bfloat16).cuda()
    wide = logits(on_reference(copy.deepcopy(model).float()))
    plain = difference(logits(model), wide)
    fuse(model)
    assert difference(logits(model), wide) <= 1.2 * plain
    tokens, cache = TOKENS[:, :1].cuda(), StaticCache(config=model.config, max_cache_len=8)
    position = torch.zeros(2, 1, dtype=torch.long, device="cuda")

    def step() -> Tensor:
        return model(tokens, past_key_values=cache, position_ids=position, use_cache=True).logits

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # what is done once, such as compiling, must not be captured
        step()
        cache.reset()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for column in (1, 2):
        tokens.copy_(TOKENS[:, column : column + 1])
        cache.reset()
        graph.replay()
        found = captured.clone()
        cache.reset()
        assert torch.equal(found, step())
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, fullgraph=True)
    assert difference(compiled(TOKENS.cuda()).logits.cpu(), wide) < 3e-2


@pytest.mark.gpu
def test_loading_to_a_gpu_leaves_one_copy(tmp_path: Path) -> None:
    folder, _ = packed_folder("llama", "int4-g32", None, tmp_path)
    before = torch.cuda.memory_allocated()
    model = llmquant.load(folder, device_map="cuda")
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    # The allocator rounds every tensor up to 512 bytes.
    assert torch.cuda.memory_allocated() - before <= sum(held.values()) + 512 * len(held)
