"""`inspect`: the health of a quantized folder by itself, tensor by tensor, without a baseline or a forward pass."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llmquant import formats
from llmquant.debugging.findings import Finding, worst_first
from llmquant.debugging.symptoms import copies, odd_ones, symptoms
from llmquant.debugging.weight_health import WeightHealth, code_health, scale_health
from llmquant.engine.layer import digest
from llmquant.engine.output.folder import PROVENANCE
from llmquant.errors import CheckpointError
from llmquant.files import read_json
from llmquant.formats.base import Format, Written
from llmquant.models.hub import locate
from llmquant.progress import Progress
from llmquant.spec import Scheme

_WRITE_AGAIN = "fetch or write the checkpoint again; `llmquant verify` names every tensor that changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Result of `inspect`; the fields are the keys of the JSON.

    Attributes:
        weights: of all quantized weights, in the order of the files.
        kept: tensors that are stored as they were.
        bytes_quantized: of the quantized weights' tensors; `bytes_kept` of the others.
    """

    name: str
    findings: tuple[Finding, ...]
    weights: tuple[WeightHealth, ...]
    kept: int
    bytes_quantized: int
    bytes_kept: int

    @property
    def damaged(self) -> bool:
        """Whether no reader can compute sense with it."""
        return any(each.severity == "damaged" for each in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {**asdict(self), "damaged": self.damaged}

    def to_json(self) -> str:
        """All numbers."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def inspect(source: str | Path, *, progress: Progress | None = None) -> Health:
    """Look at the scales and codes of every quantized weight, and at whether all that stays is finite.

    `source` is a folder that llmquant wrote, in any format, a compressed-tensors folder of another tool, or a hub id.
    Memory holds one weight at a time.

    Raises:
        CheckpointError: if it is no such folder, or its files cannot be read.
    """
    progress = progress or Progress()
    folder = Path(source).expanduser()
    if not (folder / PROVENANCE).is_file():
        folder = locate(source)
    made = read_json(folder / PROVENANCE) if (folder / PROVENANCE).is_file() else {}
    format_ = _format_of(made)
    written = format_.open(folder)
    schemes = written.schemes() or _planned(made)
    parts = {base: format_.names(f"{base}.weight", scheme) for base, scheme in schemes.items()}
    findings, weights, digests = [], [], {}
    progress.stage("inspect", len(schemes), unit="weights")
    for base, scheme in schemes.items():
        try:
            weight, digests[base] = _look(written, base, scheme, parts[base])
            weights.append(weight)
            findings += symptoms(weight)
        except CheckpointError as error:
            findings.append(_damaged("unreadable", base, str(error)))
        progress.step(base)
    quantized = {name for names in parts.values() for name in names}
    kept = [name for name in written.tensors if name not in quantized and not name.endswith(".input_scale")]
    findings += [*_not_finite(written, kept), *odd_ones(weights), *copies(digests), *_not_looked_at(kept)]
    return Health(
        name=folder.name,
        findings=worst_first(findings),
        weights=tuple(weights),
        kept=len(kept),
        bytes_quantized=sum(each.bytes for each in weights),
        bytes_kept=sum(written.tensors[name].bytes for name in kept),
    )


def _format_of(made: Mapping[str, Any]) -> Format:
    recipe = made.get("recipe")
    name = recipe.get("format", formats.DEFAULT) if isinstance(recipe, Mapping) else formats.DEFAULT
    return formats.find(name)


def _planned(made: Mapping[str, Any]) -> dict[str, Scheme]:
    """The schemes of llmquant.json, for formats whose files do not say them."""
    try:
        named = {row["module"]: row["scheme"] for row in made["plan"]["rows"] if not row["tied_to"]}
        return {name: Scheme.parse(scheme) for name, scheme in named.items() if scheme != "keep"}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{PROVENANCE} is damaged: its plan has no such rows ({error!r})") from error


def _look(written: Written, base: str, scheme: Scheme, names: tuple[str, ...]) -> tuple[WeightHealth, str]:
    """One weight, and its digest."""
    quantized = written.decode(base, {name: written.read(name) for name in names}, scheme)
    static = f"{base}.input_scale"
    weight = WeightHealth(
        name=base,
        scheme=scheme.name,
        shape=(quantized.codes.shape[0], quantized.codes.shape[1]),
        bytes=sum(written.tensors[name].bytes for name in names),
        scales=scale_health(quantized),
        codes=code_health(quantized, scheme),
        input_scale=written.read(static).float().max().item() if static in written.tensors else None,
    )
    return weight, digest(quantized)


def _not_finite(written: Written, kept: list[str]) -> Iterator[Finding]:
    for name in kept:
        if written.tensors[name].dtype.is_floating_point:
            bad = int((~torch.isfinite(written.read(name).float())).sum())
            if bad:
                yield _damaged("not-finite", name, f"{bad} of its numbers are NaN or infinite")


def _not_looked_at(kept: list[str]) -> Iterator[Finding]:
    """Weights that are quantized in a way that we do not read."""
    other = [name.removesuffix(".weight_scale") for name in kept if name.endswith(".weight_scale")]
    if other:
        yield Finding(
            severity="note", kind="other-format", where=tuple(other),
            what=f"{len(other)} quantized weights are in a format that is not looked at, or config.json says that they "
            "stay as they were",
            advice="ask the tool that wrote them",
        )  # fmt: skip


def _damaged(kind: str, where: str, what: str) -> Finding:
    return Finding(severity="damaged", kind=kind, where=(where,), what=what, advice=_WRITE_AGAIN)
