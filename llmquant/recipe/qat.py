"""The `qat:` section of a recipe: how the rounded weights are trained further.

Training starts from what the rest of the recipe gives, GPTQ's codes and scales for instance.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from llmquant.recipe.strict import Strict, at_key
from llmquant.recipe.text_name import check_text

CALIBRATION = "calibration"
Ranges = Literal["frozen", "minmax", "moving-average", "lsq", "scales-only"]


class Loss(Strict):
    """What is made small.

    Attributes:
        kl: weight of KL(teacher || student), the teacher being the model before quantization.
        cross_entropy: weight of the loss of the next token.
        temperature: by which the logits of both are divided for `kl`.
        top_k: of the teacher's tokens are compared, the rest as one more; None compares all.
    """

    kl: float = Field(default=1.0, ge=0)
    cross_entropy: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=1.0, gt=0, le=100)
    top_k: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check_sum(self) -> Loss:
        if not self.kl + self.cross_entropy:
            raise at_key("kl", "nothing to train for: kl and cross_entropy are both 0")
        return self


class Lora(Strict):
    """Train a low-rank change of each weight in place of the weight (Hu et al. 2021, arXiv 2106.09685).

    Attributes:
        rank: of the change.
        alpha: by which it is scaled, over `rank`.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)


class Qat(Strict):
    """Quantization-aware training.

    Attributes:
        ranges: of the grid. "frozen" keeps the scales that training starts from; "minmax" takes them from the weights
            at every step, "moving-average" averages those; "lsq" learns them beside the weights; "scales-only" learns
            nothing else of a quantized layer, its codes stay.
        train: "quantized" weights only, these and the "norms" (all that is no matrix), or "all" parameters. Those that
            are not quantized can only be trained in a model of 32 bits.
        lora: train a low-rank change in place of whole weights.
        loss: what is made small.
        text: to train on where the call names none: "calibration", which is the text of that section, or what
            `Calibration.dataset` takes. With a text, `llmquant quantize` trains.
        fake_quant_after_n_steps: steps before that compute with weights that are not rounded.
        freeze_after: share of all steps after which ranges no longer move.
        epochs: over the training text; with `steps`, which comes first ends it.
        steps: of the optimizer; None means whole epochs.
        batch: sequences at once on all devices together.
        length: tokens of a sequence.
        learning_rate: of weights, in units of the mean scale of their layer: 0.01 is a hundred updates to the next
            integer.
        scale_learning_rate: of scales, relative to each scale, and of vectors that are trained.
        weight_decay: of matrices that are trained; never of scales.
        warmup: share of all steps in which the learning rates rise.
        seed: of the order of the text and of whatever else is random.
    """

    ranges: Ranges = "lsq"
    train: Literal["quantized", "norms", "all"] = "norms"
    lora: Lora | None = None
    loss: Loss = Field(default_factory=Loss)
    text: str | None = None
    fake_quant_after_n_steps: int = Field(default=0, ge=0)
    freeze_after: float = Field(default=1.0, ge=0, le=1)
    epochs: float = Field(default=1.0, gt=0)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=8, ge=1)
    length: int = Field(default=512, ge=2)
    learning_rate: float = Field(default=4e-3, gt=0, le=1)
    scale_learning_rate: float = Field(default=1e-4, gt=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=1 << 63)

    @field_validator("text")
    @classmethod
    def _check_text(cls, name: str | None) -> str | None:
        return name if name in (None, CALIBRATION) else check_text(name)

    @model_validator(mode="after")
    def _check_together(self) -> Qat:
        if self.ranges == "scales-only":
            for key in ("lora", "fake_quant_after_n_steps"):
                if getattr(self, key):
                    raise at_key(key, f"with ranges scales-only the codes never change; remove {key}")
        return self
