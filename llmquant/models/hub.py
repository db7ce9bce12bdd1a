"""A model's folder from what the user typed: a local folder, or a hub id, which is fetched into the cache."""

from __future__ import annotations

import re
import reprlib
from pathlib import Path

from llmquant.compat.border import first_line
from llmquant.errors import CheckpointError
from llmquant.files import check_name, read_json

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# No pickle ever; "consolidated*" repeats all weights of some models under other names; subfolders hold other formats.
FETCHED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
CODE = "*.py"
NOT_FETCHED = ["*/*", "consolidated*"]
_CONFIG = ["config.json"]
ADAPTER, _GGUF = "adapter_config.json", ".gguf"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FILES = (*PICKLES, _GGUF, ".safetensors", ".json")  # no model on the hub has a name that ends so


def locate(source: str | Path, *, revision: str | None = None, code: bool = False, config_only: bool = False) -> Path:
    """Find the folder of a model, fetching safetensors, configuration and tokenizer when `source` is a hub id.

    `code` fetches the Python files of a hub id too, which nothing here runs; `config_only` nothing but config.json and
    them.

    Raises:
        CheckpointError: if it is neither, or the hub cannot give it.
    """
    path = Path(source).expanduser()
    check_name(path)
    if source != "":
        check_kind(path)
    if source != "" and path.is_dir():
        return path
    if path.is_file():
        raise _not_a_folder(path)
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"{str(source)!r}: no such folder, and not a hub id like 'org/model'; check the path")
    if path.suffix.lower() in _FILES:
        raise CheckpointError(
            f"{source}: there is no such file; check the path (and give a model's folder, not a file)"
        )
    wanted = _CONFIG if config_only else FETCHED
    return _fetch(source, revision, [*wanted, CODE] if code else wanted)


def check_kind(path: Path) -> None:
    """Refuse what is no model in Hugging Face's format, but is often taken for one.

    Nothing is said of a path that does not exist.

    Raises:
        CheckpointError: for an adapter, GGUF, or a file of weights, with the way forward.
    """
    if path.is_file() and path.suffix.lower() in (*PICKLES, _GGUF, ".safetensors"):
        raise _not_a_folder(path)
    if not path.is_dir():
        return
    if (path / ADAPTER).is_file() and not any(path.glob("model*.safetensors*")):
        refuse_adapter(path)
    found = sorted(path.glob(f"*{_GGUF}"))
    if found and not any(path.glob("*.safetensors")):
        raise _gguf_refusal(found[0])


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder that holds an adapter, whatever lies beside it.

    Raises:
        CheckpointError: if it does, with the way forward.
    """
    file = folder / ADAPTER
    if not file.is_file():
        return
    base = read_json(file).get("base_model_name_or_path")
    raise CheckpointError(
        f"{folder}: is an adapter ({ADAPTER}) of {reprlib.repr(base)}, not a whole model. Merge the two with the peft "
        "package: AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(new_folder), and "
        f"give the new folder; if this folder holds merged weights already, remove {ADAPTER}"
    )


def _gguf_refusal(file: Path) -> CheckpointError:
    return CheckpointError(
        f"{file}: is a GGUF file, whose weights are usually quantized already; give the folder or hub id of the 16-bit "
        "model that it was made from. If there is only this file: AutoModelForCausalLM."
        f"from_pretrained(folder, gguf_file={file.name!r}).save_pretrained(new_folder) writes one"
    )


def pickle_refusal(where: Path, names: list[str]) -> CheckpointError:
    """The error for a checkpoint that has only pickle files, with the reason and the safe way."""
    return CheckpointError(
        f"{where}: its weights are pickle files ({', '.join(names[:3])}), and loading a pickle can run any code, so "
        "llmquant never does. Convert it on a machine you trust: "
        "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) writes safetensors, then use that"
    )


def _not_a_folder(path: Path) -> CheckpointError:
    if path.suffix in PICKLES:
        return pickle_refusal(path.parent, [path.name])
    if path.suffix.lower() == _GGUF:
        return _gguf_refusal(path)
    hint = f"give its folder, {path.parent}" if path.suffix == ".safetensors" else "give the folder of a model"
    return CheckpointError(f"{path}: is a file, not a folder with config.json and safetensors; {hint}")


def _fetch(repository: str, revision: str | None, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns=NOT_FETCHED)
        )
    except GatedRepoError as error:
        advice = "it is gated: accept its terms on the hub and log in with `hf auth login`"
        raise CheckpointError(f"{repository}: {advice}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        advice = "neither a folder here nor a model on the hub; check the spelling, and log in if it is private"
        raise CheckpointError(f"{repository}: {advice}") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repository}: the hub has no revision {revision!r} of it") from error
    except (OSError, ValueError) as error:
        # Everything huggingface_hub raises for a network, a disk or a cache is one of these two.
        advice = "not a folder here, and the hub could not give it; check the path or the connection, then try again"
        raise CheckpointError(f"{repository}: {advice} ({first_line(error)})") from error
