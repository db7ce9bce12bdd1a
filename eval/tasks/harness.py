"""A loaded model answers tasks, through the harness's own code for Hugging Face models."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import CacheHook
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import LogitsProcessor, LogitsProcessorList

from llmquant.errors import DataError, QuantizationError
from llmquant.eval.tasks.load import FEWSHOT_SEED, Loaded
from llmquant.eval.tasks.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmquant.progress import Progress

_LOGITS = 64_000_000  # held at once where no batch size is given; the harness makes as many log-probabilities of them
_LARGEST_BATCH = 32
_GENERATED_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says to one document.

    Attributes:
        id: number of the document in its task.
        hash: of its contents.
        responses: log-likelihoods of the choices in nats, or texts.
        scores: what each measure makes of it, by the measure's name.
    """

    id: int
    hash: str
    responses: tuple[float | str, ...]
    scores: dict[str, Any] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether all log-likelihoods are."""
        return all(isinstance(each, str) or math.isfinite(each) for each in self.responses)


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    loaded: Loaded,
    progress: Progress,
    *,
    who: str,
    limit: int | None = None,
    batch_size: int | None = None,
) -> dict[str, tuple[Answer, ...]]:
    """The answers to each task's documents, in their order.

    Texts begin with BOS where the tokenizer's default says so, and no chat template is applied.

    Args:
        who: name of the model, for the progress.
        limit: use only each task's first documents.
        batch_size: sequences at once; by default what fits into a moderate memory.

    Raises:
        DataError: if an answer is longer than the model's context.
        QuantizationError: if the model gives no finite logits for a text that it should generate.
    """
    for task in loaded.tasks.values():
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    training = model.training
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(FEWSHOT_SEED)
        tasks: Any = {"tasks": dict(loaded.tasks)}
        try:
            harness: Any = _Harness(model, copy.deepcopy(tokenizer), progress, who, batch_size)
            found: Any = evaluate(harness, tasks, limit=limit, bootstrap_iters=0, log_samples=True)
        finally:
            model.train(training)
    return {name: _answers(samples) for name, samples in found["samples"].items()}


def _answers(samples: Sequence[Mapping[str, Any]]) -> tuple[Answer, ...]:
    """One answer a document; where a task has several filters, its measures are named by them."""
    found: dict[int, Answer] = {}
    for sample in samples:
        responses = tuple(_response(each[0]) for each in sample["resps"])
        answer = found.setdefault(sample["doc_id"], Answer(sample["doc_id"], sample["doc_hash"][:16], responses))
        suffix = "" if sample["filter"] == "none" else f", {sample['filter']}"
        answer.scores.update({f"{name}{suffix}": sample[name] for name in sample["metrics"]})
    return tuple(found.values())


def _response(given: Any) -> float | str:
    """A text, or a log-likelihood; beside some the harness puts whether it is that of the most likely text."""
    return given if isinstance(given, str) else float(given[0] if isinstance(given, tuple) else given)


_Base: Any = HFLM  # its decorator leaves no type


class _Harness(_Base):
    """The harness's model with our progress, and batches that fit into memory."""

    def __init__(self, model: Any, tokenizer: Any, progress: Progress, who: str, batch_size: int | None) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size or 1)
        self._progress, self._who, self._given = progress, who, batch_size

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        if self.prefix_token_id is None and any(not request.args[0] for request in requests):
            raise DataError("a task without a prompt needs a token to begin with; the tokenizer has no BOS and no EOS")
        self._begin(requests)
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        self._begin(requests)
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        if self.eot_token_id is None:
            raise DataError("a task in which the model writes needs a token to end with; the tokenizer has no EOS")
        self._begin(requests)
        self.batch_size_per_gpu = self._given or _GENERATED_AT_ONCE
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _begin(self, requests: Any) -> None:
        documents = len({(request.task_name, request.doc_id) for request in requests})
        self._progress.stage(f"tasks: {self._who}", documents, unit="documents")
        self.set_cache_hook(_Counter(self._progress, documents, len(requests)))

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        longest = max(len(context) + len(continuation) for _, context, continuation in requests)
        answer = max(len(continuation) for _, _, continuation in requests)
        if answer > self.max_length:  # a longer question loses its beginning; an answer cannot
            raise DataError(
                f"an answer of a task has {answer} tokens, and the context of {self._who} ends at {self.max_length}; "
                "choose another task, or a model with a longer context"
            )
        fits = _LOGITS // (min(longest, self.max_length) * self.model.config.get_text_config().vocab_size)
        self.batch_size_per_gpu = self._given or min(max(1, fits), _LARGEST_BATCH)
        return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **given: Any) -> Any:
        given["logits_processor"] = LogitsProcessorList([_Finite(self._who)])
        return super()._model_generate(context, max_length, stop, **given)


class _Counter(CacheHook):
    """What the harness tells of each answer, for a cache; one document may have several."""

    def __init__(self, progress: Progress, documents: int, answers: int) -> None:
        super().__init__(None)
        self._progress, self._documents, self._answers = progress, documents, answers
        self._answered = self._told = 0

    def add_partial(self, attr: str, req: Any, res: Any) -> None:  # noqa: ARG002 - the harness's interface
        self._answered += 1
        done = self._answered * self._documents // self._answers
        if done > self._told:
            self._progress.step(steps=done - self._told)
            self._told = done


class _Finite(LogitsProcessor):
    """Refuses to take the most likely of tokens that have no likelihood."""

    def __init__(self, who: str) -> None:
        self._who = who

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ARG002 - the interface of transformers
        if scores.isnan().any() or (scores == math.inf).any():
            raise QuantizationError(f"{self._who} gives logits that are not finite, and so no text")
        return scores
