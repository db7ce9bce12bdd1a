"""Taking turns."""

from __future__ import annotations

from collections.abc import Callable

from llmquant.turns import take_turns


def test_every_second_round_is_in_reverse_and_results_keep_their_places() -> None:
    order: list[str] = []

    def run(name: str) -> Callable[[], tuple[str, int]]:
        def measure() -> tuple[str, int]:
            order.append(name)
            return name, len(order)

        return measure

    asked: list[int] = []

    def goes_on(done: int) -> bool:
        asked.append(done)
        return done < 3

    rounds = take_turns([run(name) for name in "abc"], goes_on)
    assert "".join(order) == "abccbaabc"
    assert [[name for name, _ in each] for each in rounds] == [list("abc")] * 3
    assert [number for _, number in rounds[1]] == [6, 5, 4]
    assert asked == [0, 1, 2, 3]


def test_there_may_be_no_round() -> None:
    assert take_turns([lambda: 1], lambda done: False) == []
