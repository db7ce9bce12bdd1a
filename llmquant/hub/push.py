"""`llmquant push`: a verified result to the hub, its weights first, what makes it a model in one last commit.

So nobody who opens the repository in the meantime finds a config.json without its weights, and a push that was cut off
goes on where it was: the hub knows the files that it has by their digests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant import formats
from llmquant.compat.border import first_line
from llmquant.engine.output.check_folder import verify_folder
from llmquant.engine.output.folder import PROVENANCE, identity, is_finished, read_provenance
from llmquant.errors import CheckpointError, DataError, OutputError
from llmquant.files import read_plain
from llmquant.hub.access import check_foreign, check_repo, explained, files_there, network_errors
from llmquant.hub.card import Base, OwnCard, make_card
from llmquant.hub.charts import NAME as CHART
from llmquant.hub.charts import Picture, picture
from llmquant.hub.files import CARD, WEIGHTS, Upload, collect, published
from llmquant.words import listed

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelCard

    from llmquant.eval.result import EvalReport


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was, or with `dry_run` would be, published."""

    url: str  # of the repository or commit; empty for a dry run
    upload: Upload
    removed: tuple[str, ...]  # older weights of the repository that the new ones replace
    card: str  # README.md
    notes: tuple[str, ...]  # what the user should know, such as a licence that could not be found


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    reports: Sequence[EvalReport] = (),
    base_model: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    include: Sequence[str] = (),
    overwrite: bool = False,
    dry_run: bool = False,
    token: str | None = None,
) -> Pushed:
    """Publish a result of `quantize` with a card that has measured numbers.

    Args:
        folder: a finished result; everything in it is read and compared with its digests first.
        repo: "USER/NAME"; it is made if it is not there.
        reports: evaluations of this result; those of others on the same text appear beside it in the chart.
        base_model: hub id of the model it was made from, if it was made from a local folder.
        private: make the repository private; one that exists stays what it is.
        revision: branch that must exist; the default is "main".
        message: of the last commit.
        include: patterns of files that shall go although the run did not write them.
        overwrite: put the result into a repository that holds something else.
        dry_run: change nothing on the hub.
        token: in place of the one that `hf auth login` stored.

    Raises:
        CheckpointError: if the folder is no finished result, or not what was written.
        DataError: if no report is of this result.
        OutputError: if files must not be published, or the hub refuses them or cannot be reached.
    """
    import huggingface_hub

    path = Path(folder).expanduser()
    check_repo(repo)
    if not is_finished(path):
        raise CheckpointError(
            f"{path} is no finished result of llmquant; `hf upload {repo} {path}` publishes any folder"
        )
    made = read_provenance(path)
    own = [report for report in _different(reports) if report.checkpoint == identity(made)]
    if reports and not own:
        named = listed(dict.fromkeys(repr(report.name) for report in reports))
        raise DataError(f"the reports {named} are not of the weights in {path}; evaluate this folder")
    verify_folder(path)
    found = formats.find(made["recipe"].get("format", formats.DEFAULT)).open(path)
    upload = collect(path, made, sorted({info.file.name for info in found.tensors.values()}), include=include)
    chart = picture(own, _different(reports))
    api = huggingface_hub.HfApi(token=token, library_name="llmquant")
    there, away = [], ""
    try:
        with explained(repo):
            there = files_there(api, repo, revision)
    except OutputError as error:
        if not dry_run:
            raise
        away = f"the hub could not be asked what it holds: {first_line(error)}"
    card, told, notes = _describe(path, repo, made, own, chart, base_model, token, cached=bool(away))
    notes = (*notes, away) if away else notes
    contents = {CARD: str(card).encode(), PROVENANCE: (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode()}
    contents |= {CHART: chart.data} if chart else {}
    removed = _older_weights(there, repo, upload, overwrite=overwrite)
    if dry_run:
        return Pushed("", upload, removed, str(card), notes)
    with explained(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        url = _upload(api, repo, path, upload, contents, removed, revision, message)
    return Pushed(url, upload, removed, str(card), notes)


def _describe(
    path: Path,
    repo: str,
    made: Mapping[str, Any],
    reports: Sequence[EvalReport],
    chart: Picture | None,
    base_model: str | None,
    token: str | None,
    *,
    cached: bool,
) -> tuple[ModelCard, dict[str, Any], tuple[str, ...]]:
    """The card, what llmquant.json says to others, and notes."""
    own = None
    if (path / CARD).is_file():
        try:
            own = OwnCard.parse(read_plain(path / CARD, OutputError).decode("utf-8"))
        except ValueError as error:
            raise OutputError(f"{path / CARD}: {error}; correct it, or move it away") from None
    try:
        base, notes = _base(str(made["source"]), base_model, token, cached=cached)
        told = published(made, base.name)
        card = make_card(
            repo, told, base, reports, told["plan"].get("readers", {"llmquant": True}), own=own, chart=chart
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path / PROVENANCE} lacks what the card is made of ({error!r}); quantize again, or fetch the folder again"
        ) from error
    if "license" not in {**base.card, **(own.data if own else {})}:
        notes.append(f"no licence was found in the card of the base model; write it into {CARD} of the folder")
    if not reports:
        notes.append("no evaluation was given (--report), so the card has no measured numbers")
    return card, told, tuple(notes)


def _different(reports: Sequence[EvalReport]) -> list[EvalReport]:
    return [report for place, report in enumerate(reports) if report not in reports[:place]]


def _base(source: str, given: str | None, token: str | None, *, cached: bool) -> tuple[Base, list[str]]:
    """The model that was quantized, with what its own card (a `cached` one only?) says; and what could not be found."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    folder, notes = Path(source), []
    on_hub = given is not None or not (folder.is_absolute() or source.startswith("("))  # a model without a source
    name = given or (source if on_hub else folder.name)
    if not on_hub:
        notes.append("the base model is a local folder; --base-model ORG/NAME lets the hub link to it")
    try:
        file = folder / CARD if (folder / CARD).is_file() else None
        if on_hub and not file:
            file = hf_hub_download(name, CARD, token=token, local_files_only=cached)
        card = OwnCard.parse(Path(file).read_bytes().decode("utf-8", errors="replace")).data if file else {}
    except (*network_errors(), ValueError, HFValidationError, OfflineModeIsEnabled) as error:
        notes.append(f"the card of {name} could not be read ({first_line(error)})")
        card = {}
    return Base(name, on_hub, card), notes


def _older_weights(there: Sequence[str], repo: str, upload: Upload, *, overwrite: bool) -> tuple[str, ...]:
    """Of what the repository holds, the weights that would be left over; refuses what somebody else put there."""
    if not overwrite:
        check_foreign(there, repo, "--overwrite")
    new = {*upload.weights, *upload.others}
    return tuple(
        name for name in there if name not in new and "/" not in name and name.endswith((*WEIGHTS, ".index.json"))
    )


def _upload(
    api: HfApi, repo: str, folder: Path, upload: Upload, contents: Mapping[str, bytes], removed: Sequence[str],
    revision: str | None, message: str | None,
) -> str:  # fmt: skip
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api.upload_folder(
        repo_id=repo, folder_path=folder, allow_patterns=list(upload.weights), revision=revision,
        commit_message="Weights quantized by llmquant",
    )  # fmt: skip
    files: dict[str, Any] = {name: str(folder / name) for name in upload.others} | dict(contents)
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in sorted(files.items())]
    gone = [CommitOperationDelete(path_in_repo=name) for name in removed]
    title = message or "Model quantized by llmquant"
    return str(api.create_commit(repo, [*added, *gone], commit_message=title, revision=revision).commit_url)
