"""From folders to reports: candidates and their baseline are opened, loaded as far as memory goes, and measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from llmquant.compat.loading import no_progress_bar
from llmquant.data.calibration import check_vocabulary, context_limit
from llmquant.data.protocols import departures, windows_of
from llmquant.device import resolve_device
from llmquant.engine.output.folder import identity, is_finished, read_provenance
from llmquant.engine.prepare import load_tokenizer
from llmquant.errors import DataError, OutputError
from llmquant.eval import EvalOptions, EvalReport, Subject, Windows, evaluate
from llmquant.eval.evaluate import hold
from llmquant.eval.metrics import find
from llmquant.eval.metrics.memory import checkpoint_size
from llmquant.eval.pair import Facts, pairs
from llmquant.eval.precision import loading_for
from llmquant.eval.result import SCHEMA_VERSION
from llmquant.eval.store import Store, digest_of_data, fingerprint, write_whole
from llmquant.machine import versions
from llmquant.memory import free_bytes
from llmquant.models.skeleton import load_config
from llmquant.notebook import default_progress
from llmquant.progress import Progress
from llmquant.recipe.load import dump_recipe
from llmquant.words import listed

_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_SPARE = 0.7  # share of the free memory that models may take; the rest is for activations and logits


def compare(
    models: Sequence[str | Path],
    baseline: str | Path | None,
    options: EvalOptions,
    progress: Progress | None = None,
    out: Path | None = None,
) -> Iterator[tuple[int, EvalReport]]:
    """Measure each model against the baseline, or alone; a report comes, with its model's number, when it is done.

    Where there is a folder `out`, finished parts are kept there, and those of an earlier run are not measured again:
    they come first, as they are, speed included.

    Raises:
        LlmquantError: CheckpointError, DataError, DeviceError or RecipeError; what can be refused is refused before a
            model is loaded.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give a folder for the reports")
    progress, device = progress or default_progress(), resolve_device(options.device)
    waiting = facts_of(models, baseline, options)
    for note in departures(waiting[0].windows.protocol):
        progress.note(f"{options.protocol}: {note}")
    for known in waiting:
        if different := _other_shapes(known.subject, trust=options.trust_remote_code):
            progress.note(f"{known.subject.name} is another model than the baseline: its config has {different}")
    places = {known.subject.name: place for place, known in enumerate(waiting)}
    if out is not None:
        waiting = [replace(known, store=_store(known, out, device, progress)) for known in waiting]
        done = [(known, report) for known in waiting if (report := _finished(known))]
        yield from ((places[report.name], report) for _, report in done)
        waiting = [known for known in waiting if all(known is not finished for finished, _ in done)]
    before: Any = None
    while waiting:
        group, waiting = _that_fit(waiting, device, loaded=before is not None)
        if waiting and not group[0].alone:
            progress.note(
                f"memory holds {len(group)} of {len(group) + len(waiting)} candidates beside the baseline; it runs "
                "over the text once more for the others"
            )
        new = [_folder(known.subject.folder) for known in group]
        if before is None and not group[0].alone:
            new.insert(0, _folder(group[0].subject.baseline_folder))
        loaded = load_models(new, options, device, progress)
        before = loaded.pop(0) if len(loaded) > len(group) else before
        reference = loaded[0] if group[0].alone else before
        check_vocabulary(group[0].windows.ids, reference)
        comparison = pairs(group, reference, loaded, progress)
        for pair in comparison:
            report = evaluate(pair)
            if pair.store:
                pair.store.put("report", report.to_json().encode())
            yield places[report.name], report
        del loaded, comparison, reference  # before the next group is loaded


def _store(known: Facts, out: Path, device: torch.device, progress: Progress) -> Store:
    """All that decides the numbers. A budget does not: it is judged anew (see `_finished`)."""
    subject, tasks = known.subject, known.options.of(find("tasks"))
    folders = [folder for folder in (subject.baseline_folder, subject.folder) if folder]
    made = [{**(each or {}), "recipe": None} for each in (subject.baseline_made, subject.made)]
    identity = {
        "schema": SCHEMA_VERSION, "name": subject.name, "models": list(map(fingerprint, folders)), "made": made,
        "baseline": subject.baseline_name, "windows": known.windows.protocol.data_hash, "device": str(device),
        "options": asdict(replace(known.options, budget={})), "versions": versions(),
        "data": [digest_of_data(Path(path)) for path in (*tasks.files.values(), *tasks.include)],
    }  # fmt: skip
    return Store(out / "parts", identity, progress)


def _finished(known: Facts) -> EvalReport | None:
    """The report of an earlier run, with the recipe and under the budget of now."""
    data = known.store.get("report") if known.store else None
    if data is None:
        return None
    report, subject = EvalReport.from_json(data.decode()), known.subject
    budget = hold(known.limits, report.sections)
    return replace(report, budget=budget, recipe_yaml=subject.recipe_yaml, checkpoint=subject.checkpoint)


def load_models(folders: Sequence[Path], options: EvalOptions, device: torch.device, progress: Progress) -> list[Any]:
    """The models of folders, in the dtype and on the kernels of the options."""
    from llmquant.hf.load import load

    dtype = "auto" if options.dtype == "checkpoint" else options.dtype
    where = None if device.type == "cpu" else {"": str(device)}
    models = []
    with no_progress_bar(), loading_for(options.kernel):
        progress.stage("load", len(folders), unit="models")
        for folder in folders:
            models.append(load(folder, dtype=dtype, device_map=where, trust_remote_code=options.trust_remote_code))
            progress.step()
    return models


