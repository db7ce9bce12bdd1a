"""`model.push_to_hub` of a packed model: a folder as `llmquant.quantize` writes it, and then `push_to_hub` of that.

transformers' own method sends everything in one commit, under a card that says nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from llmquant.compat.quantizers import made_in_memory
from llmquant.engine.output.folder import PROVENANCE, is_finished, read_provenance
from llmquant.errors import OutputError
from llmquant.hf.in_place import copy_tokenizer
from llmquant.hf.provenance import write_provenance
from llmquant.hub.access import check_access, network_errors
from llmquant.hub.files import CARD
from llmquant.hub.push import push_to_hub
from llmquant.nn.counting import is_packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def push_model(
    model: PreTrainedModel,
    repo: str,
    *,
    commit_message: str | None = None,
    token: str | bool | None = None,
    tags: list[str] | None = None,
    max_shard_size: int | str = "50GB",
    **options: Any,
) -> str | None:
    """Publish a packed model of which it is known how it was made, with its tokenizer where that is beside its source.

    The arguments are those of transformers' method and of `push_to_hub`, such as `private` and `reports`.

    Returns the address of the commit; None of any other model, for which nothing is done.

    Raises:
        LlmquantError: as `push_to_hub`; OutputError also for what takes a single commit.
    """
    made = origin_of(model) if is_packed(model) else None
    if made is None:
        return None
    for unknown in ("create_pr", "commit_description"):
        if options.pop(unknown, None):
            raise OutputError(
                f"a packed model is pushed in two commits, weights first, which leaves no way for {unknown}"
            )
    key = token if isinstance(token, str) else None
    check_access(repo, token=key, overwrite=options.get("overwrite", False))
    with TemporaryDirectory(prefix="llmquant-push-") as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if not copy_tokenizer(model, folder):
            log.warning("%s gets no tokenizer; tokenizer.push_to_hub(%r) adds one", repo, repo)
        write_provenance(model, made, folder)
        if tags:
            (folder / CARD).write_text(
                "---\ntags:\n" + "".join(f"- {tag}\n" for tag in tags) + "---\n", encoding="utf-8"
            )
        pushed = push_to_hub(folder, repo, message=commit_message, token=key, **options)
    for note in pushed.notes:
        log.warning("%s: %s", repo, note)
    return pushed.url


def origin_of(model: PreTrainedModel) -> Mapping[str, Any] | None:
    """What llmquant.json says, or would say, of how a packed model was made; None where nobody knows.

    That is kept by a model that was quantized in memory, or lies where it was loaded from, in a folder or on the hub.
    """
    made = made_in_memory(model)
    if made is not None:
        return made
    name = str(model.name_or_path or "")
    if name and Path(name).is_dir():
        return read_provenance(Path(name)) if is_finished(Path(name)) else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return read_provenance(Path(hf_hub_download(name, PROVENANCE)).parent)
    except (*network_errors(), HFValidationError):
        return None
