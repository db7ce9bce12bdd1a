"""What happens to one tiny model from plan to logits, here and in plain transformers, as data."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import llmquant
from llmquant.compat.loading import map_keys
from llmquant.errors import LlmquantError
from llmquant.formats.compressed_tensors.readers import TRANSFORMERS, readers
from llmquant.formats.compressed_tensors.reference import decode_reference
from llmquant.recipe.plan import Plan
from tests.architectures.plain import LOGITS

RTN = {
    "version": 1,
    "name": "rtn",
    "rules": [{"match": "linear", "scheme": "int4-g32", "if_indivisible": ["channel"]}],
    "rounding": {"method": "rtn"},
}
TOKENS = torch.arange(3, 51).reshape(2, 24)
TEXT = "".join(f"{i} times {i + 3} is {i * (i + 3)}, said the {'fox' if i % 3 else 'hen'}.\n" for i in range(700))


def gptq(text: Path) -> dict[str, Any]:
    """The recipe of `RTN`, rounded by GPTQ."""
    calibration = {"dataset": str(text), "samples": 16, "length": 64, "seed": 0}
    return RTN | {"name": "gptq", "rounding": {"method": "gptq"}, "calibration": calibration}


def write_source(model: PreTrainedModel, folder: Path) -> None:
    """A model folder with a tokenizer of bytes, which every vocabulary of 256 has room for."""
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@dataclass
class Findings:
    """What was found for one architecture; empty strings and lists where all is well.

    Attributes:
        original: how transformers itself fails with the unquantized folder.
        refused: what `plan` says instead of planning.
        says_transformers: what the plan says of plain transformers.
        faults: whatever is not as it should be, each in a line.
        gptq: why a calibrated recipe is refused.
        plain: how plain transformers failed.
    """

    original: str = ""
    refused: str = ""
    says_transformers: bool = False
    faults: list[str] = field(default_factory=list)
    gptq: str = ""
    plain: str = ""


def examine(model: PreTrainedModel, folder: Path, plain: PlainReader | None) -> Findings:
    """Plan, quantize by RTN and GPTQ, load packed and plain, and compare with the model that it should be."""
    found = Findings()
    source, text = folder / "source", folder / "text.txt"
    write_source(model, source)
    found.original = original_fault(model, source)
    if found.original:
        return found
    text.write_text(TEXT, encoding="utf-8")
    try:
        plan = llmquant.plan(source, RTN)
    except LlmquantError as error:
        found.refused = str(error)
        return found
    found.says_transformers = readers(plan)[TRANSFORMERS].ok
    rtn = llmquant.quantize(source, RTN, folder / "rtn").folder
    wanted = expected_model(source, plan, rtn)
    found.faults += [f"packed: {fault}" for fault in packed_faults(rtn, wanted)]
    if plain is not None:
        faults = plain.faults(rtn, wanted)
        found.plain = "; ".join(faults)
        if found.says_transformers != (not faults):
            found.faults.append(f"plan says transformers {found.says_transformers}, but: {found.plain or 'it loads'}")
    try:
        calibrated = llmquant.quantize(source, gptq(text), folder / "gptq").folder
    except LlmquantError as error:
        found.gptq = str(error)
        return found
    found.faults += [f"gptq: {fault}" for fault in packed_faults(calibrated, expected_model(source, plan, calibrated))]
    return found


@torch.no_grad()
def original_fault(model: PreTrainedModel, source: Path) -> str:
    """Why an architecture says nothing about us: transformers does not load or run what it saved."""
    try:
        loaded = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
        loaded(input_ids=TOKENS, use_cache=False)
    except Exception as error:  # noqa: BLE001  # of any kind
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    state = loaded.state_dict()
    # What transformers keeps in float32 is so only after loading.
    lost = [name for name, tensor in model.state_dict().items() if not _same(tensor.to(state[name].dtype), state[name])]
    return f"{lost[0]} is lost" if lost else ""


def expected_model(source: Path, plan: Plan, folder: Path) -> PreTrainedModel:
    """The original, with the weights of `folder` in place of those that the plan quantizes."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
    tensors = {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}
    stored = [key.removesuffix("_packed") for key in tensors if key.endswith(".weight_packed")]
    schemes = {f"{row.module.name}.weight": row.scheme for row in plan.quantized}
    state = model.state_dict()
    for key, parameter in map_keys(model, stored).parameter.items():
        weight = decode_reference(key.removesuffix(".weight"), tensors, schemes.pop(parameter)).dequantize()
        state[parameter].copy_(weight)
    assert not schemes, f"the file has no packed {sorted(schemes)[:3]}"
    return model


@torch.no_grad()
def packed_faults(folder: Path, wanted: PreTrainedModel) -> list[str]:
    """How the model that llmquant loads differs from `wanted`; its kernels are to be those of the reference."""
    try:
        packed = llmquant.load(folder)
        logits = packed(input_ids=TOKENS, use_cache=False).logits
        state = packed.dequantize().state_dict()
    except Exception as error:  # noqa: BLE001  # of any kind: a fault
        return [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]
    return differences({**state, LOGITS: logits}, wanted)


@torch.no_grad()
def differences(found: dict[str, Tensor], wanted: PreTrainedModel) -> list[str]:
    """Names that are missing, too many or not the same bits."""
    expected = {**wanted.state_dict(), LOGITS: wanted(input_ids=TOKENS, use_cache=False).logits}
    found = {name: tensor for name, tensor in found.items() if not name.endswith((".weight_shape", ".weight_scale"))}
    odd = [f"{name}: only in one" for name in sorted(expected.keys() ^ found.keys())]
    odd += [
        f"{name}: other values" for name in expected.keys() & found.keys() if not _same(expected[name], found[name])
    ]
    return odd[:5]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


class PlainReader:
    """The process of plain.py, for as long as tests run."""

    def __init__(self, folder: Path) -> None:
        script = Path(__file__).with_name("plain.py")
        self._state = folder / "state.pt"
        self._errors = (folder / "stderr.txt").open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    def faults(self, folder: Path, wanted: PreTrainedModel) -> list[str]:
        """How the model that plain transformers loads differs from `wanted`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"folder": str(folder), "tokens": TOKENS.tolist(), "state": str(self._state)}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = next((line for line in self._process.stdout if line.startswith("answer ")), None)
        if line is None:
            return [f"it died with {self._process.wait()}"]
        answer = json.loads(line.removeprefix("answer "))
        if "error" in answer:
            return [answer["error"]]
        missing = [f"{name}: missing, so random" for name in answer["missing"]]
        return missing[:3] or differences(torch.load(self._state, weights_only=True), wanted)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
