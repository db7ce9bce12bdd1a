"""What people type, verb by verb, as `--help` shows it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

EXAMPLES: dict[str, tuple[str, ...]] = {
    "plan": (
        "MODEL --bits 4 --quality high",
        "MODEL -r int4-g128",
        "org/model -r my-recipe.yaml --full",
        "MODEL -r int8 --json - | jq .bits_per_weight",
    ),
    "quantize": (
        "MODEL --bits 4 -o OUT",
        "MODEL -r int4-g32-high -o OUT",
        "org/model -r int4-g128-balanced -o OUT --calibration my-text.jsonl",
        "MODEL -r int4-g64 -o OUT --resume",
        "MODEL -r int8 -o OUT --push USER/NAME --private",
    ),
    "qat": (
        "MODEL -r qat-int4-g32 --train text.txt -o OUT",
        "org/model -r qat-int3-g32 --train hub:org/text --steps 500 --recompute -o OUT",
        "MODEL -r my-recipe.yaml --train text.jsonl --valid held-out.txt -o OUT --resume",
    ),
    "verify": ("OUT", "USER/NAME"),
    "inspect": ("OUT",),
    "debug": ("OUT --baseline MODEL",),
    "eval": (
        "OUT --baseline MODEL",
        "OUT --baseline MODEL --text held-out.txt --report report.html --json eval.json",
        "OUT --baseline MODEL --budget kl=0.03 --speed 0",
    ),
    "report": ("int8.json int4.json",),
    "push": ("OUT USER/NAME --report eval.json --dry-run", "OUT USER/NAME --report eval.json --private"),
    "bench": ("MODEL", "OUT --baseline MODEL", "MODEL --schemes int8,int4-g128 --json bench.json"),
    "demo": ("", "--out demo --report demo.html"),
    "doctor": ("", "--json - | jq .advice"),
    "recipes": ("", "int4-g32-balanced > my-recipe.yaml"),
    "completion": ("bash >> ~/.bashrc", "zsh >> ~/.zshrc", "fish > ~/.config/fish/completions/llmquant.fish"),
}


def add_examples(parsers: Mapping[str, argparse.ArgumentParser]) -> None:
    """Put the examples of each verb below its arguments, in front of what stands there already."""
    for verb, parser in parsers.items():
        lines = [f"  llmquant {verb} {example}".rstrip() for example in EXAMPLES.get(verb, ())]
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = "\n\n".join(filter(None, ("\n".join(["examples:", *lines]) if lines else "", parser.epilog)))
