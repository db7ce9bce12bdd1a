"""The `quantization_config` of config.json, as compressed-tensors writes and reads it.

Only keys that both 0.17 and 0.20 know are written inside a group, since they refuse others.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmquant.errors import CheckpointError, QuantizationError
from llmquant.formats.base import Content, Planned
from llmquant.formats.compressed_tensors.module_patterns import module_patterns
from llmquant.patterns import target_matches
from llmquant.spec import BITS, KEEP, Scheme

PACKED = "pack-quantized"
INTEGER = "int-quantized"


def format_of(scheme: Scheme) -> str:
    """The `format` word of a scheme."""
    return INTEGER if scheme.activations else PACKED


def quantization_config(
    quantized: Mapping[str, Scheme],
    kept: Sequence[str],
    *,
    embeddings: bool = False,
) -> dict[str, Any]:
    """Build the `quantization_config` of config.json.

    Targets and `ignore` are patterns that mean exactly these modules, whatever class loads the checkpoint
    (module_patterns.py). A class target such as "Linear" would mean more: vision towers, draft layers, added heads.

    Args:
        quantized: scheme of every quantized module, by name; of tied ones the owner's. A module whose name in the
            checkpoint differs from that in the model has both.
        kept: names of all matrices that stay as they are, in the same way; lm_head included.
        embeddings: some of the quantized modules are embeddings.

    Raises:
        QuantizationError: if nothing is quantized, a name is in both, or a scheme cannot be written.
    """
    both = sorted(set(quantized) & set(kept))
    if both or not quantized:
        raise QuantizationError(f"{both[0]}: is both quantized and kept" if both else "no module is quantized")
    schemes = {scheme.name: scheme for scheme in quantized.values()}
    sets = [[name for name, other in quantized.items() if other == scheme] for scheme in schemes.values()]
    *targets, ignore = module_patterns([*sets, kept])
    groups = {
        f"group_{i}": _group(scheme, own) for i, (scheme, own) in enumerate(zip(schemes.values(), targets, strict=True))
    }
    formats = {group["format"] for group in groups.values()}
    config: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": None,
    }
    if len(schemes) == 1 and (embeddings or not next(iter(schemes.values())).symmetric):
        # When transformers loads lazily, compressed-tensors 0.20 forgets to pack zero points, and transformers 5.23
        # asks a packed embedding for its `weight`. This key avoids that path. It works for a single scheme only, and
        # vLLM ignores it.
        config["dequantize"] = True
    return config


def model_quantization_config(plan: Planned, contents: Mapping[str, Content] | None = None) -> dict[str, Any]:
    """The `quantization_config` of a model that was quantized by `plan`.

    `contents` says the same by the keys of the checkpoint, which may hold more: a vision tower, draft layers.
    """
    schemes = {row.module.name: row.scheme for row in plan.quantized}
    kept = [row.module.name for row in plan.rows if row.scheme.is_keep and row.module.layer]
    for key, content in (contents or {}).items():
        name = key.removesuffix(".weight")
        if not content.scheme.is_keep:
            schemes[name] = content.scheme
        elif name != key and len(content.shape) == 2:
            kept.append(name)
    embeddings = any(row.matrix.table for row in plan.quantized)
    return quantization_config(schemes, list(dict.fromkeys(kept)), embeddings=embeddings)


@dataclass(frozen=True, slots=True)
class SchemeTable:
    """What a `quantization_config` says about modules.

    Attributes:
        groups: (targets, scheme) of each group; the scheme is None where we do not know the format.
        ignore: names and "re:" patterns that stay as they are.
    """

    groups: tuple[tuple[tuple[str, ...], Scheme | None], ...]
    ignore: tuple[str, ...]

    def scheme_for(self, module_name: str, class_name: str = "Linear") -> Scheme | None:
        """The scheme of a module, matched as compressed-tensors 0.20 does.

        Exact names come first, then patterns in alphabetical order, then class names; a later group wins over an
        earlier one with the same target.

        Returns:
            `KEEP` if the module is not quantized, None if it is in a way that we do not know.

        Raises:
            PatternError: if an expression is malformed, or takes too long.
        """
        if any(target_matches(target, module_name) or target == class_name for target in self.ignore):
            return KEEP
        by_target = {target: scheme for targets, scheme in self.groups for target in targets}
        for target in sorted(by_target, key=lambda target: ("re:" in target, target)):
            if target_matches(target, module_name):
                return by_target[target]
        return by_target.get(class_name, KEEP)


def schemes_of(config: Mapping[str, Any]) -> SchemeTable:
    """Read the `quantization_config` of a compressed-tensors checkpoint, ours or another tool's.

    Raises:
        CheckpointError: if it is malformed, or not of compressed-tensors.
    """
    if config.get("quant_method") != "compressed-tensors":
        raise CheckpointError(
            f"quantization_config has quant_method {config.get('quant_method')!r}, not compressed-tensors"
        )
    found = config.get("config_groups") or {}
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"config_groups of the quantization_config is {reprlib.repr(found)}, an object was expected"
        )
    groups: list[tuple[tuple[str, ...], Scheme | None]] = []
    for name, group in found.items():
        # A group may be a list: the name is then a preset of compressed-tensors, which our files never use.
        targets = group.get("targets") if isinstance(group, Mapping) else group
        if not isinstance(targets, Sequence) or not all(isinstance(target, str) for target in targets):
            raise CheckpointError(f"group {name!r} of the quantization_config has no list of targets")
        scheme = _scheme_of(group, config) if isinstance(group, Mapping) else None
        groups.append((tuple(targets), scheme))
    ignore = config.get("ignore") or []
    if not isinstance(ignore, Sequence) or not all(isinstance(target, str) for target in ignore):
        raise CheckpointError(f"ignore of the quantization_config is {reprlib.repr(ignore)}, wanted a list of names")
    return SchemeTable(tuple(groups), tuple(ignore))


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    if scheme.is_keep:
        raise QuantizationError(f"{targets[0]}: {scheme} cannot be written as a quantized weight")
    inputs = {
        None: None,
        "dynamic": _arguments(8, "token", None, dynamic=True),
        "static": _arguments(8, "tensor", None),
    }
    return {
        "targets": targets,
        "format": format_of(scheme),
        "weights": _arguments(scheme.bits, scheme.granularity, scheme.group_size, symmetric=scheme.symmetric),
        "input_activations": inputs[scheme.activations],
        "output_activations": None,
    }


def _arguments(
    bits: int, strategy: str, group_size: int | None, *, symmetric: bool = True, dynamic: bool = False
) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": group_size,
        "dynamic": dynamic,
    }


# Keys of a group's `weights` that do not change what the stored integers mean.
_INERT = {"observer", "observer_kwargs", "scale_dtype", "zp_dtype", "block_structure", "actorder"}
_MEANINGFUL = {"num_bits", "type", "symmetric", "strategy", "group_size", "dynamic"}


def _scheme_of(group: Mapping[str, Any], config: Mapping[str, Any]) -> Scheme | None:
    weights, inputs = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, Mapping) or group.get("output_activations"):
        return None
    # Of a checkpoint that is not compressed the weights are stored as floats.
    if config.get("quantization_status") != "compressed" or config.get("transform_config"):
        return None
    if not weights.keys() <= _INERT | _MEANINGFUL or weights.get("actorder") not in (None, False, "weight", "static"):
        return None
    group_size, bits, symmetric = weights.get("group_size"), weights.get("num_bits", 8), weights.get("symmetric", True)
    # JSON of others: `4.0`, `true` and `"32"` are no numbers of bits or sizes of groups.
    if type(bits) is not int or type(symmetric) is not bool or type(group_size) not in (int, type(None)):
        return None
    strategy = weights.get("strategy")
    if strategy is None:
        strategy = {None: "tensor", -1: "channel"}.get(group_size, "group")
    if weights.get("type", "int") != "int" or weights.get("dynamic") or bits not in BITS:
        return None
    if strategy not in ("group", "channel", "tensor") or (strategy == "group" and (group_size or 0) < 1):
        return None
    if (group.get("format") or config.get("format")) == PACKED and not inputs:
        return Scheme(bits, strategy, group_size if strategy == "group" else None, symmetric)
    return _activation_scheme(group, config, (bits, strategy, symmetric))


def _activation_scheme(group: Mapping[str, Any], config: Mapping[str, Any], weights: tuple) -> Scheme | None:
    inputs = group.get("input_activations")
    if (group.get("format") or config.get("format")) != INTEGER or not isinstance(inputs, Mapping):
        return None
    known = inputs.get("num_bits", 8), inputs.get("type", "int"), inputs.get("symmetric", True)
    if weights != (8, "channel", True) or known != (8, "int", True):
        return None
    if (inputs.get("strategy"), inputs.get("dynamic")) == ("token", True):
        return Scheme(8, activations="dynamic")
    per_tensor = inputs.get("strategy") == "tensor" and not inputs.get("dynamic")
    return Scheme(8, activations="static") if per_tensor else None
