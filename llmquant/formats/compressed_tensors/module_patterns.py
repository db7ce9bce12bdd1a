r"""Few patterns for many module names, right under every name that a module can have.

A checkpoint is opened by many classes, and each gives the same module another name: `model.layers.0.mlp.up_proj` is
`layers.0.mlp.up_proj` without a head and `model.language_model.layers.0.mlp.up_proj` beside a vision tower. What stays
is the tail, from the list of blocks on. So a pattern is a head that may be any sequence of the words that stand before
the tails, then the tails as one tree:

    re:(?:(?:model|language_model)\.)*layers\.\d+\.(?:self_attn\.(?:q_proj|k_proj)|mlp\.up_proj)$

Numbers are spelled out only where the same tail has several fates (a first block that is kept, a draft layer behind the
last block). Nothing can be matched in two ways, so no name takes long to match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from llmquant.errors import QuantizationError

ANYWHERE = r"(?:.*\.)?"
LENGTH = 1000  # of an expression; readers, ours too, may refuse long ones
# Names that classes put before the blocks of a text model, whatever the checkpoint calls them.
_HEAD_WORDS = ("model", "language_model")

Tail: TypeAlias = tuple[str, ...]  # components of a name
_Template: TypeAlias = tuple[str | None, ...]  # the same, None for a number
_Numbers: TypeAlias = tuple[str, ...]  # what a template leaves open
_Tree: TypeAlias = dict[str, "_Tree"]  # one regular expression for each component, and _END where a name ends
_END = ""


def module_patterns(fates: Sequence[Iterable[str]]) -> list[list[str]]:
    """Write sets of module names as patterns, each of which matches the names of its own set only.

    Args:
        fates: the sets; the last holds the names of what is ignored, and its patterns allow any prefix where they can.
            A module may be in its set under several names.

    Returns:
        for each set its targets in the sense of compressed-tensors: "re:" patterns, for `re.match`, and names.

    Raises:
        QuantizationError: if no patterns can tell the sets apart, as when one name is in two.
    """
    sets = [list(names) for names in fates]
    # The fewer words may stand before a tail, the more of the name tells it apart, and the fewer classes find it.
    for words in (_words_before_blocks(sets[:-1]), _HEAD_WORDS):
        try:
            return _write(sets, words)
        except QuantizationError:
            continue
    return _write(sets, ())


def _write(sets: Sequence[Sequence[str]], words: Sequence[str]) -> list[list[str]]:
    tails = [[_tail(name, words) for name in names] for names in sets]
    trees = _trees(tails)
    head = f"(?:(?:{'|'.join(map(re.escape, words))})\\.)*" if words else ""
    found = [[f"re:{head}{expression}$" for expression in _expressions(tree)] for tree in trees[:-1]]
    found.append(_loose(trees[-1], head, [name for names in sets[:-1] for name in names]))
    _check(found, sets)
    return found


def _words_before_blocks(sets: Iterable[Iterable[str]]) -> tuple[str, ...]:
    words = dict.fromkeys(_HEAD_WORDS)
    for names in sets:
        for name in names:
            parts = name.split(".")
            first = next((i for i, part in enumerate(parts) if part.isdecimal()), 0)
            words |= dict.fromkeys(parts[: max(first - 1, 0)])
    return tuple(words)


def _tail(name: str, words: Sequence[str]) -> Tail:
    parts = name.split(".")
    begin = next((i for i, part in enumerate(parts[:-1]) if part not in words), len(parts) - 1)
    return tuple(parts[begin:])


def _trees(fates: Sequence[Iterable[Tail]]) -> list[_Tree]:
    """A tree for each set of tails; a number is left open unless that would take in another set's tail."""
    numbers: dict[_Template, list[dict[_Numbers, None]]] = {}
    for index, tails in enumerate(fates):
        for tail in tails:
            template = tuple(None if part.isdecimal() else part for part in tail)
            sets = numbers.setdefault(template, [{} for _ in fates])
            sets[index][tuple(part for part in tail if part.isdecimal())] = None
    trees: list[_Tree] = [{} for _ in fates]
    for template, sets in numbers.items():
        for index, own in enumerate(sets):
            others = {number for j, other in enumerate(sets) if j != index for number in other}
            for expressions in _open(list(own), others):
                left, node = iter(expressions), trees[index]
                for part in template:
                    node = node.setdefault(next(left) if part is None else re.escape(part), {})
                node[_END] = {}
    return trees


def _open(own: Sequence[_Numbers], others: set[_Numbers]) -> list[tuple[str, ...]]:
    """Regular expressions, one for each number, that take in all of `own` and none of `others`."""
    if not own or not own[0]:
        return [()] if own else []
    alike: dict[tuple[tuple[_Numbers, ...], frozenset[_Numbers]], list[str]] = {}
    for first in dict.fromkeys(numbers[0] for numbers in own):
        rest = tuple(numbers[1:] for numbers in own if numbers[0] == first)
        wrong = frozenset(numbers[1:] for numbers in others if numbers[0] == first)
        alike.setdefault((rest, wrong) if wrong else ((), wrong), []).append(first)
    found = []
    for (rest, wrong), firsts in alike.items():
        everywhere = len(alike) == 1 and {numbers[0] for numbers in others} <= set(firsts)
        begin = r"\d+" if everywhere else _either(sorted(firsts, key=int))
        ends = _open(rest, set(wrong)) if wrong else [(r"\d+",) * (len(own[0]) - 1)]
        found += [(begin, *end) for end in ends]
    return found


def _regex(tree: _Tree) -> str:
    """A tree as one expression; branches that go on alike share what follows."""
    by_rest: dict[str, list[str]] = {}
    for part, below in tree.items():
        longer = {part: deeper for part, deeper in below.items() if part != _END}
        rest = f"\\.{_regex(longer)}" if longer else ""
        by_rest.setdefault(f"(?:{rest})?" if longer and _END in below else rest, []).append(part)
    return _either([_either(parts) + rest for rest, parts in by_rest.items()])


def _either(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"(?:{'|'.join(choices)})"


def _expressions(tree: _Tree) -> list[str]:
    """A tree as one expression, or as several where that would be too long to read."""
    if not tree:
        return []
    whole = _regex(tree)
    if len(whole) <= LENGTH:
        return [whole]
    parts = [(part, below) for part, below in tree.items()]
    if len(parts) > 1:
        return [expression for part, below in parts for expression in _expressions({part: below})]
    (part, below) = parts[0]
    longer = {part: deeper for part, deeper in below.items() if part != _END}
    return [f"{part}\\.{rest}" for rest in _expressions(longer)] + ([part] if _END in below else [])


def _loose(tree: _Tree, head: str, others: Sequence[str]) -> list[str]:
    """Patterns for each branch of the tree, behind any prefix if that takes in none of `others`."""
    found = []
    for part, below in tree.items():
        for expression in _expressions({part: below}):
            loose = re.compile(f"{ANYWHERE}{expression}$")  # not with a limit: these are our own
            found.append(f"re:{head}{expression}$" if any(map(loose.match, others)) else f"re:{loose.pattern}")
    return found


def _check(found: Sequence[Sequence[str]], names: Sequence[Sequence[str]]) -> None:
    # A name of another class has the same tail behind other words, so no pattern can tell the two apart.
    for index, targets in enumerate(found):
        compiled = [re.compile(target.removeprefix("re:")) for target in targets]
        for other, those in enumerate(names):
            for name in those:
                if any(pattern.match(name) for pattern in compiled) != (index == other):
                    raise QuantizationError(
                        f"{name}: no pattern in config.json can tell it from modules that are stored in another way"
                    )
