"""The compressed-tensors layout: tensors of one module, and the `quantization_config` of config.json.

With N = out_features, K = in_features, G = groups (1 per channel), b = bits, a module stores

    pack-quantized   weight_packed int32 (N, ceil(K*b/32)), weight_scale (N, G), weight_shape int64 [N, K], and if
                     asymmetric weight_zero_point int32 (ceil(N*b/32), G), packed along N
    per tensor       the same with weight_scale (1,) and a plain int8 weight_zero_point (1,)
    int-quantized    weight int8 (N, K), weight_scale (N, 1): 8-bit activations (W8A8). Of other tools, which may give
                     all activations of a module one scale (w8a8-static), input_scale (1,) too; read, not written

Checked against compressed-tensors 0.17 and 0.20 by golden files; 3 bits are packed densely as 0.20 does, which 0.17
cannot read. Only keys that both versions know are written inside a group, since they refuse others.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmquant.errors import CheckpointError, QuantizationError
from llmquant.formats.module_patterns import module_patterns
from llmquant.numerics.pack import pack, pack_zeros, unpack, unpack_zeros
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.patterns import target_matches
from llmquant.spec import BITS, KEEP, Scheme

PACKED = "pack-quantized"
INTEGER = "int-quantized"


def encode(name: str, quantized: QuantizedTensor, scheme: Scheme) -> dict[str, Tensor]:
    """Turn one quantized weight into the tensors that a checkpoint stores.

    Args:
        name: of the module, such as "model.layers.0.mlp.down_proj".
        quantized: codes (out_features, in_features) with scales and zeros.
        scheme: how `quantized` was made.

    Returns:
        tensors under their full names.

    Raises:
        QuantizationError: if `quantized` does not fit the scheme, or the scheme needs more than a weight.
    """
    _check_parts(name, quantized, scheme)
    codes, scales = quantized.codes, quantized.scales.contiguous()
    if scheme.activations:
        return {f"{name}.weight": codes.contiguous(), f"{name}.weight_scale": scales}
    per_tensor = scheme.granularity == "tensor"
    tensors = {
        f"{name}.weight_packed": pack(codes, scheme.bits),
        f"{name}.weight_scale": scales.reshape(1) if per_tensor else scales,
        f"{name}.weight_shape": torch.tensor(codes.shape, dtype=torch.int64),
    }
    if quantized.zeros is not None:
        zeros = quantized.zeros.reshape(1) if per_tensor else pack_zeros(quantized.zeros, scheme.bits)
        tensors[f"{name}.weight_zero_point"] = zeros
    return tensors


def decode(name: str, tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedTensor:
    """Read one quantized weight back; the inverse of `encode`.

    Args:
        name: of the module.
        tensors: at least the tensors of this module, under their full names.
        scheme: from the checkpoint's quantization_config.

    Raises:
        CheckpointError: if a tensor is missing or has another dtype or shape than the scheme says.
    """

    def part(suffix: str, dtype: torch.dtype | None, shape: tuple[int, ...] | None) -> Tensor:
        tensor = tensors.get(f"{name}.{suffix}")
        if tensor is None:
            raise CheckpointError(f"{name}: the checkpoint has no {name}.{suffix}, which {scheme} needs")
        if (dtype and tensor.dtype != dtype) or (shape is not None and tuple(tensor.shape) != shape):
            wanted = f"{dtype or 'float'} {list(shape) if shape is not None else ''}"
            raise CheckpointError(f"{name}.{suffix}: is {tensor.dtype} {list(tensor.shape)}, {scheme} wants {wanted}")
        return tensor

    if scheme.activations:
        codes = part("weight", torch.int8, None)
        if codes.ndim != 2:
            raise CheckpointError(f"{name}.weight: has {codes.ndim} dimensions, {scheme} wants 2")
        return QuantizedTensor(codes, part("weight_scale", None, (codes.shape[0], 1)))
    out_features, in_features = part("weight_shape", torch.int64, (2,)).tolist()
    if not scheme.divides(in_features):
        raise CheckpointError(f"{name}: in_features {in_features} are no multiple of the group of {scheme}")
    packed = part("weight_packed", torch.int32, (out_features, -(-in_features * scheme.bits // 32)))
    codes = unpack(packed, scheme.bits, in_features)
    if scheme.granularity == "tensor":
        zeros = None if scheme.symmetric else part("weight_zero_point", torch.int8, (1,)).reshape(1, 1)
        return QuantizedTensor(codes, part("weight_scale", None, (1,)).reshape(1, 1), zeros)
    shape = scheme.scale_shape(out_features, in_features)
    scales = part("weight_scale", None, shape)
    if scheme.symmetric:
        return QuantizedTensor(codes, scales)
    zeros = part("weight_zero_point", torch.int32, (-(-out_features * scheme.bits // 32), shape[1]))
    return QuantizedTensor(codes, scales, unpack_zeros(zeros, scheme.bits, out_features))


def suffixes(scheme: Scheme) -> tuple[str, ...]:
    """The tensors that a module of this scheme has, instead of (or, for W8A8, besides) its float `weight`."""
    if scheme.activations:
        return ("weight", "weight_scale")
    return ("weight_packed", "weight_scale", "weight_shape", *(() if scheme.symmetric else ("weight_zero_point",)))


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

    Args:
        config: the entry of config.json.

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


def _check_parts(name: str, quantized: QuantizedTensor, scheme: Scheme) -> None:
    if scheme.is_keep or scheme.activations == "static":
        raise QuantizationError(f"{name}: {scheme} cannot be written as a quantized weight")
    codes, scales, zeros = quantized.codes, quantized.scales, quantized.zeros
    if codes.dtype != torch.int8 or codes.ndim != 2:
        raise QuantizationError(f"{name}: codes are {codes.dtype} {list(codes.shape)}, wanted int8 with 2 dimensions")
    if not scheme.divides(codes.shape[1]):
        raise QuantizationError(f"{name}: in_features {codes.shape[1]} are no multiple of the group of {scheme}")
    shape = scheme.scale_shape(*codes.shape)
    if tuple(scales.shape) != shape or not scales.is_floating_point():
        raise QuantizationError(f"{name}: scales are {scales.dtype} {list(scales.shape)}, {scheme} wants {list(shape)}")
    if scheme.symmetric != (zeros is None):
        raise QuantizationError(f"{name}: zeros are {'missing' if zeros is None else 'given'} for {scheme}")
    if zeros is not None and (tuple(zeros.shape) != shape or zeros.dtype != torch.int8):
        raise QuantizationError(f"{name}: zeros are {zeros.dtype} {list(zeros.shape)}, wanted int8 {list(shape)}")


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    if scheme.is_keep or scheme.activations == "static":
        raise QuantizationError(f"{targets[0]}: {scheme} cannot be written as a quantized weight")
    return {
        "targets": targets,
        "format": format_of(scheme),
        "weights": _arguments(scheme.bits, scheme.granularity, scheme.group_size, symmetric=scheme.symmetric),
        "input_activations": _arguments(8, "token", None, dynamic=True) if scheme.activations else None,
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
