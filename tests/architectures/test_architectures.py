"""Every causal architecture of the installed transformers, tiny: from the plan to the logits of every reader.

For each: plan, RTN, GPTQ where it applies, packed load, plain load, each stored tensor where it belongs, equal logits,
and a plan that tells the truth about plain transformers. A dozen of different make run always, all with `-m slow`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architectures.examine import Findings, PlainReader, examine
from tests.architectures.known import NOT_TINY, ORIGINALS, OTHER_LOGITS, REFUSED, UNCALIBRATED
from tests.architectures.tiny import model_types, tiny_model

FAST = ("llama", "gemma4_text", "falcon", "gpt_bigcode", "nanochat", "mamba", "mixtral", "llama4_text", "zaya", "bart")

pytestmark = pytest.mark.usefixtures("reference_kernels")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainReader]:
    """Plain transformers; it answers for one folder after the other."""
    reader = PlainReader(tmp_path_factory.mktemp("plain"))
    yield reader
    reader.close()


def expected(model_type: str) -> Findings:
    """What is known of an architecture; the faults of all are none."""
    return Findings(
        original=ORIGINALS.get(model_type, ""),
        refused=REFUSED.get(model_type, ""),
        gptq=UNCALIBRATED.get(model_type, ""),
    )


def check(model_type: str, folder: Path, plain: PlainReader) -> None:
    found, known = examine(tiny_model(model_type), folder, plain), expected(model_type)
    assert not [fault for fault in found.faults if model_type not in OTHER_LOGITS or "(logits)" not in fault]
    for name in ("original", "refused", "gptq"):
        said, meant = getattr(found, name), getattr(known, name)
        assert bool(said) == bool(meant), f"{name}: {said or 'nothing'}"
        assert meant in said


@pytest.mark.parametrize("model_type", FAST)
def test_some_architectures(model_type: str, tmp_path: Path, plain: PlainReader) -> None:
    check(model_type, tmp_path, plain)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in model_types() if name not in (*FAST, *NOT_TINY)])
def test_all_architectures(model_type: str, tmp_path: Path, plain: PlainReader) -> None:
    check(model_type, tmp_path, plain)


def test_most_are_examined() -> None:
    """So that a long list of exceptions cannot hide that nothing is tested."""
    examined = set(model_types()) - NOT_TINY.keys() - ORIGINALS.keys() - REFUSED.keys()
    assert len(examined) >= 100
