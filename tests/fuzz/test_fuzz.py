"""The first 300 cases of run.py, which does more."""

import pytest

from tests.fuzz.cases import Bench, run_case


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The two tiny models."""
    return Bench.make(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_damage_ends_in_an_error_of_llmquant_or_in_nothing(bench: Bench, first: int) -> None:
    outcomes = {seed: run_case(bench, seed) for seed in range(first, first + 50)}
    assert not {seed: outcome for seed, outcome in outcomes.items() if outcome.bad}
    kinds = {outcome.kind for outcome in outcomes.values()}
    assert kinds == {"fine", "refused"}  # the damage does harm, and not always
