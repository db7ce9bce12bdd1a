"""The callback in transformers' own Trainer."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from llmquant.compat.training import recompute
from llmquant.errors import CheckpointError, QuantizationError
from llmquant.hf.qat import fake_layers
from llmquant.training.callback import QatCallback, forget
from llmquant.training.optimizer import make_optimizer
from tests.engine.conftest import tiny_llama
from tests.training.conftest import prepared, trainer

pytestmark = pytest.mark.usefixtures("reference_kernels", "quiet")
FACTS = {"scale_drift", "codes_flipped", "codes_flipped_since_log", "dead_zone"}


def changes(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for name, parameter in model.named_parameters() if "scale_change" in name]


def test_the_log_tells_how_the_grid_moved(tmp_path: Path) -> None:
    model = prepared()
    first = {name: layer.quantized() for name, layer in fake_layers(model).items()}
    run = trainer(model, tmp_path)
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logs) == 8
    assert all(entry.keys() > FACTS for entry in logs)
    assert not FACTS & run.state.log_history[-1].keys()  # the summary is no loss
    flipped = drift = zeros = codes = scales = 0.0
    for name, layer in fake_layers(model).items():
        now = layer.quantized()
        flipped += int((now.codes != first[name].codes).sum())
        zeros += int((now.codes == 0).sum())
        drift += float((now.scales.float() / first[name].scales.float()).log().abs().sum())
        codes, scales = codes + now.codes.numel(), scales + now.scales.numel()
    assert logs[-1]["codes_flipped"] == pytest.approx(flipped / codes)
    assert flipped > 0
    assert logs[-1]["dead_zone"] == pytest.approx(zeros / codes)
    assert logs[-1]["scale_drift"] == pytest.approx(drift / scales, rel=1e-4)
    assert logs[0]["codes_flipped"] == logs[0]["codes_flipped_since_log"]
    assert logs[-1]["codes_flipped_since_log"] < logs[-1]["codes_flipped"]


def test_of_asymmetric_grids_the_zero_point_is_the_dead_zone(tmp_path: Path) -> None:
    model = prepared(scheme="int3-g16-asym", ranges="minmax")
    run = trainer(model, tmp_path)
    run.train()
    read = torch.cat([layer.quantized().dequantize().flatten() for layer in fake_layers(model).values()])
    assert run.state.log_history[-2]["dead_zone"] == pytest.approx((read == 0).float().mean().item())


def test_rounding_begins_and_ranges_freeze_at_their_steps(tmp_path: Path) -> None:
    model = prepared(fake_quant_after_n_steps=2, freeze_after=0.5)
    seen: list[tuple[bool, bool]] = []
    layer = next(iter(fake_layers(model).values()))
    held: list[list[torch.Tensor]] = []

    def look(*_: object) -> None:
        seen.append((layer.fake_quant, layer.ranges_frozen))
        held.append(changes(model))

    model.register_forward_pre_hook(look)
    trainer(model, tmp_path).train()
    assert seen == [(step >= 2, step >= 4) for step in range(8)]
    assert not all(map(torch.equal, held[3], held[4]))
    assert all(map(torch.equal, held[4], changes(model)))  # no momentum went on


def test_resumed_it_does_what_was_not_interrupted(tmp_path: Path) -> None:
    kinds = {"fake_quant_after_n_steps": 1, "freeze_after": 0.5}
    saving = {"save_strategy": "steps", "save_steps": 4}
    whole = prepared(**kinds)
    straight = trainer(whole, tmp_path, **saving)
    straight.train()
    again = prepared(**kinds)
    resumed = trainer(again, tmp_path, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))  # where ranges freeze
    wanted, found = whole.state_dict(), again.state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    for key in ("codes_flipped", "scale_drift"):
        assert straight.state.log_history[-2][key] == resumed.state.log_history[-2][key]


def test_scales_that_decay_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("llmquant").propagate = True
    trainer(prepared(), tmp_path, max_steps=1).train()
    assert "weight decay" not in caplog.text
    trainer(prepared(), tmp_path, max_steps=1, weight_decay=0.1).train()
    assert "scales are in an optimizer group with weight decay" in caplog.text


def test_what_diverges_is_named_and_checkpoints_stay(tmp_path: Path) -> None:
    model = prepared()
    run = trainer(model, tmp_path, save_strategy="steps", save_steps=3)
    layer = model.model.layers[1].mlp.up_proj

    def spoil(*_: object) -> None:
        if run.state.global_step == 3:
            layer.weight.data[2, 3] = torch.nan

    model.register_forward_pre_hook(spoil)
    with pytest.raises(QuantizationError, match=r"step 4: .*layers\.1\.mlp\.up_proj\.weight is not .*checkpoint-3 is"):
        run.train()
    assert (tmp_path / "checkpoint-3" / "model.safetensors").exists()
    assert not (tmp_path / "checkpoint-6").exists()


def test_an_overflow_is_named_too(tmp_path: Path) -> None:
    model = prepared()
    with torch.no_grad():
        model.model.layers[2].input_layernorm.weight[5] = 3e38
    with pytest.raises(QuantizationError, match=r"outputs of model\.layers\.2\.input_layernorm .*no checkpoint yet"):
        trainer(model, tmp_path).train()


def test_a_gradient_alone_is_named(tmp_path: Path) -> None:
    model = prepared()
    model.model.layers[1].mlp.register_full_backward_hook(lambda _module, inputs, _: (inputs[0] * torch.inf,))
    with pytest.raises(QuantizationError, match=r"gradient of model\.layers\.1\.post_attention_layernorm\.weight is"):
        trainer(model, tmp_path).train()


def test_a_model_that_was_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"llmquant\.prepare_qat"):
        trainer(tiny_llama(), tmp_path)


@pytest.mark.parametrize(("scheme", "ranges"), [("int4-g32", "moving-average"), ("w8a8-static", "lsq")])
def test_activations_that_are_computed_again_give_the_same_bits(tmp_path: Path, scheme: str, ranges: str) -> None:
    plain, again = (prepared(scheme=scheme, ranges=ranges) for _ in range(2))
    trainer(plain, tmp_path, max_steps=3).train()
    trainer(again, tmp_path, max_steps=3, **recompute(wanted=True)).train()
    wanted, found = plain.state_dict(), again.state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_in_bfloat16_by_autocast(tmp_path: Path) -> None:
    losses = {}
    for coarse in (False, True):
        model = prepared()
        run = trainer(model, tmp_path, bf16=coarse)
        layer, seen = model.model.layers[0].mlp.up_proj, set()
        layer.register_forward_hook(lambda _module, _inputs, output, seen=seen: seen.add(output.dtype))
        run.train()
        assert seen == {torch.bfloat16 if coarse else torch.float32}
        assert layer.weight.dtype == layer.weight_scale_change.dtype == torch.float32
        losses[coarse] = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[True] == pytest.approx(losses[False], rel=2e-3)
    assert losses[True] != losses[False]


def test_forget_keeps_the_count_of_steps() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    forget(optimizer, [weight])
    assert optimizer.state[weight]["step"] == 1
    assert not optimizer.state[weight]["exp_avg"].any()


def test_a_resumed_run_counts_flips_from_its_checkpoint_and_fp16_is_left_to_its_scaler() -> None:
    model, callback, control = prepared().train(), QatCallback(), TrainerControl()
    args: Any = SimpleNamespace(fp16=True)
    callback.on_init_end(args, TrainerState(), control, model=model)
    layer = model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        layer.weight.neg_()  # what the checkpoint holds
    state = TrainerState(global_step=3, max_steps=8, log_history=[{}])
    callback.on_train_begin(args, state, control, model=model, optimizer=make_optimizer(model))
    logs: dict[str, float] = {"loss": 1.0}
    callback.on_log(args, state, control, model=model, logs=logs)
    assert logs["codes_flipped"] > 0.01
    assert logs["codes_flipped_since_log"] == 0
    model(input_ids=torch.arange(8)[None])
    layer.weight.grad = torch.full_like(layer.weight, torch.nan)
    callback.on_pre_optimizer_step(args, state, control, model=model)
    args.fp16 = False
    with pytest.raises(QuantizationError, match="step 4"):
        callback.on_pre_optimizer_step(args, state, control, model=model)
    callback.on_train_end(args, state, control)
