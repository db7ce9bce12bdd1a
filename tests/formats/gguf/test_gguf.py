"""`format: gguf` from a recipe to a file: what is refused, what is written, resuming, and what other programs read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from llmquant import api
from llmquant.algorithms.rounding import rtn
from llmquant.engine.layer import dense_weight, quantize_layer
from llmquant.engine.output.check_folder import verify_folder
from llmquant.errors import CheckpointError, LlmquantError, OutputError, PlanError
from llmquant.formats import find, gguf
from llmquant.formats.base import Content
from llmquant.formats.gguf.file import make_header
from llmquant.formats.gguf.writer import FILE, GgufFile, GgufWriter
from llmquant.models.checkpoint import Checkpoint
from llmquant.spec import KEEP, Scheme
from llmquant.statistics.base import LayerStatistics

INT4, INT8 = Scheme.parse("int4-g32"), Scheme.parse("int8-g32")
UP = "model.layers.1.mlp.up_proj"
QUERY = "model.layers.0.self_attn.q_proj"


def recipe(*rules: tuple[Any, str], **more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "format": "gguf",
        "rules": [{"match": match, "scheme": scheme} for match, scheme in rules],
        **more,
    }


MIXED = recipe(("linear", "int4-g32"), ("mlp.down", "int8-g32"), ("embedding", "int8-g32"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 Llama with grouped queries, biases in the attention, and a head of its own."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, attention_bias=True, dtype=torch.bfloat16,
    )  # fmt: skip
    model = LlamaForCausalLM(config).bfloat16()
    for parameter in model.parameters():  # biases and norms are not what they begin as
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def written(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "out"
    api.quantize(source, MIXED, out)
    return out


def plan(source: Path, *rules: tuple[Any, str], **more: Any) -> Any:
    return api.plan(source, recipe(*rules, **more))


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("int4-g64", "blocks of 32 weights with 8 or 4 bits, not int4-g64"),
        ("int8", "blocks of 32 weights with 8 or 4 bits, not int8"),
        ("int3-g32", "not int3-g32"),
        ("int4-g32-asym", "no block for asymmetric codes"),
        ("w8a8-dynamic", "weights only"),
    ],
)
def test_schemes_that_it_cannot_say(source: Path, scheme: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        plan(source, ("linear", scheme))


def save(folder: Path, model: Any) -> Path:
    model.bfloat16().save_pretrained(folder)
    return folder


SIZES: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip
BIGGER: dict[str, Any] = SIZES | {"hidden_size": 64, "num_attention_heads": 4}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)), "for LlamaForCausalLM only, not Qwen2ForCausalLM"),
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu")), "computes with SiLU"),
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3)), "positions are scaled"),
    ],
)
def test_models_that_it_cannot_say(tmp_path: Path, make: Callable[[], Any], words: str) -> None:
    folder = save(tmp_path / "model", make())
    with pytest.raises(PlanError, match=words):
        plan(folder, ("linear", "int4-g32"))
    with pytest.raises(PlanError, match=words):
        api.quantize(folder, recipe(("linear", "int4-g32")), tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_sets_may_be_split(source: Path) -> None:
    """Other readers join q/k/v; llama.cpp does not."""
    assert plan(source, (QUERY, "int4-g32")).quantized
    with pytest.raises(PlanError, match="vLLM loads these as one layer"):
        api.plan(source, recipe((QUERY, "int4-g32")) | {"format": "compressed-tensors"})


def test_in_memory_there_is_one_layout(source: Path) -> None:
    import llmquant

    with pytest.raises(LlmquantError, match="has the layout of compressed-tensors, not of gguf"):
        AutoModelForCausalLM.from_pretrained(source, quantization_config=llmquant.RecipeConfig(MIXED))


def test_sizes_are_those_of_the_file(source: Path, written: Path) -> None:
    found = api.plan(source, MIXED)
    stored = GgufFile.open(written).tensors
    assert found.bytes_after == sum(info.bytes for info in stored.values())
    bits = {row.name: row.bits_per_weight for row in found.rows}
    assert bits[UP] == 4.5
    assert bits["model.layers.1.mlp.down_proj"] == bits["model.embed_tokens"] == 8.5
    assert bits["model.norm"] == 32
    assert bits["lm_head"] == 16


def test_scales_are_rounded_as_they_are_stored(source: Path, written: Path) -> None:
    """Codes belong to float16 scales, though the model is bfloat16."""
    weight = Checkpoint.open(source).read(f"{UP}.weight")
    meant = rtn.quantize(weight, LayerStatistics(), INT4, rtn.Options(), scale_dtype=torch.float16).quantized
    stored = GgufFile.open(written)
    (name,) = gguf.names(f"{UP}.weight", INT4)
    for read in (stored.decode, stored.decode_reference):
        found = read(UP, {name: stored.read(name)}, INT4)
        assert found.scales.dtype == torch.float16
        assert torch.equal(found.codes, meant.codes)
        assert torch.equal(found.scales, meant.scales)


def test_what_stays_is_exact(source: Path, written: Path) -> None:
    checkpoint, stored = Checkpoint.open(source), GgufFile.open(written)
    for key in (f"{QUERY}.bias", "model.norm.weight", "lm_head.weight"):
        (name,) = gguf.names(key, KEEP)
        kept = stored.read(name)
        assert kept.dtype == (torch.float32 if kept.ndim == 1 else torch.bfloat16)
        assert torch.equal(stored.restore(key, kept).to(torch.bfloat16), checkpoint.read(key))
        assert torch.equal(kept.to(torch.bfloat16), checkpoint.read(key)) == ("q_proj" not in key)


def test_a_tensor_without_a_place(source: Path, tmp_path: Path) -> None:
    contents = {"model.layers.0.extra.weight": Content((4,), torch.float32, KEEP)}
    with pytest.raises(PlanError, match=r"model\.layers\.0\.extra\.weight has no place"):
        gguf.writer(tmp_path, contents, {})
    with pytest.raises(PlanError, match="float64"):
        gguf.writer(tmp_path, {"model.norm.weight": Content((4,), torch.float64, KEEP)}, {})
    with pytest.raises(PlanError, match=r"\[2, 2, 2\]"):
        gguf.writer(tmp_path, {"lm_head.weight": Content((2, 2, 2), torch.float32, KEEP)}, {})


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_killed_run_goes_on_to_the_same_bytes(
    source: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    add, done = GgufWriter.add, []

    def failing(self: GgufWriter, file: str, *args: Any) -> Any:
        if len(done) == after:
            with (self._folder / FILE).open("r+b") as raw:
                raw.write(b"half a header")
            raise KeyboardInterrupt
        done.append(file)
        return add(self, file, *args)

    with monkeypatch.context() as patch:
        patch.setattr(GgufWriter, "add", failing)
        with pytest.raises(KeyboardInterrupt):
            api.quantize(source, MIXED, tmp_path / "out")
    again: list[str] = []
    monkeypatch.setattr(GgufWriter, "add", lambda self, file, *args: (again.append(file), add(self, file, *args))[1])
    api.quantize(source, MIXED, tmp_path / "out", resume=True)
    assert len(again) == 3 - after
    assert (tmp_path / "out" / FILE).read_bytes() == (written / FILE).read_bytes()


def test_calibration_sees_what_llama_cpp_computes_with(source: Path) -> None:
    """At 8 bits, where products of a code and a scale are longer than float16."""
    down = "model.layers.1.mlp.down_proj"
    row = next(row for row in api.plan(source, MIXED).quantized if row.name == down)
    quantized = quantize_layer(row, Checkpoint.open(source).read(f"{down}.weight"), None, torch.bfloat16).quantized
    scales = quantized.scales.float().repeat_interleave(32, dim=1)
    assert torch.equal(dense_weight(row, quantized), quantized.codes * scales)


def test_a_calibrated_run_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished blocks are read back from the file."""
    demo = Path(__file__).parents[3] / "examples" / "demo_model"
    asked = recipe(
        ("attention", "int4-g32"),
        rounding={"method": "gptq"},
        calibration={"dataset": "builtin:mixed", "samples": 4, "length": 32},
    )
    api.quantize(demo, asked, tmp_path / "whole")
    add = GgufWriter.add

    def failing(self: GgufWriter, file: str, *args: Any) -> Any:
        if file.startswith("model-00004"):
            raise KeyboardInterrupt
        return add(self, file, *args)

    with monkeypatch.context() as patch:
        patch.setattr(GgufWriter, "add", failing)
        with pytest.raises(KeyboardInterrupt):
            api.quantize(demo, asked, tmp_path / "out")
    api.quantize(demo, asked, tmp_path / "out", resume=True)
    assert (tmp_path / "out" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


def test_a_changed_byte_is_found_before_the_folder_has_its_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = GgufWriter.add
    for name, words in ((f"{UP}.weight", "does not decode"), (f"{QUERY}.bias", "differs from the source")):

        def damaging(self: GgufWriter, file: str, *args: Any, name: str = name) -> Any:
            done = add(self, file, *args)
            (stored,) = gguf.names(name, INT4)
            if stored in done[1]:
                place = self.written(file).tensors[stored].begin + 5
                with (self._folder / FILE).open("r+b") as raw:
                    raw.seek(place)
                    byte = raw.read(1)[0] ^ 1
                    raw.seek(place)
                    raw.write(bytes([byte]))
            return done

        monkeypatch.setattr(GgufWriter, "add", damaging)
        with pytest.raises(OutputError, match=words):
            api.quantize(source, MIXED, tmp_path / "out", overwrite=True)
        assert not (tmp_path / "out").exists()


def test_verify_finds_a_changed_byte_later(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.quantize(source, MIXED, out)
    found = verify_folder(out)
    assert (found.tensors, found.digests, found.note) == (len(Checkpoint.open(source).tensors),) * 2 + ("",)
    raw = bytearray((out / FILE).read_bytes())
    raw[GgufFile.open(out).tensors["blk.1.ffn_up.weight"].begin + 7] ^= 16
    (out / FILE).write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight: its bytes"):
        verify_folder(out)
    (out / FILE).write_bytes(raw[:-400])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        verify_folder(out)


def test_verify_finds_changed_metadata(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.quantize(source, MIXED, out)
    raw = (out / FILE).read_bytes()
    for key, was, changed in (("llama.rope.freq_base", "10000.0", b"\0\0\0@"), ("llama.block_count", "2", b"\1\0\0\0")):
        place = raw.index(key.encode()) + len(key) + 4
        (out / FILE).write_bytes(raw[:place] + changed + raw[place + 4 :])
        with pytest.raises(CheckpointError, match=rf"metadata {key}: is .*, was written as {was}"):
            verify_folder(out)
    renamed = raw.replace(b"llama.block_count", b"llama.clock_bount")
    (out / FILE).write_bytes(renamed)
    with pytest.raises(
        CheckpointError, match=r"llama\.block_count: is missing, was written as 2\n.*is 2, .* as missing"
    ):
        verify_folder(out)
    (out / FILE).write_bytes(raw)
    assert not verify_folder(out).note
    content = json.loads((out / "llmquant.json").read_text())
    del content["metadata"]  # as earlier versions wrote
    (out / "llmquant.json").write_text(json.dumps(content))
    assert "which metadata was written, so it was not checked" in verify_folder(out).note


def test_what_goes_with_it(source: Path, written: Path) -> None:
    assert {file.name for file in written.iterdir()} == {FILE, "config.json", "generation_config.json", "llmquant.json"}
    assert "quantization_config" not in json.loads((written / "config.json").read_text())
    metadata = GgufFile.open(written).metadata
    assert (metadata["general.file_type"], metadata["general.quantization_version"]) == (2, 2)
    with pytest.raises(CheckpointError, match="is a GGUF file"):
        Checkpoint.open(written)


def test_files_of_others(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(make_header({"a": 1}, [])[0])
    with pytest.raises(CheckpointError, match=r"does not say llama\.attention\.head_count"):
        find("gguf").open(tmp_path)


def as_meant(source: Path, written: Path) -> dict[str, torch.Tensor]:
    """The weights of the result by the keys of the source, decoded by our reference."""
    schemes = {row.matrix.key: row.scheme for row in api.plan(source, MIXED).quantized}
    stored, dense = GgufFile.open(written), {}
    for key in Checkpoint.open(source).tensors:
        (name,) = gguf.names(key, schemes.get(key, KEEP))
        tensor = stored.read(name)
        if key in schemes:
            meant = stored.decode_reference(key.removesuffix(".weight"), {name: tensor}, schemes[key])
            dense[key] = meant.dequantize(torch.float32)
        else:
            dense[key] = stored.restore(key, tensor).float()
    return dense


def test_llama_cpps_own_library_reads_what_was_meant(source: Path, written: Path) -> None:
    theirs = pytest.importorskip("gguf", reason="llama.cpp's gguf is not installed")
    reader = theirs.GGUFReader(written / FILE)
    assert reader.fields["general.architecture"].contents() == "llama"
    dense = as_meant(source, written)
    heads = {"attn_q": 4, "attn_k": 2}
    names = {gguf.names(key, KEEP)[0]: key for key in dense}
    assert {tensor.name for tensor in reader.tensors} == set(names)
    for tensor in reader.tensors:
        found = torch.from_numpy(theirs.dequantize(tensor.data, tensor.tensor_type).copy())
        meant = dense[names[tensor.name]]
        if (count := heads.get(tensor.name.split(".")[-2])) is not None:
            meant = meant.reshape(count, 2, -1, *meant.shape[1:]).swapaxes(1, 2).reshape(meant.shape)
        assert torch.equal(found.reshape(meant.shape), meant), tensor.name


def test_transformers_computes_with_what_was_meant(tmp_path: Path) -> None:
    """Its loader turns the rows back, so equal logits say that they are where llama.cpp wants them."""
    pytest.importorskip("gguf", reason="llama.cpp's gguf is not installed")
    source, out = tmp_path / "model", tmp_path / "out"
    torch.manual_seed(3)
    save(source, LlamaForCausalLM(LlamaConfig(**BIGGER)))
    api.quantize(source, MIXED, out)
    meant = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    meant.load_state_dict(as_meant(source, out), strict=True)
    theirs = AutoModelForCausalLM.from_pretrained(out, gguf_file=FILE, dtype=torch.float32)
    ids = torch.randint(32, (1, 20))
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, meant(ids).logits)
