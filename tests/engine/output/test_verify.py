"""Verification finds damage wherever it is, and says what kind of tensor it hit."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmquant.api import quantize
from llmquant.engine.output import finalize as finalize_module
from llmquant.errors import OutputError
from llmquant.models.edits import Edit
from llmquant.models.source import Edited
from llmquant.progress import Progress
from tests.engine.conftest import tiny_llama

RTN = {"version": 1, "name": "test", "rules": [{"match": "linear", "scheme": "int4-g32"}]}


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ("model.norm.weight", "differs from the source"),  # copied
        ("model.embed_tokens.weight", "differs from the source"),
        ("model.layers.1.input_layernorm.weight", "differs from the source"),
        ("model.layers.2.mlp.up_proj.weight_packed", "does not decode to what was written"),
        ("model.layers.2.mlp.up_proj.weight_scale", "does not decode to what was written"),
    ],
)
def test_one_flipped_bit_is_found(checkpoint, tmp_path, monkeypatch, tensor, said):
    verify = finalize_module.verify

    def damage_first(folder, *rest):
        file = next(file for file in folder.glob("*.safetensors") if tensor in load_file(file))
        tensors = load_file(file)
        tensors[tensor].view(-1)[:1].view(torch.uint8)[0] ^= 1
        save_file(tensors, file, {"format": "pt"})
        return verify(folder, *rest)

    monkeypatch.setattr(finalize_module, "verify", damage_first)
    with pytest.raises(OutputError, match=f"{tensor.split('.weight_')[0]} {said}"):
        quantize(checkpoint, RTN, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("tensor", "said"), [("foreign.weight", "missing"), ("model.norm.weight", "not ours")])
def test_other_tensors_than_were_written(checkpoint, tmp_path, monkeypatch, tensor, said):
    verify = finalize_module.verify

    def change_first(folder, units, journal, *rest):
        """What the journal says was written, so that the files are whole by themselves."""
        record = next(record for record in journal.shards.values() if "model.norm.weight" in record.tensors)
        if said == "missing":
            record.tensors.append(tensor)
        else:
            record.tensors.remove(tensor)
        return verify(folder, units, journal, *rest)

    monkeypatch.setattr(finalize_module, "verify", change_first)
    with pytest.raises(OutputError, match=f"tensor {tensor} is {said}"):
        quantize(checkpoint, RTN, tmp_path / "out")


def test_copied_nan_is_said(tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        model.get_parameter("model.layers.1.input_layernorm.weight")[3] = float("nan")
        model.get_parameter("model.norm.weight")[5] = float("-inf")  # what masks hold; a number like others
    model.save_pretrained(tmp_path / "model")
    said = Notes()
    quantize(tmp_path / "model", RTN, tmp_path / "out", progress=said)
    assert [note.partition(",")[0] for note in said.notes] == ["model.layers.1.input_layernorm.weight holds NaN"]


class Notes(Progress):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize(("factor", "fails"), [(1.0, False), (2.0, True)])
def test_what_stays_is_compared_with_the_edited_source(checkpoint, tmp_path, monkeypatch, factor, fails):
    """A transform that was fitted but not written is found."""
    verify = finalize_module.verify
    name = "model.layers.1.input_layernorm.weight"

    def edited(folder, units, journal, source, *rest):
        edit = Edit("scale_out", name, torch.full(source.tensors[name].shape, factor, dtype=torch.float64))
        return verify(folder, units, journal, Edited(source, [edit]), *rest)

    monkeypatch.setattr(finalize_module, "verify", edited)
    if not fails:
        quantize(checkpoint, RTN, tmp_path / "out")
        return
    with pytest.raises(OutputError, match=f"{name} differs from the source"):
        quantize(checkpoint, RTN, tmp_path / "out")
