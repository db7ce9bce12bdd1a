"""Health of single weights against what was put into them."""

import math

import pytest
import torch

from llmquant.debugging.symptoms import odd_ones, symptoms
from llmquant.debugging.weight_health import WeightHealth, code_health, scale_health
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

INT4 = Scheme.parse("int4-g32")


def weight(codes, scales, scheme=INT4, zeros=None, name="model.layers.0.mlp.up_proj", **more):
    quantized = QuantizedTensor(codes, scales, zeros)
    shape = (codes.shape[0], codes.shape[1])
    parts = {"scales": scale_health(quantized), "codes": code_health(quantized, scheme)}
    return WeightHealth(name=name, scheme=scheme.name, shape=shape, bytes=0, **parts, **more)


def normal(rows=64, columns=128, spread=2.5):
    return (torch.randn(rows, columns) * spread).round().clamp(-8, 7).to(torch.int8)


def kinds(found):
    return [each.kind for each in symptoms(found)]


def test_a_flat_histogram_has_all_its_bits():
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(512)[torch.randperm(8192)].view(64, 128)
    found = code_health(QuantizedTensor(codes, torch.ones(64, 4)), INT4)
    assert found.entropy == pytest.approx(4)
    assert found.used == 16
    assert found.at_ends == pytest.approx(2 / 16)
    assert not kinds(weight(codes, torch.ones(64, 4)))


def test_rows_are_looked_at_in_parts(monkeypatch):
    codes = normal()
    codes[5], codes[:, 7], codes[40] = 0, 0, 0
    whole = code_health(QuantizedTensor(codes, torch.ones(64, 4)), INT4)
    monkeypatch.setattr("llmquant.debugging.weight_health._CHUNK", 1000)
    assert code_health(QuantizedTensor(codes, torch.ones(64, 4)), INT4) == whole
    assert (whole.dead_rows, whole.dead_columns) == ((5, 40), (7,))


@pytest.mark.parametrize("per_tensor", [False, True])
def test_what_equals_its_zero_point_is_dead(per_tensor):
    scheme = Scheme.parse("int4-tensor-asym" if per_tensor else "int4-g32-asym")
    codes = normal()
    zeros = torch.full((1, 1) if per_tensor else (64, 4), 3, dtype=torch.int8)
    codes[9] = 3
    found = weight(codes, torch.ones(zeros.shape), scheme, zeros)
    assert found.codes.dead_rows == (9,)
    assert kinds(found) == ["dead-rows"]


def test_codes_that_were_clipped():
    assert kinds(weight(normal(spread=9), torch.ones(64, 4))) == ["saturated"]


def test_int4_that_is_int2():
    found = weight(normal(spread=0.5).clamp(-2, 1), torch.ones(64, 4))
    assert kinds(found) == ["few-codes"]
    assert "4 of the 16 codes" in next(symptoms(found)).what


def test_scales_of_every_bad_kind():
    scales = torch.ones(64, 4, dtype=torch.float16)
    scales[0, 0], scales[1, 1], scales[2, 2], scales[3, 3], scales[4] = math.nan, -math.inf, 0, 1e-5, 20
    found = weight(normal(), scales)
    assert (found.scales.nan, found.scales.infinite, found.scales.zero, found.scales.subnormal) == (1, 1, 1, 1)
    assert (found.scales.smallest, found.scales.median, found.scales.largest) == (pytest.approx(1e-5, rel=0.01), 1, 20)
    assert kinds(found) == ["scale-nan", "scale-infinite", "scale-zero", "scale-subnormal", "scale-outlier"]


def test_a_negative_scale_is_one():
    assert not kinds(weight(normal(), -torch.ones(64, 4)))


def test_one_scale_of_zero_for_a_whole_tensor():
    assert weight(normal(), torch.zeros(1, 1), Scheme.parse("int4-tensor")).scales.zero == 1


@pytest.mark.parametrize(("scale", "bad"), [(0.01, False), (0.0, True), (math.nan, True), (-1.0, True)])
def test_the_scale_of_activations(scale, bad):
    codes = (torch.randn(64, 128) * 30).round().clamp(-128, 127).to(torch.int8)
    found = weight(codes, torch.ones(64, 1), Scheme.parse("w8a8-static"), input_scale=scale)
    assert kinds(found) == ["input-scale"] * bad


def test_the_one_of_fewer_bits_is_named_and_a_mixture_is_not():
    def layer(block, name):
        scheme = Scheme.parse(name)
        codes = normal().clamp(scheme.code_min, scheme.code_max)
        return weight(codes, torch.ones(64, 4), scheme, name=f"model.layers.{block}.mlp.up_proj")

    found = list(odd_ones([layer(block, "int2-g32" if block == 3 else "int4-g32") for block in range(6)]))
    assert [each.where for each in found] == [("model.layers.3.mlp.up_proj",)]
    assert "int2-g32 where the others of its kind are int4-g32" in found[0].what
    assert not list(odd_ones([layer(block, "int3-g32" if block % 2 else "int4-g32") for block in range(6)]))
    assert not list(odd_ones([layer(block, "int8-g32" if block == 3 else "int4-g32") for block in range(6)]))
