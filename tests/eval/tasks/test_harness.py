"""Answers of tiny models, against our own arithmetic and against the harness's own definitions of the tasks."""

from __future__ import annotations

import copy
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.tasks import TaskManager

import llmquant
from llmquant.errors import DataError, QuantizationError
from llmquant.eval.tasks.harness import ask
from llmquant.eval.tasks.load import Loaded, load
from llmquant.eval.tasks.local import definitions
from llmquant.progress import Progress
from tests.engine.conftest import byte_tokenizer, tiny_llama
from tests.eval.conftest import Seen
from tests.eval.tasks.conftest import LAMBADA, PIQA, lines

NAMES = ("lambada", "piqa", "blimp")
OWN = Path(__import__("lm_eval").__file__).parent / "tasks"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama().float()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def answers(model: Any, tokenizer: Any, loaded: Loaded, **given: Any) -> dict[str, Any]:
    return ask(model, tokenizer, loaded, given.pop("progress", Progress()), who="quantized", **given)


def log_likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """Of a continuation, in float64 from the logits; an empty context is BOS."""
    ids = tokenizer(context + continuation, return_tensors="pt")["input_ids"]
    start = len(tokenizer(context)["input_ids"])
    with torch.no_grad():
        scores = model(ids).logits[0].double().log_softmax(-1)
    return sum(float(scores[at - 1, ids[0, at]]) for at in range(start, ids.shape[1]))


