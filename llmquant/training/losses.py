"""Distillation: the loss of any trainer becomes the divergence from the model before quantization.

A hook replaces the `loss` of the model's own output, so no trainer needs to know (the loss is that of QAD, arXiv
2601.20088). Position t counts where the model's own loss counts it: if token t + 1 is a label.

Legend: N positions, P of them that count, V vocabulary, K compared tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llmquant.errors import DataError
from llmquant.hf.qat import qat_state
from llmquant.recipe.qat import Loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AT_ONCE = 1 << 22  # logits whose probabilities are held in float32
_NOT_FOR_THE_TEACHER = ("labels", "num_items_in_batch", "past_key_values", "use_cache")


def distill(model: PreTrainedModel, teacher: PreTrainedModel, loss: Loss | None = None) -> None:
    """Make `kl * KL(teacher || model) + cross_entropy * (the model's own loss)` the loss of a prepared model.

    Whenever the model is called with `labels` its output has this `loss`; `convert_qat` ends it.

    Args:
        model: as `prepare_qat` made it.
        teacher: the model before quantization; it is moved to the device of `model`, is not trained, and is not saved.
        loss: by default that of the recipe.

    Raises:
        DataError: if the vocabularies differ.
        CheckpointError: if the model was not prepared.
    """
    state, sizes = qat_state(model), [each.config.get_text_config().vocab_size for each in (model, teacher)]
    loss = loss or state.qat.loss
    if sizes[0] != sizes[1]:
        raise DataError(
            f"the teacher has {sizes[1]} tokens, the model {sizes[0]}; a teacher is the model before quantization, or "
            "another with the same tokenizer"
        )
    if not loss.kl:
        return
    teacher.eval().requires_grad_(False)
    hook = _Hook(teacher, loss)
    state.hooks += hook.attach(model)


class _Hook:
    def __init__(self, teacher: PreTrainedModel, loss: Loss) -> None:
        self._teacher, self._loss = teacher, loss
        self._labels: Tensor | None = None

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        return [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]

    def _before(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Keep the labels; the model's own loss is not computed where it does not count."""
        self._labels = kwargs.get("labels")
        if not self._loss.cross_entropy and self._labels is not None:
            kwargs = {name: value for name, value in kwargs.items() if name != "labels"}
        return args, kwargs

    def _after(self, _: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        labels, self._labels = self._labels, None
        if labels is None:
            return None
        if not isinstance(output, Mapping) or output.get("logits") is None:
            raise DataError(
                "distillation needs the model's logits, by name: do not call it with return_dict=False, nor in a "
                "trainer that computes its loss without them (such as TRL's SFTTrainer, which takes cross entropy)"
            )
        kl = self._divergence(args, kwargs, output["logits"], labels)
        own = output.get("loss")
        total = self._loss.kl * kl if own is None else self._loss.kl * kl + self._loss.cross_entropy * own
        kind: Any = type(output)
        return kind(loss=total, **{name: value for name, value in output.items() if name != "loss"})

    def _divergence(self, args: tuple, kwargs: Mapping[str, Any], logits: Tensor, labels: Tensor) -> Tensor:
        if self._teacher.device != logits.device:
            self._teacher.to(logits.device)  # pyright: ignore[reportArgumentType]
        asked = {name: value for name, value in kwargs.items() if name not in _NOT_FOR_THE_TEACHER}
        with torch.no_grad():
            wanted = self._teacher(*args, **asked, use_cache=False).logits
        counted = nn.functional.pad(labels[:, 1:] != -100, (0, 1)).flatten().nonzero().squeeze(-1)
        items = kwargs.get("num_items_in_batch")
        mine, theirs = logits.flatten(0, 1), wanted.flatten(0, 1)
        total = divergence(mine, theirs, counted, self._loss.temperature, self._loss.top_k)
        return total / max(1, len(counted) if items is None else items)  # labels may all be -100


def divergence(
    logits: Float[Tensor, "N V"],
    wanted: Float[Tensor, "N V"],
    rows: Int64[Tensor, " P"],
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Float[Tensor, ""]:
    """Sum over the positions `rows` of KL(softmax(wanted / T) || softmax(logits / T)) times T^2, in nats.

    With `top_k` the teacher's most likely K tokens are compared, and the rest as one more. The gradient reaches
    `logits`; it is made in the forward pass, a few positions at a time, so that nothing but it is kept.
    """
    return _Divergence.apply(logits, wanted, rows, temperature, top_k)  # pyright: ignore[reportReturnType]


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, wanted: Tensor, rows: Tensor, temperature: float, top_k: int | None
    ) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        totals = []
        vocabulary = logits.shape[-1]
        compare = _whole if top_k is None or top_k >= vocabulary else _top
        for some in rows.split(max(1, _AT_ONCE // vocabulary)):
            mine, theirs = ((each[some].float() / temperature).log_softmax(-1) for each in (logits, wanted))
            kl, difference = compare(mine, theirs, top_k or 0)
            totals.append(kl)
            if gradient is not None:
                gradient[some] = (difference * temperature).to(gradient.dtype)  # T^2 / T
        ctx.save_for_backward(gradient)
        return torch.stack(totals).sum() * temperature**2

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else gradient * upstream.to(gradient.dtype), None, None, None, None


def _whole(mine: Tensor, theirs: Tensor, _: int) -> tuple[Tensor, Tensor]:
    """KL of log-probabilities, and its gradient by the student's logits: q - p."""
    wanted = theirs.exp()
    return (wanted * (theirs - mine)).sum(), mine.exp() - wanted


def _top(mine: Tensor, theirs: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The same where only K tokens, and the rest R as one, are told apart: outside of them q (1 - p_R / q_R)."""
    best, which = theirs.topk(top_k, -1)
    p, log_q = best.exp(), mine.gather(-1, which)
    tiny = torch.finfo(torch.float32).tiny
    p_rest = (1 - p.sum(-1, keepdim=True)).clamp(min=tiny)
    q = mine.exp()
    q_rest = q.scatter(-1, which, 0.0).sum(-1, keepdim=True).clamp(min=tiny)  # not 1 - the others, which cancels
    kl = (p * (best - log_q)).sum(-1, keepdim=True) + p_rest * (p_rest.log() - q_rest.log())
    gradient = (q * (1 - p_rest / q_rest)).scatter(-1, which, log_q.exp() - p)
    return kl.sum(), gradient
