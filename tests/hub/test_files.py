"""What is published and what never is."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmquant.engine.output.folder import read_provenance
from llmquant.errors import OutputError
from llmquant.hub.files import Upload, collect, published


def files_of(folder: Path, **options: list[str]) -> Upload:
    return collect(folder, read_provenance(folder), [path.name for path in folder.glob("*.safetensors")], **options)


def test_what_the_run_wrote_goes_with_card_and_licence(out: Path) -> None:
    written = {path.name for path in out.iterdir()}
    (out / "README.md").write_text("# Mine")
    (out / "LICENSE.txt").write_text("free")
    (out / ".git").mkdir()
    (out / ".git" / "config").write_text("[core]")
    found = files_of(out)
    assert {*found.weights, *found.others} == written | {"README.md", "LICENSE.txt"}
    assert all(name.endswith(".safetensors") for name in found.weights)


@pytest.mark.parametrize("name", [".env", "train.csv", "model.bin", "notes/plan.txt", "id_rsa"])
def test_strays_are_named_and_refused_unless_they_are_asked_for(out: Path, name: str) -> None:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("x")
    with pytest.raises(OutputError, match=f"{name}: was not written by the run"):
        files_of(out)
    assert name in files_of(out, include=["*" if "/" not in name else "notes/*"]).others


@pytest.mark.parametrize(
    "secret",
    ["hf_" + "aB3" * 12, "ghp_" + "a1" * 18, "AKIA" + "Z" * 16, "-----BEGIN RSA PRIVATE KEY-----"],
)
def test_secrets_are_found_in_whatever_goes_and_not_repeated(out: Path, secret: str) -> None:
    (out / "README.md").write_text(f"token: {secret} end")
    with pytest.raises(OutputError, match=r"README.md: holds what looks like") as caught:
        files_of(out)
    assert secret not in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("{}")
    (out / "generation_config.json").unlink(missing_ok=True)
    (out / "generation_config.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"generation_config.json: is a link that leads out"):
        files_of(out)


@pytest.mark.parametrize("secret", ["_hf_" + "aB3" * 12, "sk-proj-" + "aB3" * 12])
def test_secrets_are_found_behind_other_letters_and_in_utf_16(out: Path, secret: str) -> None:
    (out / "LICENSE").write_bytes(f"token {secret}".encode("utf-16"))
    with pytest.raises(OutputError, match=r"LICENSE: holds what looks like"):
        files_of(out)


def test_a_link_to_itself_and_a_name_that_breaks_lines_are_refused(out: Path) -> None:
    (out / "LICENSE").symlink_to("LICENSE")
    with pytest.raises(OutputError, match=r"LICENSE: is a link"):
        files_of(out)
    (out / "LICENSE").unlink()
    (out / "two\nlines").write_text("x")
    with pytest.raises(OutputError, match="not every system"):
        files_of(out, include=["*"])


def test_paths_become_names_wherever_they_stand_and_words_stay() -> None:
    made = {
        "source": "/home/me/model",
        "recipe": {"calibration": {"dataset": "/home/me/private/text.txt"}},
        "identity": {"recipe": '{"dataset":"/home/me/private/text.txt"}'},
        "plan": {"rows": [{"module": "model.layers"}]},
    }
    told = published(made, "org/base")
    assert "/home/me" not in str(told)
    assert told["source"] == "org/base"
    assert told["recipe"]["calibration"]["dataset"] == "text.txt"
    assert published(made | {"source": "model"}, "org/base")["plan"] == made["plan"]


def test_paths_of_what_a_model_was_trained_on_become_names_and_hub_ids_stay(tmp_path: Path) -> None:
    training = {"text": "/home/me/train.txt", "valid_text": "mine/valid.txt", "teacher": str(tmp_path / "large")}
    made = {"source": "/home/me/model", "recipe": {}, "training": training}
    assert published(made, "org/base")["training"] == {
        "text": "train.txt", "valid_text": "valid.txt", "teacher": "large"
    }  # fmt: skip
    public = {"text": "hub:org/text", "teacher": "org/large"}
    assert published(made | {"training": public}, "org/base")["training"] == public
    assert published(made | {"training": {"text": "a.txt", "teacher": None}}, "org/base")["training"]["text"] == "a.txt"
