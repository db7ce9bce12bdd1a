"""How a recipe names text."""

from __future__ import annotations

import re

_TEXTS = (".txt", ".jsonl", ".json", ".json.gz", ".jsonl.gz", ".parquet")  # as `llmquant.data.text` reads them
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w-]*(/[\w-]+)?")


def check_text(name: str) -> str:
    """The name, if `llmquant.data.text` reads what is called so.

    Raises:
        ValueError: says how to write it.
    """
    prefix, _, rest = name.partition(":")
    if prefix == "builtin" and rest not in ("mixed", "python"):
        raise ValueError(f"unknown built-in data set {name!r}; there are 'builtin:mixed' and 'builtin:python'")
    if prefix == "hub" and not rest:
        raise ValueError("'hub:' lacks the data set's name, as in 'hub:org/name'")
    if prefix not in ("builtin", "hub") and not name.endswith(_TEXTS):
        on_hub = name if _HUB_NAME.fullmatch(name) else "NAME"  # not a path, nor a file of another kind
        raise ValueError(
            f"cannot tell what {name!r} is; write 'builtin:mixed', a .txt, .jsonl or .json file, or 'hub:{on_hub}'"
        )
    return name
