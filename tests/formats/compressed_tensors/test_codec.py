from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmquant.errors import CheckpointError, QuantizationError
from llmquant.formats.compressed_tensors.codec import decode, encode, payload_bytes, stored_bytes, suffixes
from llmquant.formats.compressed_tensors.config import quantization_config, schemes_of
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import KEEP, Scheme

NAMES = [
    f"int{bits}{size}{asym}" for bits, size, asym in product((2, 3, 4, 8), ("", "-g32", "-tensor"), ("", "-asym"))
] + ["w8a8-dynamic"]


def random_quantized(scheme: Scheme, out_features: int, in_features: int, dtype: torch.dtype) -> QuantizedTensor:
    low, high = scheme.code_min, scheme.code_max + 1
    shape = scheme.scale_shape(out_features, in_features)
    codes = torch.randint(low, high, (out_features, in_features)).to(torch.int8)
    scales = (torch.rand(shape) + 0.1).to(dtype)
    if scheme.symmetric:
        return QuantizedTensor(codes, -scales)
    return QuantizedTensor(codes, scales, torch.randint(low, high, shape).to(torch.int8))


def equal(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    if a.zeros is None or b.zeros is None:
        return a.zeros is b.zeros and torch.equal(a.codes, b.codes) and torch.equal(a.scales, b.scales)
    return all(map(torch.equal, (a.codes, a.scales, a.zeros), (b.codes, b.scales, b.zeros)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("out_features", [8, 13])
def test_decode_inverts_encode(name: str, out_features: int) -> None:
    scheme = Scheme.parse(name)
    quantized = random_quantized(scheme, out_features, 96, torch.bfloat16)
    tensors = encode("m.0.x", quantized, scheme)
    assert set(tensors) == {f"m.0.x.{suffix}" for suffix in suffixes(scheme)}
    assert equal(decode("m.0.x", tensors, scheme), quantized)


def test_words_of_the_layout() -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).reshape(1, 16)
    packed = encode("x", QuantizedTensor(codes, torch.ones(1, 1)), Scheme(4))["x.weight_packed"]
    assert [word & 0xFFFFFFFF for word in packed[0].tolist()] == [0x76543210, 0xFEDCBA98]
    zeros = torch.tensor([-8, -7, 0, 7, 1, 2, 3, 4], dtype=torch.int8).reshape(8, 1)
    quantized = QuantizedTensor(codes.expand(8, 16), torch.ones(8, 1), zeros)
    tensors = encode("x", quantized, Scheme(4, symmetric=False))
    assert tensors["x.weight_zero_point"].tolist() == [[0xCBA9F810 - (1 << 32)]]
    assert tensors["x.weight_shape"].tolist() == [8, 16]


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("int4-g32", 4.5),
        ("int4-g128", 4.125),
        ("int3-g32", 3.5),
        ("int8-g128", 8.125),
        ("int8", 8 + 16 / 4096),
        ("w8a8-dynamic", 8 + 16 / 4096),
        ("int4-g128-asym", 4 + (16 + 4) / 128),
    ],
)
def test_bits_per_weight_of_a_bf16_layer(name: str, bits: float) -> None:
    assert 8 * payload_bytes((4096, 4096), Scheme.parse(name), torch.bfloat16) / 4096**2 == bits


def test_shape_is_stored_for_packed_weights_only() -> None:
    packed, plain = Scheme.parse("int8"), Scheme.parse("w8a8-dynamic")
    assert stored_bytes((8, 64), packed, torch.bfloat16) == 8 * 64 + 8 * 2 + 16
    assert stored_bytes((8, 64), plain, torch.bfloat16) == 8 * 64 + 8 * 2


