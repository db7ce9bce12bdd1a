"""One name for the same module in many blocks: `model.layers.{0..79}.mlp.down_proj`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmquant.models.inventory import ModuleInfo


def template(module: ModuleInfo) -> str:
    """The module's name with `{}` in place of its block's index."""
    if module.block is None:
        return module.name
    components = module.name.split(".")
    components[components.index(str(module.block))] = "{}"
    return ".".join(components)


def collective(modules: Sequence[ModuleInfo]) -> str:
    """The name of modules that share a template."""
    text = template(modules[0])
    return text.replace("{}", _ranges([module.block or 0 for module in modules])) if "{}" in text else text


def collective_names(modules: Iterable[ModuleInfo]) -> list[str]:
    """A name for each template among the modules, in order of appearance."""
    together: dict[str, list[ModuleInfo]] = {}
    for module in modules:
        together.setdefault(template(module), []).append(module)
    return [collective(group) for group in together.values()]


def _ranges(blocks: list[int]) -> str:
    """`3` for one block, `{0..79}` or `{0,2..5,9}` for several."""
    runs: list[list[int]] = []
    for block in sorted(set(blocks)):
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs]
    return parts[0] if parts == [str(blocks[0])] else f"{{{','.join(parts)}}}"
