"""What becomes of times."""

from __future__ import annotations

from llmquant.kernels.bench.common.rows import Sample


def test_the_headline_is_a_quantile() -> None:
    sample = Sample([float(number) for number in range(101)], headline=0.1, nbytes=10_000)
    assert (sample.quantile(0.1), sample.gigabytes_per_second) == (10, 1)
