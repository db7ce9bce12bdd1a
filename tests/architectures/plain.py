"""Plain transformers with compressed-tensors, without llmquant, as a process that loads folders one after the other.

Reads JSON lines {"folder", "tokens", "state"} and answers each with one: {"error"} or {"missing", "unexpected"}; the
state dict after one forward, and its logits, lie in the file `state` then. Run by `examine.PlainReader`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

LOGITS = "(logits)"


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    assert "llmquant" not in sys.modules
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = answer_to(request)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(f"answer {json.dumps(answer)}", flush=True)


@torch.no_grad()
def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    loaded: Any = AutoModelForCausalLM.from_pretrained(request["folder"], dtype="auto", output_loading_info=True)
    model, info = loaded
    logits = model.eval()(input_ids=torch.tensor(request["tokens"]), use_cache=False).logits
    torch.save({**model.state_dict(), LOGITS: logits}, request["state"])
    return {"missing": sorted(info["missing_keys"]), "unexpected": sorted(info["unexpected_keys"])}


if __name__ == "__main__":
    main()
