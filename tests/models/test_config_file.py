"""One reading of config.json; keys that lead elsewhere, and links that do."""

import json
from pathlib import Path

import pytest

from llmquant.errors import CheckpointError
from llmquant.models.config_file import ConfigFile, leads_outside


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"transformers_weights": "../other.safetensors"},
            "transformers_weights is '../other.safetensors', which makes",
        ),
        ({"transformers_weights": "adapter_model.bin"}, "other weights"),
        ({"text_config": {"transformers_weights": "x.safetensors"}}, r"text_config\.transformers_weights"),
        ({"configuration_files": ["config.4.0.0.json"]}, "another configuration"),
        ({"attn_implementation": "org/kernel"}, "code of the hub"),
        ({"vision_config": {"_attn_implementation": {"": "org/kernel@main"}}}, "code of the hub"),
        ({"experts_implementation": "org/kernel"}, "code of the hub"),
    ],
)
def test_keys_that_lead_elsewhere_are_refused(tmp_path: Path, more: dict, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **more}))
    with pytest.raises(CheckpointError, match=message):
        ConfigFile.read(tmp_path / "config.json")


def test_harmless_keys_pass(tmp_path: Path) -> None:
    data = {"model_type": "llama", "attn_implementation": "eager", "transformers_weights": None, "_name_or_path": "a/b"}
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert ConfigFile.read(tmp_path / "config.json").data == data


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "n_layer", "depth", "num_blocks", "encoder_layers", "vision_depth"]
)
def test_more_layers_than_any_model_has_are_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "text_config": {key: 10_001}}))
    with pytest.raises(CheckpointError, match=rf"text_config\.{key} is more than 10000"):
        ConfigFile.read(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", key: 10_000, "players": 10_001}))
    ConfigFile.read(tmp_path / "config.json")


def test_links(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "123", tmp_path / "models--a--b" / "blobs"
    for folder in (snapshot, blobs, tmp_path / "other"):
        folder.mkdir(parents=True)
    for file in (blobs / "hash", tmp_path / "other" / "secret", snapshot / "own"):
        file.write_text("{}")
    targets = {"cached": "../../blobs/hash", "near": "own", "far": "../../../other/secret", "lost": "../../../nothing"}
    for name, target in targets.items():
        (snapshot / name).symlink_to(target)
    assert [name for name in (*targets, "own") if leads_outside(snapshot / name)] == ["far", "lost"]
    # A folder that only looks like the cache: its blobs are not beside it.
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "cached").symlink_to(blobs / "hash")
    assert leads_outside(plain / "cached")
    beside = tmp_path / "models--a--b" / "other" / "123"
    beside.mkdir(parents=True)
    (beside / "cached").symlink_to("../../blobs/hash")
    assert leads_outside(beside / "cached")
    # The whole folder may be a link.
    (tmp_path / "alias").symlink_to(snapshot)
    assert not leads_outside(tmp_path / "alias" / "cached")
