"""What a run reads, it reads once, and nothing else than the files of the folder."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmquant.api import plan, quantize
from llmquant.engine.prepare import load_tokenizer, prepare
from llmquant.engine.run import run
from llmquant.errors import CheckpointError, DataError
from llmquant.hf.load import load
from llmquant.recipe.load import load_recipe


@pytest.fixture
def model(checkpoint, tmp_path):
    """A copy of the tiny checkpoint that a test may damage."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def change(folder, **more):
    """Change keys of config.json; None removes."""
    config = json.loads((folder / "config.json").read_text()) | more
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_config_that_is_swapped_in_the_middle_of_a_run_is_not_carried(model, tmp_path):
    prepared = prepare(model, load_recipe("int4-g32"))
    source = prepared.checkpoint.fingerprint()
    change(model, rope_theta=123.0, hidden_act="gelu")
    result = run(prepared, tmp_path / "out")
    written = json.loads((result.folder / "config.json").read_text())
    assert "gelu" not in json.dumps(written)
    assert result.provenance["identity"]["source"] == source
    with pytest.raises(Exception, match="holds the finished result of a different run"):
        quantize(model, "int4-g32", tmp_path / "out", resume=True)


@pytest.mark.parametrize("name", ["../elsewhere/model.safetensors", "pytorch_model.bin", "other.safetensors"])
def test_other_weights_than_the_usual_are_refused_everywhere(model, tmp_path, name):
    change(model, transformers_weights=name)
    for action in (
        lambda: plan(model, "int4-g32"),
        lambda: quantize(model, "int4-g32", tmp_path / "out"),
        lambda: load(model),
    ):
        with pytest.raises(CheckpointError, match="transformers_weights"):
            action()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "notes.txt", "config.json"])
def test_a_link_to_a_file_elsewhere_is_not_copied(model, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_bytes((model / name).read_bytes() if (model / name).exists() else b"secret")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(secret)
    with pytest.raises(CheckpointError, match=f"{name}: links to files elsewhere"):
        quantize(model, "int4-g32", tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_the_links_of_the_hub_cache_are_followed(model, tmp_path):
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    out = quantize(snapshot, "int4-g32", tmp_path / "out").folder
    assert not any(path.is_symlink() for path in out.iterdir())
    assert (out / "tokenizer.json").read_bytes() == (snapshot / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    "name",
    ["model.norm.weight", "model.embed_tokens.weight", "model.layers.1.input_layernorm.weight", "lm_head.weight"],
)
def test_kept_tensors_have_the_shapes_of_the_config(model, tmp_path, name):
    for file in model.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            tensors[name] = torch.cat([tensors[name], tensors[name][:1]])
            save_file(tensors, file, {"format": "pt"})
    for action in (lambda: quantize(model, "int4-g32", tmp_path / "out"), lambda: load(model)):
        with pytest.raises(CheckpointError, match=rf"{name} has shape .* config.json describes"):
            action()
    assert not (tmp_path / "out.partial").exists()


def test_an_adapter_names_the_way_forward(model, tmp_path):
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    for action in (lambda: quantize(model, "int4-g32", tmp_path / "out"), lambda: load(model)):
        with pytest.raises(CheckpointError, match=r"is an adapter .* of 'org/base'.*merge_and_unload"):
            action()


def test_a_folder_of_gguf_names_the_way_forward(tmp_path):
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="GGUF"):
        quantize(tmp_path, "int4-g32", tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"tokenizer_class": 5}', "[" * 100_000, '{"tokenizer_class": "os.system"}']
)
def test_a_damaged_tokenizer_is_an_error_of_ours(model, text):
    (model / "tokenizer_config.json").write_text(text)
    (model / "tokenizer.json").write_text(text)
    with pytest.raises(DataError, match="copy its tokenizer files there"):
        load_tokenizer(model)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"hidden_size": 1_000_000}, "has shape"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is more than"),
        ({"intermediate_size": 2**62}, "cannot build|has shape"),
        ({"head_dim": 10**10}, "a table of more than|has shape"),
        ({"vocab_size": -1}, "cannot"),
        ({"num_attention_heads": 0}, "cannot"),
    ],
)
def test_numbers_that_cannot_be_right_end_before_memory_is_taken(model, more, message):
    change(model, **more)
    with pytest.raises(CheckpointError, match=message):
        load(model)
