"""Patterns that name modules: a named set, an exact module name, a glob, or a regular expression.

- `mlp.down`: a named set (`NAMED_SETS`), the same word for every architecture;
- `model.layers.0.mlp.down_proj`: one module, by its exact name;
- `*.down_proj`, `model.layers.[0-3].*`: a glob over the whole module name, in which `*` also crosses dots;
- `re:model\\.layers\\.(0|1)\\..*`: a Python regular expression that must match the whole module name (`re.fullmatch`).

Globs and expressions never reach protected modules (embeddings, lm_head, routers, norms, experts, anything outside the
decoder blocks): a sweeping `*` must not quantize by accident what hurts most. Those answer to their set or exact name.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from llmquant.models.inventory import NAMED_SETS, ModuleInfo
from llmquant.patterns import Expression, compiled

_GLOB_CHARACTERS = frozenset("*?[")
MAX_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class Pattern:
    """One entry of a rule's `match`."""

    text: str
    kind: Literal["set", "name", "glob", "regex"]
    glob: re.Pattern[str] | None = None
    regex: Expression | None = None

    @classmethod
    @lru_cache(maxsize=4096)
    def parse(cls, text: str) -> Pattern:
        """Read one pattern.

        Raises:
            ValueError: if it is empty, too long, or not a valid regular expression.
        """
        if len(text) > MAX_LENGTH:
            raise ValueError(f"a pattern of {len(text)} characters; at most {MAX_LENGTH} are read, so use several")
        if not text.strip():
            raise ValueError("an empty pattern matches nothing; name a set such as 'linear' or a module")
        if text.startswith("re:"):
            return cls(text, "regex", regex=compiled(text[3:]))
        if text in NAMED_SETS:
            return cls(text, "set")
        if _GLOB_CHARACTERS.intersection(text):
            return cls(text, "glob", glob=re.compile(fnmatch.translate(text)))
        return cls(text, "name")

    def names(self, module: ModuleInfo) -> bool:
        """Whether the pattern fits the module's name or set, protected or not.

        Raises:
            PatternError: if an expression takes too long.
        """
        if self.kind == "set":
            return self.text in module.sets
        if self.glob is not None:  # fnmatch writes expressions that do not backtrack across a star
            return self.glob.fullmatch(module.name) is not None
        return self.text == module.name if self.regex is None else self.regex.fullmatch(module.name)

    def matches(self, module: ModuleInfo) -> bool:
        """Whether the pattern reaches the module: `names`, less protected modules for globs and expressions."""
        return self.names(module) and (self.kind in ("set", "name") or not module.protected)
