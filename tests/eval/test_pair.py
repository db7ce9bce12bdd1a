"""What the pairs of one comparison share."""

from __future__ import annotations

import pytest

from llmquant.data.windows import make_windows
from llmquant.eval import EvalOptions, Subject
from llmquant.eval.pair import Facts, pairs
from tests.eval.conftest import pair_of


def test_what_pairs_share_is_made_once(baseline, perturbed, tokenizer, text) -> None:
    windows = make_windows([text], tokenizer, source="t", length=40, max_windows=8)
    options = EvalOptions(dtype="checkpoint")
    facts = [
        Facts(subject=Subject(name=name, baseline_name="b"), windows=windows, tokenizer=tokenizer, options=options)
        for name in "xy"
    ]
    one, other = pairs(facts, baseline, [baseline, perturbed])
    assert (one.place, other.place) == (0, 1)
    assert one.candidates == other.candidates == (baseline, perturbed)
    assert one.once("speed", lambda: object()) is other.once("speed", lambda: pytest.fail("made twice"))
    assert (one.scored.tokens.kl == 0).all()
    assert (other.scored.tokens.kl > 0).any()
    assert one.loss is other.loss
    alone = pair_of(baseline, perturbed, windows)
    assert alone.candidates == (perturbed,)
    assert (alone.scored.tokens.kl == other.scored.tokens.kl).all()
