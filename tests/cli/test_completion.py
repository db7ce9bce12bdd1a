"""The scripts of `llmquant completion`, in the shells themselves."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from llmquant.cli.main import main


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("pl", {"plan"}),
        ("quantize m --pu", {"--push"}),
        ("eval m --accuracy ", {"exact", "fast"}),
        ("plan m -r int4-g128", {"int4-g128", "int4-g128-gptq"}),
        ("plan m --recipe int8-f", {"int8-full"}),
        ("recipes int8-f", {"int8-full"}),
        ("completion z", {"zsh"}),
        ("verify fol", set()),
        ("debug m --recipe int8", set()),  # a file that it writes
        ("bench m --schemes int8-f", {"int8-full"}),
        ("eval m --metric spe", {"speed"}),
        ("eval m --budget k", {"kl="}),
    ],
)
def test_bash(typed: str, found: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    program = f"""{script("bash", capsys)}
COMP_WORDS=(llmquant {typed.rstrip()}{" ''" if typed.endswith(" ") else ""})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_llmquant
printf "%s\\n" "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-uc", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) >= found
    assert bool(done.stdout.split()) == bool(found)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_verbs_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    written = script(shell, capsys)
    for word in ("quantize", "trust-remote-code", "int4-g128-gptq"):
        assert word in written
    if found := shutil.which(shell):
        subprocess.run([found, "-n"], input=written, text=True, check=True)
