"""One fuzz case: damage something, do something with it, and judge the outcome."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import random
import shutil
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from llmquant.api import evaluate, plan, quantize
from llmquant.errors import LlmquantError
from llmquant.hf.load import load
from llmquant.models.checkpoint import Checkpoint
from llmquant.models.inventory import Inventory
from llmquant.models.skeleton import build_skeleton, load_config, take_inventory
from llmquant.recipe.load import load_recipe
from llmquant.recipe.plan import make_plan
from tests.engine.conftest import byte_tokenizer, tiny_llama
from tests.fuzz import mutate

LIMIT = 60.0  # seconds for a case, generous: the machine may be busy
RECIPE = {
    "version": 1,
    "name": "fuzz",
    "rules": [
        {"match": "linear", "scheme": "int4-g32", "if_indivisible": ["g16", "channel"]},
        {"match": ["mlp.down", "*.o_proj", "re:.*q_proj"], "scheme": "int8-g32", "rounding": {"method": "gptq"}},
    ],
    "rounding": {"method": "rtn"},
    "calibration": {"dataset": "text.txt", "samples": 2, "length": 16},
    "budget": {"bits_per_weight": 16.0},
}


class TimeUp(BaseException):
    """The case took longer than `LIMIT`."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case: "fine", "refused", or what went wrong."""

    kind: str
    what: str
    detail: str = ""

    @property
    def bad(self) -> bool:
        """Whether it is a failure of llmquant."""
        return self.kind not in ("fine", "refused")


@dataclass(frozen=True)
class Bench:
    """What all cases start from: a dense folder, a quantized one, and the inventory of both."""

    dense: Path
    packed: Path
    text: Path
    work: Path
    inventory: Inventory

    @classmethod
    def make(cls, work: Path) -> Bench:
        """Make both models."""
        dense, packed, text = work / "dense", work / "packed", work / "text.txt"
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        tiny_llama(**sizes).save_pretrained(dense, max_shard_size="20KB")
        byte_tokenizer().save_pretrained(dense)
        text.write_text("so it goes on and on. " * 200)
        quantize(dense, "int4-g32", packed)
        return cls(dense, packed, text, work, take_inventory(build_skeleton(load_config(dense))))


def run_case(bench: Bench, seed: int) -> Outcome:
    """Case number `seed`, always the same."""
    rng = random.Random(seed)
    kind = rng.choice(["recipe", "recipe", "header", "config", "config", "folder"])
    work = bench.work / "case"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    with _silence(), _time_limit():
        if kind == "recipe":
            return _recipe(bench, rng, work)
        return _folder(bench, rng, work, kind)


def _recipe(bench: Bench, rng: random.Random, work: Path) -> Outcome:
    data = copy.deepcopy(RECIPE)
    if rng.random() < 0.5:
        source: Any = data
        what = "; ".join(mutate.structure(rng, data) for _ in range(rng.choice([1, 1, 2])))
    else:
        content, what = mutate.text(rng, yaml.safe_dump(data, sort_keys=False))
        source = work / "r.yaml"
        source.write_text(content, encoding="utf-8")
    return _judge(f"recipe, {what}", lambda: make_plan(load_recipe(source), bench.inventory).to_dict())


def _folder(bench: Bench, rng: random.Random, work: Path, kind: str) -> Outcome:
    packed = rng.random() < 0.5
    model = shutil.copytree(bench.packed if packed else bench.dense, work / "model")
    try:
        if kind == "header":
            what = mutate.header(rng, rng.choice(sorted(model.glob("*.safetensors"))))
        else:
            what = (mutate.config if kind == "config" else mutate.folder)(rng, model)
    except (IndexError, ValueError, TypeError) as error:  # the first change left nothing for the second
        return Outcome("fine", f"not damaged ({error})")
    (action,) = rng.choices([_plan, _quantize, _calibrate, _load, _evaluate], [3, 3, 1, 6, 1])
    name = f"{action.__name__[1:]} of the {'packed' if packed else 'dense'} folder"
    return _judge(f"{name}, {what}", lambda: action(bench, model))


def _plan(_bench: Bench, model: Path) -> None:
    plan(model, "int4-g32")


def _quantize(_bench: Bench, model: Path) -> None:
    quantize(model, "int4-g32", model.parent / "out")


def _calibrate(bench: Bench, model: Path) -> None:
    calibration = {"dataset": str(bench.text), "samples": 2, "length": 16}
    recipe = {"version": 1, "rules": RECIPE["rules"], "rounding": {"method": "gptq"}, "calibration": calibration}
    quantize(model, recipe, model.parent / "out")


def _load(_bench: Bench, model: Path) -> None:
    loaded = load(model)
    state, checkpoint = loaded.state_dict(), Checkpoint.open(model, allow_quantized=True)
    for name in checkpoint.tensors.keys() & state.keys():
        stored, got = checkpoint.read(name), state[name]
        if stored.is_floating_point() and got.shape == stored.shape and not torch.equal(
            got.float().nan_to_num(), stored.to(got.dtype).float().nan_to_num()
        ):  # fmt: skip
            raise AssertionError(f"{name} is not what the file holds")


def _evaluate(bench: Bench, model: Path) -> None:
    evaluate(model, bench.dense, text=str(bench.text), length=16, max_windows=2, speed=0)


def _judge(what: str, action: Any) -> Outcome:
    try:
        action()
    except LlmquantError as error:
        return Outcome("refused", what, str(error)) if len(str(error)) < 9000 else Outcome("endless message", what)
    except TimeUp:
        return Outcome("hangs", what)
    except AssertionError as error:
        return Outcome("wrong tensors", what, str(error))
    except Exception as error:  # noqa: BLE001 - finding these is what it is for
        return Outcome(type(error).__name__, what, _where(error))
    return Outcome("fine", what)


def _where(error: BaseException) -> str:
    trace, ours = error.__traceback__, ""
    while trace:
        code = trace.tb_frame.f_code
        if "llmquant" in code.co_filename and "/fuzz/" not in code.co_filename:
            ours = f"{Path(code.co_filename).name}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    return f"{str(error)[:200]} ({ours})"


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(level)