def _that_fit(waiting: list[Facts], device: torch.device, *, loaded: bool) -> tuple[list[Facts], list[Facts]]:
    """The first candidates, at least one, that fit into memory at once, and the rest.

    A model takes its tensors and, in float32, as much again as the baseline's at most. `loaded` says whether the
    baseline is in memory already. Models without a baseline have nothing to share and run one by one.
    """
    if waiting[0].alone:
        return waiting[:1], waiting[1:]
    free, common = free_bytes(device), checkpoint_size(_folder(waiting[0].subject.baseline_folder))[1]
    if free is None:
        return waiting, []
    needed, count = (1 if loaded else 2) * common, 0
    for known in waiting:
        needed += checkpoint_size(_folder(known.subject.folder))[1] + common
        if count and needed > _SPARE * free:
            break
        count += 1
    return waiting[:count], waiting[count:]


def _folder(folder: Path | None) -> Path:
    assert folder is not None  # `facts_of` opened it
    return folder


def facts_of(models: Sequence[str | Path], baseline: str | Path | None, options: EvalOptions) -> list[Facts]:
    """Refuse whatever can be refused without the models."""
    from llmquant.hf.load import open_model

    if not models:
        raise DataError("no model to evaluate; give one at least")
    trust = options.trust_remote_code
    before = None if baseline is None else open_model(baseline, trust_remote_code=trust).folder
    after = [open_model(source, trust_remote_code=trust).folder for source in models]
    name = None if baseline is None else Path(baseline).name
    subjects = _distinct([_subject(folder, before, name) for folder in after], models)
    texts = [text_of(folder, options) for folder in ([before] if before else after)]
    if len({windows.protocol.data_hash for windows, _ in texts}) > 1:
        raise DataError(
            "the models' tokenizers make other tokens of this text, so their perplexities cannot be compared; evaluate "
            "one at a time"
        )
    windows, tokenizer = texts[0]
    found = [Facts(subject=each, windows=windows, tokenizer=tokenizer, options=options) for each in subjects]
    for facts in found:
        facts.check()
    return found


def _other_shapes(subject: Subject, *, trust: bool) -> str:
    """How the shape of a candidate differs from its baseline's, in words; "" where it does not."""
    if subject.baseline_folder is None:
        return ""
    ours, theirs = (
        load_config(_folder(each), trust_remote_code=trust).get_text_config()
        for each in (subject.folder, subject.baseline_folder)
    )
    found = [(name, getattr(ours, name, None), getattr(theirs, name, None)) for name in _SHAPE]
    return listed(f"{name} {one} in place of {other}" for name, one, other in found if one != other)


def text_of(folder: Path, options: EvalOptions) -> tuple[Windows, Any]:
    """The windows by the tokenizer of a model, and the tokenizer."""
    trust = options.trust_remote_code
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    windows = windows_of(
        options.protocol, options.text, tokenizer, length=options.length, stride=options.stride,
        max_windows=options.max_windows, context=context_limit(load_config(folder, trust_remote_code=trust)),
        bos=options.bos,
    )  # fmt: skip
    return windows, tokenizer


def _subject(folder: Path, baseline: Path | None, baseline_name: str | None) -> Subject:
    """What is known of a candidate; it has no name if another tool made it."""
    subject = Subject(name="", baseline_name=baseline_name, folder=folder, baseline_folder=baseline)
    if not is_finished(folder):
        return subject
    made = read_provenance(folder)
    recipe = made["recipe"]  # maybe somebody else's, with methods that are not here
    return replace(
        subject,
        name=recipe["name"],
        limits=recipe.get("budget") or {},
        made=made,
        baseline_made=read_provenance(baseline) if baseline and is_finished(baseline) else None,
        recipe_yaml=dump_recipe(recipe),
        checkpoint=identity(made),
    )


def _distinct(subjects: Sequence[Subject], models: Sequence[str | Path]) -> list[Subject]:
    """The subjects with names of their own: that of the recipe, else of the folder, else what the user called it.

    Raises:
        DataError: if a model is given twice.
    """
    names = [subject.name or _last(model) for subject, model in zip(subjects, models, strict=True)]
    for again in (_last, str):
        often = Counter(names)
        names = [again(model) if often[name] > 1 else name for name, model in zip(names, models, strict=True)]
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise DataError(f"{twice!r} is given twice; each candidate can be compared once")
    return [replace(subject, name=name) for subject, name in zip(subjects, names, strict=True)]


def _last(model: str | Path) -> str:
    return Path(model).name


def file_names(names: Sequence[str]) -> list[str]:
    """A file's name, without its ending, for each candidate; distinct also where case does not count."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.-]+", "_", name).strip("_.") or "model"
        taken = {each.casefold() for each in found}
        choices = (plain, *(f"{plain}-{number}" for number in range(2, len(names) + 2)))
        found.append(next(each for each in choices if each.casefold() not in taken))
    return found


def write_reports(folder: Path, reports: Sequence[EvalReport]) -> None:
    """Write NAME.json for each report and report.html for all.

    Raises:
        OutputError: if they cannot be written.
    """
    from llmquant.eval.report import render_page

    for name, report in zip(file_names([report.name for report in reports]), reports, strict=True):
        write_whole(folder / f"{name}.json", report.to_json().encode())
    write_whole(folder / "report.html", render_page(reports).encode())
