"""`verify_folder` and `llmquant verify`: a changed byte anywhere is found, and what cannot be checked is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmquant.api import quantize
from llmquant.cli.main import main
from llmquant.engine.output.check_folder import verify_folder
from llmquant.engine.output.folder import PROVENANCE
from llmquant.errors import CheckpointError
from llmquant.hf.load import load

RTN = {"version": 1, "name": "test", "rules": [{"match": "linear", "scheme": "int4-g32"}]}
UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.gate_proj"


@pytest.fixture
def written(checkpoint: Path, tmp_path: Path) -> Path:
    quantize(checkpoint, RTN, tmp_path / "out")
    return tmp_path / "out"


def change(folder: Path, name: str, edit: Callable[[dict[str, Tensor]], None]) -> None:
    file = next(file for file in folder.glob("*.safetensors") if name in load_file(file))
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})


def swap(tensors: dict[str, Tensor]) -> None:
    for part in ("weight_packed", "weight_scale"):
        one, other = f"{UP}.{part}", f"{DOWN}.{part}"
        tensors[one], tensors[other] = tensors[other], tensors[one]


def nan(tensors: dict[str, Tensor]) -> None:
    tensors[f"{UP}.weight_scale"][0, 0] = torch.nan


def reshape(tensors: dict[str, Tensor]) -> None:
    tensors[f"{UP}.weight_scale"] = tensors[f"{UP}.weight_scale"].reshape(2, -1).contiguous()


def recast(tensors: dict[str, Tensor]) -> None:
    tensors[f"{UP}.weight_packed"] = tensors[f"{UP}.weight_packed"].view(torch.float32)


def norm(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.1.input_layernorm.weight"].view(torch.uint8)[-1] ^= 1


def test_whole(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = verify_folder(written)
    assert found.tensors == found.digests > 10
    assert not found.note
    assert found.files == len([path for path in written.iterdir() if path.suffix == ".json"]) - 2  # index, provenance
    assert main(["verify", str(written)]) == 0
    assert (
        f"{found.tensors} tensors read, {found.tensors} as they were written, and {found.files} files"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (swap, f"{UP}.weight_packed"),
        (nan, f"{UP}.weight_scale"),
        (reshape, f"{UP}.weight_scale"),
        (recast, f"{UP}.weight_packed"),
        (norm, "model.layers.1.input_layernorm.weight"),
    ],
)
def test_changed(written: Path, edit: Callable, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    change(written, f"{UP}.weight_scale", edit)
    with pytest.raises(CheckpointError, match=f"{named}: its bytes, dtype or shape differ"):
        verify_folder(written)
    assert main(["verify", str(written)]) == 1
    assert "is not what was written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_changed_files(written: Path, name: str) -> None:
    before = (written / name).read_bytes()
    (written / name).write_bytes(before.replace(b"true", b"null") + b" ")
    with pytest.raises(CheckpointError, match=f"{name}: differs from the file that was written"):
        verify_folder(written)
    with pytest.raises(CheckpointError, match=f"{name}: differs"):
        load(written, verify=True)
    (written / name).write_bytes(before)
    assert not verify_folder(written).note
    (written / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is missing"):
        verify_folder(written)


def test_names_of_files_do_not_lead_out_of_the_folder(written: Path) -> None:
    content = json.loads((written / PROVENANCE).read_text())
    (written.parent / "other.txt").write_text("")
    content["files"] = {"../other.txt": "0"}
    (written / PROVENANCE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"\.\./other\.txt: is missing"):
        verify_folder(written)


def test_names_and_a_long_list(written: Path) -> None:
    content = json.loads((written / PROVENANCE).read_text())
    hashes = content["tensors"]
    hashes["model.gone.weight"] = hashes.pop("model.norm.weight")
    (written / PROVENANCE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        verify_folder(written)
    assert str(caught.value).splitlines()[1:] == [
        "  model.gone.weight: is missing",
        "  model.norm.weight: was not written by this run",
    ]
    content["tensors"] = dict.fromkeys(hashes, "0")
    (written / PROVENANCE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        verify_folder(written)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 11
    assert lines[-1] == f"  and {len(hashes) + 1 - 10} more"


@pytest.mark.parametrize(("edit", "said"), [(swap, "up_proj: does not decode"), (nan, "holds NaN"), (norm, None)])
def test_folders_of_older_versions_have_digests_of_layers_only(written: Path, edit: Callable, said: str | None) -> None:
    content = json.loads((written / PROVENANCE).read_text())
    del content["tensors"]
    (written / PROVENANCE).write_text(json.dumps(content))
    assert verify_folder(written).digests == 3 * len(content["layers"])
    change(written, f"{UP}.weight_scale", edit)
    if said is None:
        assert "kept none for them" in verify_folder(written).note
        return
    with pytest.raises(CheckpointError, match=said):
        verify_folder(written)


def test_without_provenance(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "bare")
    (tmp_path / "bare" / PROVENANCE).unlink()
    found = verify_folder(tmp_path / "bare")
    assert found.digests == 0
    assert "is missing" in found.note
    change(tmp_path / "bare", f"{UP}.weight_scale", nan)
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        verify_folder(tmp_path / "bare")
