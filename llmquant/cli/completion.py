"""`llmquant completion`: a script for a shell, written from the parser, so that nothing of ours runs at each Tab."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from llmquant.cli import arguments

_BASH = """\
_llmquant() {
    local cur="${COMP_WORDS[COMP_CWORD]}" words=""
    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 ]]; then
        words="%(verbs)s"
    else
        case "${COMP_WORDS[1]} ${COMP_WORDS[COMP_CWORD-1]}" in
%(values)s
            *)
                [[ $cur == -* ]] || return 0
                case "${COMP_WORDS[1]}" in
%(options)s
                esac
                ;;
        esac
    fi
    [[ $words == *= ]] && compopt -o nospace 2>/dev/null
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o bashdefault -o default -F _llmquant llmquant
"""


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser("completion", help="a script that completes command lines, for your shell")
    parser.add_argument("shell", choices=tuple(SHELLS), help="for which shell")
    parser.set_defaults(run=partial(run, commands.choices))


def run(parsers: Mapping[str, argparse.ArgumentParser], args: argparse.Namespace, console: Console) -> int:
    """Print the script."""
    console.file.write(SHELLS[args.shell](parsers))
    return 0


def bash(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """Verbs, options and the values of options; file names everywhere else."""
    values, options = [], []
    for verb, parser in parsers.items():
        named = list(_options(parser))
        known = {name: _values(action) for action in named for name in action.option_strings}
        known[verb] = list(_first_choices(parser))
        values += [_case(12, f"'{verb} {before}'", found) for before, found in known.items() if found]
        options.append(_case(20, verb, [name for action in named for name in action.option_strings]))
    return _BASH % {"verbs": " ".join(parsers), "values": "\n".join(values), "options": "\n".join(options)}


def _case(indent: int, pattern: str, words: list[str]) -> str:
    return f'{" " * indent}{pattern}) words="{" ".join(words)}" ;;'


def zsh(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """zsh reads bash's kind."""
    return f"autoload -Uz compinit bashcompinit && compinit && bashcompinit\n{bash(parsers)}"


def fish(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """A line for each verb and each option."""
    lines = [f"complete -c llmquant -n __fish_use_subcommand -f -a '{' '.join(parsers)}'"]
    for verb, parser in parsers.items():
        seen = f"complete -c llmquant -n '__fish_seen_subcommand_from {verb}'"
        for action in _options(parser):
            names = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in action.option_strings
            )
            needs = "" if action.nargs == 0 else " -r"
            found = f" -f -a '{' '.join(values)}'" if (values := _values(action)) else ""
            about = (action.help or "").replace("%%", "%").replace("\\", "\\\\").replace("'", "\\'")
            lines.append(f"{seen} {names}{needs}{found} -d '{about}'")
        if choices := list(_first_choices(parser)):
            lines.append(f"{seen} -f -a '{' '.join(choices)}'")
    return "\n".join(lines) + "\n"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}


def _options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (action for action in parser._actions if action.option_strings)  # argparse has no other list


def _values(action: argparse.Action) -> list[str]:
    """The words that an option takes, where they are known."""
    if action.type is Path:
        return []  # files, whatever the option is called
    if known := next((_KNOWN[name] for name in action.option_strings if name in _KNOWN), None):
        return known()
    return [str(choice) for choice in action.choices or ()]


def _first_choices(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The words that may stand right behind the verb."""
    first = next((action for action in parser._actions if not action.option_strings), None)
    if first is not None:
        yield from map(str, first.choices or ())
        if parser.prog.endswith(" recipes"):
            yield from _recipes()


def _recipes() -> list[str]:
    from llmquant.recipe.presets import presets

    return list(presets())


def _budgets() -> list[str]:
    from llmquant.limits import limits

    return [f"{name}=" for name in limits()]


def _metrics() -> list[str]:
    names = (file.name for file in files("llmquant").joinpath("eval/metrics").iterdir())  # no torch for a name
    stems = sorted(name.removesuffix(".py") for name in names if name.endswith(".py"))
    return [stem for stem in stems if stem not in ("__init__", "base")]


_KNOWN = {"--recipe": _recipes, "--schemes": _recipes, "--budget": _budgets, "--metric": _metrics}