@given(
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from(["", "-g4", "-g32", "-tensor"]),
    st.booleans(),
    st.integers(1, 70),
    st.integers(1, 5),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_bytes_equal_those_written(
    bits: int, size: str, asym: bool, out_features: int, groups: int, dtype: torch.dtype
) -> None:
    scheme = Scheme.parse(f"int{bits}{size}{'-asym' if asym else ''}")
    in_features = groups * (scheme.group_size or 7)
    grid = scheme.scale_shape(out_features, in_features)
    quantized = QuantizedTensor(
        torch.zeros(out_features, in_features, dtype=torch.int8),
        torch.ones(grid, dtype=dtype),
        torch.zeros(grid, dtype=torch.int8) if asym else None,
    )
    written = sum(tensor.numel() * tensor.itemsize for tensor in encode("layer", quantized, scheme).values())
    assert stored_bytes((out_features, in_features), scheme, dtype) == written


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("parts", "scheme", "message"),
    [
        ((torch.zeros(4, 64), torch.ones(4, 2)), "int4-g32", "wanted int8"),
        ((torch.zeros(4, 64, dtype=torch.int8), torch.ones(4, 1)), "int4-g32", r"wants \[4, 2\]"),
        ((torch.zeros(4, 48, dtype=torch.int8), torch.ones(4, 1)), "int4-g32", "no multiple"),
        ((torch.zeros(4, 64, dtype=torch.int8), torch.ones(4, 2)), "int4-g32-asym", "zeros are missing"),
        ((torch.zeros(4, 64, dtype=torch.int8), torch.ones(4, 1)), "w8a8-static", "cannot be written"),
    ],
)
def test_encode_refuses(parts: tuple[torch.Tensor, torch.Tensor], scheme: str, message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        encode("block.0.x", QuantizedTensor(*parts), Scheme.parse(scheme))


def test_decode_refuses_what_the_scheme_does_not_say() -> None:
    scheme = Scheme.parse("int4-g32-asym")
    tensors = encode("x", random_quantized(scheme, 8, 64, torch.float16), scheme)

    def changed(**parts: Tensor | None) -> dict[str, Tensor]:
        new = tensors | {f"x.{key}": value for key, value in parts.items()}
        return {key: value for key, value in new.items() if value is not None}

    for broken, message in [
        (changed(weight_zero_point=None), "has no x.weight_zero_point"),
        (changed(weight_scale=torch.ones(8, 1)), r"weight_scale.*wants.*\[8, 2\]"),
        (changed(weight_packed=torch.zeros(8, 7, dtype=torch.int32)), r"weight_packed.*\[8, 8\]"),
        (changed(weight_shape=torch.tensor([8, 60])), "no multiple"),
        (changed(weight_shape=torch.tensor([8.0, 64.0])), "weight_shape"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            decode("x", broken, scheme)


BLOCK = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj")
LINEARS = [f"model.layers.{block}.{linear}" for block in range(3) for linear in (*BLOCK, "mlp.down_proj")]


def mixed() -> dict[str, Scheme]:
    down, rest = Scheme.parse("int8"), Scheme.parse("int4-g32")
    return {name: down if name.endswith("down_proj") else rest for name in LINEARS[7:]}


HEAD = r"re:(?:(?:model|language_model)\.)*"
REST = r"(?:self_attn\.(?:q_proj|k_proj|v_proj|o_proj)|mlp\.(?:gate_proj|up_proj|down_proj))$"


def test_what_is_written() -> None:
    config = quantization_config(dict.fromkeys(LINEARS, Scheme.parse("int4-g128")), ["lm_head"])
    assert config == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": [HEAD + r"layers\.\d+\." + REST],
                "format": "pack-quantized",
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": 128,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": [r"re:(?:.*\.)?lm_head$"],
        "kv_cache_scheme": None,
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name != "w8a8-dynamic"] + ["w8a8-dynamic"])
def test_config_is_read_back_as_the_same_scheme(name: str) -> None:
    scheme = Scheme.parse(name)
    config = quantization_config(dict.fromkeys(LINEARS, scheme), ["lm_head"])
    assert config.get("dequantize", False) == (not scheme.symmetric)
    table = schemes_of(config)
    assert table.scheme_for("model.layers.1.mlp.up_proj") == scheme
    assert table.scheme_for("lm_head") is KEEP
    assert table.scheme_for("model.norm", "LlamaRMSNorm") is KEEP


def test_mixed_schemes_have_disjoint_names() -> None:
    config = quantization_config(mixed(), ["lm_head", *LINEARS[:7]])
    assert config["format"] == "pack-quantized"
    assert [group["targets"] for group in config["config_groups"].values()] == [
        [HEAD + r"layers\.(?:1|2)\." + REST.replace("|down_proj", "")],
        [HEAD + r"layers\.(?:1|2)\.mlp\.down_proj$"],
    ]
    table = schemes_of(config)
    assert {name: table.scheme_for(name) for name in LINEARS[7:]} == mixed()
    assert table.scheme_for(LINEARS[0]) is KEEP
    schemes = mixed() | {LINEARS[0]: Scheme.parse("w8a8-dynamic")}
    assert quantization_config(schemes, [])["format"] == "mixed-precision"
    asymmetric = {name: Scheme(scheme.bits, symmetric=False) for name, scheme in mixed().items()}
    assert "dequantize" not in quantization_config(asymmetric, [])


def test_config_refuses() -> None:
    with pytest.raises(QuantizationError, match="both"):
        quantization_config({"a.0.b": Scheme(8)}, ["a.0.b"])
    with pytest.raises(QuantizationError, match="no module"):
        quantization_config({}, ["lm_head"])
    with pytest.raises(QuantizationError, match="cannot be written"):
        quantization_config({"a.0.b": KEEP}, [])


def test_foreign_configs() -> None:
    ours = quantization_config({"a.0.b": Scheme.parse("int4-g128")}, [])

    def read(top: dict | None = None, group: dict | None = None, **weights: object) -> Scheme | None:
        first = ours["config_groups"]["group_0"]
        changed = first | (group or {}) | {"weights": first["weights"] | weights}
        table = schemes_of(ours | {"config_groups": {"g": changed}} | (top or {}))
        return table.scheme_for("a.0.b")

    int4 = Scheme.parse("int4-g128")
    assert read(observer="mse", observer_kwargs={}, actorder="static", zp_dtype="torch.int8") == int4
    assert read(group={"format": None}) == int4
    assert read(strategy="channel", group_size=None) == Scheme(4)
    assert read(strategy=None, group_size=-1) == Scheme(4)
    assert read(group={"targets": [r"re:.*0\.b$"]}) == int4
    assert read(actorder="group") is None
    assert read(type="float") is None
    assert read(num_bits=5) is None
    for wrong in ("128", "", 128.0, True, {}, [128], 0, -1, -128):
        assert read(group_size=wrong) is None
    assert all(read(num_bits=wrong) is None for wrong in ("4", 4.0, [4], None))
    assert all(read(symmetric=wrong) is None for wrong in ("true", 1, None))
    assert all(read(strategy=wrong) is None for wrong in ([], {"a": 1}, 1, "Group"))
    assert read(strategy="block", block_structure=[128, 128]) is None
    assert read(secret=1) is None
    assert read(group={"format": "int-quantized"}) is None
    assert read(group={"input_activations": {"num_bits": 8, "strategy": "token", "dynamic": True}}) is None
    assert read(group={"output_activations": {"num_bits": 8}}) is None
    assert read(top={"quantization_status": "frozen"}) is None
    assert read(top={"transform_config": {"config_groups": {"u": {}}}}) is None
    assert schemes_of(ours | {"config_groups": {"W4A16": ["Linear"]}}).scheme_for("a") is None
    with pytest.raises(CheckpointError, match="quant_method 'gptq'"):
        schemes_of({"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="no list of targets"):
        schemes_of(ours | {"config_groups": {"g": {"weights": {}}}})


def test_activations_of_other_tools() -> None:
    ours = quantization_config({"a.0.b": Scheme.parse("w8a8-dynamic")}, [])

    def read(**inputs: object) -> Scheme | None:
        first = ours["config_groups"]["group_0"]
        changed = first | {"input_activations": first["input_activations"] | inputs}
        return schemes_of(ours | {"config_groups": {"g": changed}}).scheme_for("a.0.b")

    assert read(observer=None) == Scheme(8, activations="dynamic")
    assert read(strategy="tensor", dynamic=False, observer="minmax") == Scheme(8, activations="static")
    assert read(strategy="tensor") is None
    assert read(dynamic=False) is None
    assert read(strategy="tensor", dynamic=False, symmetric=False) is None
    assert read(symmetric=False) is None
    assert read(num_bits=4) is None
    assert read(type="float") is None


def test_matching_order_is_that_of_compressed_tensors() -> None:
    groups = {
        "a": {"targets": ["Linear"], "weights": {"num_bits": 2, "strategy": "channel"}},
        "b": {"targets": ["re:.*b"], "weights": {"num_bits": 4, "strategy": "channel"}},
        "c": {"targets": ["re:.*a.*"], "weights": {"num_bits": 3, "strategy": "channel"}},
        "d": {"targets": ["x.ab"], "weights": {"num_bits": 8, "strategy": "channel"}},
    }
    table = schemes_of(
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": ["re:skip"],
        }
    )
    cases = {"x.ab": 8, "y.ab": 3, "y.b": 4, "y.c": 2, "skip.ab": 16, "do.skip.ab": 3}
    assert {name: scheme.bits for name in cases if (scheme := table.scheme_for(name))} == cases

    matching = pytest.importorskip("compressed_tensors.utils.match")
    by_target = {target: group["weights"]["num_bits"] for group in groups.values() for target in group["targets"]}
    module = torch.nn.Linear(1, 1)
    for name, bits in cases.items():
        if bits != 16:
            assert by_target[matching.match_targets(name, module, by_target)[0]] == bits
