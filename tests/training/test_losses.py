"""The divergence is that of float64, and so are its gradients; the hook gives it to any trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import llmquant
from llmquant.errors import DataError
from llmquant.recipe.qat import Loss
from llmquant.training import losses
from llmquant.training.losses import distill, divergence
from tests.engine.conftest import tiny_llama
from tests.hf.test_qat import TOKENS, recipe


def exact(logits: torch.Tensor, wanted: torch.Tensor, temperature: float, top_k: int | None) -> torch.Tensor:
    q, p = ((each.double() / temperature).softmax(-1) for each in (logits, wanted))
    if top_k is not None and top_k < p.shape[-1]:
        best, which = p.topk(top_k, -1)
        mine = q.gather(-1, which)
        p, q = (torch.cat([each, 1 - each.sum(-1, keepdim=True)], -1) for each in (best, mine))
    return (p * (p.log() - q.log())).sum() * temperature**2


@pytest.mark.parametrize("top_k", [None, 1, 7, 50, 60])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_in_float64(monkeypatch: pytest.MonkeyPatch, temperature: float, top_k: int | None) -> None:
    monkeypatch.setattr(losses, "_AT_ONCE", 200)  # four positions
    torch.manual_seed(0)
    logits, wanted = 3 * torch.randn(11, 50), 3 * torch.randn(11, 50)
    doubles = logits.double().requires_grad_()
    rows = torch.tensor([0, 1, 2, 4, 5, 6, 7, 9, 10])
    sizes: list[int] = []
    for name in ("_whole", "_top"):
        compare = getattr(losses, name)
        monkeypatch.setattr(losses, name, lambda mine, *more, do=compare: (sizes.append(len(mine)), do(mine, *more))[1])
    found = divergence(logits.requires_grad_(), wanted, rows, temperature, top_k)
    assert sizes == [4, 4, 1]
    expected = exact(doubles[rows], wanted[rows], temperature, top_k)
    (0.3 * found).backward()
    (0.3 * expected).backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert logits.grad is not None
    assert doubles.grad is not None
    torch.testing.assert_close(logits.grad.double(), doubles.grad, rtol=1e-4, atol=1e-6)


def test_equal_models_do_not_diverge() -> None:
    logits = torch.randn(5, 9, requires_grad=True)
    for top_k in (None, 3):
        found = divergence(logits, logits.detach(), torch.arange(5), top_k=top_k)
        found.backward()
        assert abs(found.item()) < 1e-6
        assert logits.grad is not None
        assert float(logits.grad.abs().max()) < 1e-6


def prepared(**loss: Any) -> tuple[Any, Any]:
    model: Any = llmquant.prepare_qat(tiny_llama().float(), recipe("int3-g32", loss={"kl": 1.0} | loss))
    teacher = tiny_llama().float()
    distill(model, teacher)
    return model, teacher


def by_hand(model: Any, teacher: Any, labels: torch.Tensor) -> torch.Tensor:
    rows = labels[:, 1:] != -100
    mine, theirs = (each(TOKENS).logits[:, :-1][rows] for each in (model, teacher))
    return exact(mine, theirs, 1.0, None).float() / rows.sum()


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0)  # divergences of 0.001, of which 1e-5 is a token


def test_the_loss_of_a_model_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model, teacher = prepared()
    monkeypatch.setattr(type(model), "loss_function", None)  # its own is not computed
    labels = TOKENS.clone()
    labels[:, 5:9] = -100
    output = model(input_ids=TOKENS, labels=labels)
    close(output.loss, by_hand(model, teacher, labels))
    assert output[0] is output.loss
    with_items = model(input_ids=TOKENS, labels=labels, num_items_in_batch=torch.tensor(70))
    close(with_items.loss * 70, output.loss * (labels[:, 1:] != -100).sum())
    assert model(input_ids=TOKENS).loss is None
    none = model(input_ids=TOKENS, labels=torch.full_like(labels, -100), num_items_in_batch=torch.tensor(0))
    assert float(none.loss.detach()) == 0
    output.loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0


def test_positions_count_by_the_token_that_follows() -> None:
    model, teacher = prepared()
    labels = TOKENS.clone()
    labels[:, 1:20] = -100
    close(model(TOKENS, labels=labels).loss, by_hand(model, teacher, labels))


def test_a_teacher_does_not_drop_out() -> None:
    model, teacher = llmquant.prepare_qat(tiny_llama(), recipe()), tiny_llama().train()
    distill(model, teacher, Loss())
    assert not teacher.training


def test_both_losses_are_mixed() -> None:
    model, teacher = prepared(kl=0.25, cross_entropy=0.75)
    plain = llmquant.prepare_qat(tiny_llama().float(), recipe("int3-g32"))
    wanted = 0.25 * by_hand(model, teacher, TOKENS) + 0.75 * plain(TOKENS, labels=TOKENS).loss
    close(model(TOKENS, labels=TOKENS).loss, wanted)


def test_outputs_without_logits_are_refused() -> None:
    model, _ = prepared()
    with pytest.raises(DataError, match="needs the model's logits"):
        model(TOKENS, labels=TOKENS, return_dict=False)
    model.register_forward_hook(lambda *_: {"loss": None, "logits": None}, prepend=True)
    with pytest.raises(DataError, match="needs the model's logits"):
        model(TOKENS, labels=TOKENS)


def test_converting_ends_it() -> None:
    model, _ = prepared()
    packed = llmquant.convert_qat(model)
    with torch.no_grad():
        loss = packed(TOKENS, labels=TOKENS).loss
    logits = packed(TOKENS).logits[:, :-1].float()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[0], TOKENS[0, 1:]))


def test_only_cross_entropy_needs_no_teacher() -> None:
    model: Any = llmquant.prepare_qat(tiny_llama(), recipe())
    distill(model, tiny_llama(), Loss(kl=0.0, cross_entropy=1.0))
    assert not model._forward_hooks


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    model: Any = llmquant.prepare_qat(tiny_llama(), recipe())
    with pytest.raises(DataError, match="teacher has 300 tokens, the model 257"):
        distill(model, tiny_llama(vocab_size=300))