def test_log_likelihoods_are_those_of_the_texts(model, tokenizer, files) -> None:
    found = answers(model, tokenizer, load(NAMES, files, ()))
    assert list(found) == ["lambada_openai", "piqa", "blimp_adjunct_island", "blimp_wh_island"]
    for text, answer in zip(LAMBADA, found["lambada_openai"], strict=True):
        context, _, word = text.rpartition(" ")
        assert answer.responses == pytest.approx((log_likelihood(model, tokenizer, context, f" {word}"),), abs=1e-4)
    for (goal, *ways), label, answer in zip(PIQA, (0, 1), found["piqa"], strict=True):
        prompt = f"Question: {goal}\nAnswer:"
        expected = [log_likelihood(model, tokenizer, prompt, f" {way}") for way in ways]
        assert answer.responses == pytest.approx(expected, abs=1e-4)
        assert answer.scores["acc"] == (expected[label] == max(expected))
        normed = [each / len(way) for each, way in zip(expected, ways, strict=True)]
        assert answer.scores["acc_norm"] == (normed[label] == max(normed))
    (expected,) = (log_likelihood(model, tokenizer, "", " Who should he hug?"),)
    assert found["blimp_adjunct_island"][0].responses[0] == pytest.approx(expected, abs=1e-4)
    assert [answer.id for answer in found["blimp_wh_island"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "file", "split"),
    [
        ("lambada_openai", "lambada/lambada_openai.yaml", "test"),
        ("piqa", "piqa/piqa.yaml", "validation"),
        ("blimp_wh_island", "blimp/wh_island.yaml", "train"),
    ],
)
def test_the_tasks_are_those_of_the_harness(name: str, file: str, split: str, files, tmp_path: Path) -> None:
    """The same prompts, continuations, targets and measures, with its own definition over the same rows."""
    (ours,) = load([name], files, ()).tasks.values()
    key = name.partition("_")[0]
    (tmp_path / "rows.jsonl").write_text(lines(definitions(name, Path(files[key]))[0].rows))
    where = {"data_files": {split: str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")}
    given = {"include": str(OWN / file), "task": "theirs", "dataset_path": "json", "dataset_name": None}
    written = {**given, "dataset_kwargs": where, "training_split": None, "tag": None}
    (tmp_path / "theirs.yaml").write_text(json.dumps(written))
    theirs = TaskManager(include_path=str(tmp_path), include_defaults=False).load("theirs")["tasks"]["theirs"]
    for task in (ours, theirs):
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests()
    assert [each.args for each in ours.instances] == [each.args for each in theirs.instances]
    for task_of in ("metric_list", "output_type", "target_delimiter", "fewshot_delimiter", "description"):
        assert ours.get_config(task_of) == theirs.get_config(task_of)
    assert ours.VERSION == theirs.VERSION
    docs = list(ours.eval_docs)
    assert [ours.doc_to_target(doc) for doc in docs] == [theirs.doc_to_target(doc) for doc in docs]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_and_limits_change_no_answer(model, tokenizer, files, batch_size: int) -> None:
    loaded = load(NAMES, files, ())
    every, first = answers(model, tokenizer, loaded), answers(model, tokenizer, loaded, limit=1, batch_size=batch_size)
    for name, (answer, *more) in first.items():
        assert not more
        assert answer.hash == every[name][0].hash
        assert answer.responses == pytest.approx(every[name][0].responses, abs=1e-4)


def test_progress_counts_documents(model, tokenizer, files) -> None:
    seen = Seen()
    answers(model, tokenizer, load(("piqa", "lambada"), files, ()), progress=seen)
    ((name, total, steps),) = seen.stages
    assert (name, total) == ("tasks: quantized", 6)
    assert sum(steps) == 6
    assert len(steps) > 3


def test_nothing_is_left_changed(tokenizer, files, capfd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packed model, the tokenizer, the generator of random numbers, the environment, what is logged and drawn."""
    tiny_llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    llmquant.quantize(tmp_path / "model", "int4-g32", tmp_path / "out")
    packed: Any = llmquant.load(tmp_path / "out")
    ids, words = torch.arange(20)[None], copy.deepcopy(tokenizer.special_tokens_map)
    before, random, environment = packed(ids).logits, torch.get_rng_state(), dict(os.environ)
    level = logging.getLogger("lm_eval").level
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    found = answers(packed, tokenizer, load(NAMES, files, ()))
    assert "".join(capfd.readouterr()) == ""
    assert all(answer.finite for each in found.values() for answer in each)
    assert torch.equal(packed(ids).logits, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert tokenizer.special_tokens_map == words
    assert dict(os.environ) == environment
    assert logging.getLogger("lm_eval").level == level
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}
    packed.train()
    answers(packed, tokenizer, load(("piqa",), files, ()))
    assert packed.training


def test_numbers_that_are_not_finite_are_seen(model, tokenizer, files) -> None:
    """A token that only one document has, so that only this document's log-likelihoods are lost."""
    broken = copy.deepcopy(model)
    table = broken.get_input_embeddings().weight
    with torch.no_grad():
        table[tokenizer("J")["input_ids"][-1]] = float("nan")
        table[tokenizer("j")["input_ids"][-1]] = float("nan")
    found = answers(broken, tokenizer, load(("piqa",), files, ()))["piqa"]
    assert [answer.finite for answer in found] == [False, True]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A user's own task, in which the model writes; two ways to look at what it wrote."""
    (tmp_path / "sums.jsonl").write_text(lines([{"q": "1+1", "a": "2"}, {"q": "2+2", "a": "4"}]))
    definition = {
        "task": "sums", "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "sums.jsonl")}, "cache_dir": str(tmp_path / "cache"),
        },
        "doc_to_text": "{{q}}=", "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "filter_list": [
            {"name": "first", "filter": [{"function": "regex", "regex_pattern": "^(.)"}, {"function": "take_first"}]},
            {"name": "all", "filter": [{"function": "take_first"}]},
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "sums.yaml").write_text(json.dumps(definition))
    return tmp_path


def test_a_task_in_which_the_model_writes(written: Path, model, tokenizer) -> None:
    loaded = load(["sums"], {}, [str(written)])
    with pytest.raises(DataError, match="no EOS"):
        answers(model, tokenizer, loaded)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = "<s>"
    found = answers(model, tokenizer, loaded)["sums"]
    assert [list(answer.scores) for answer in found] == [["exact_match, first", "exact_match, all"]] * 2
    assert all(isinstance(each, str) for answer in found for each in answer.responses)
    assert [answer.responses for answer in found] == [
        answer.responses for answer in answers(model, tokenizer, loaded)["sums"]
    ]
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.lm_head.weight[3] = float("nan")
    with pytest.raises(QuantizationError, match="quantized gives logits that are not finite"):
        answers(broken, tokenizer, loaded)


def test_a_task_without_a_prompt_needs_a_first_token(model, tokenizer, files) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.bos_token = bare.eos_token = None
    bare.pad_token = "a"
    with pytest.raises(DataError, match="no BOS and no EOS"):
        answers(model, bare, load(("blimp",), files, ()))


def test_an_answer_that_the_context_cannot_hold_is_refused(tokenizer, files) -> None:
    with pytest.raises(DataError, match=r"answer of a task has \d\d tokens, and the context of quantized ends at 8"):
        answers(tiny_llama(max_position_embeddings=8), tokenizer, load(["piqa"], files, ()))
