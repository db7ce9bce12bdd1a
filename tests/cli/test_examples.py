"""Every verb has examples, and the examples are what it takes."""

from __future__ import annotations

import shlex

import pytest

from llmquant.cli.examples import EXAMPLES
from llmquant.cli.main import _parser, main

VERBS = next(action.choices for action in _parser()._actions if action.choices)


def test_every_verb_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(VERBS or ()) <= EXAMPLES.keys()
    for verb in VERBS or ():
        with pytest.raises(SystemExit):
            main([str(verb), "--help"])
        assert f"examples:\n  llmquant {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", list(VERBS or ()))
def test_the_examples_can_be_typed(verb: str) -> None:
    for example in EXAMPLES[verb]:
        typed = shlex.split(example.replace(">>", ">").partition("|")[0].partition(">")[0])
        assert _parser().parse_args([verb, *typed]).run
