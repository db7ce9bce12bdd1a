"""Train the bundled demo model: a small Llama on the Python standard library.

    python examples/demo_model/train.py --out examples/demo_model --minutes 120

The training split of `llmquant.data.builtin_text` is all it sees; calibration and evaluation text come from other
modules. Hidden matrices are trained with Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), the rest with
AdamW; the learning rate holds and then falls linearly to zero over the last 40 % of the given time. Stop and restart
freely: the state is kept beside the output until training has finished.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmquant.data.builtin_text import python_documents

VOCAB, CONTEXT, BATCH, BOS = 2048, 256, 16, "<|bos|>"
MUON_LR, ADAM_LR, WARMUP, DECAY = 0.02, 3e-3, 100, 0.4


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of VOCAB tokens that puts BOS in front of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build_model(vocab: int) -> LlamaForCausalLM:
    """3.7 M parameters; every projection takes groups of 128."""
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=0, initializer_range=0.03,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized by five Newton-Schulz steps.

    In float32: those of torch.optim.Muon are in bfloat16, which takes 20 seconds a step on a CPU without such products.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # noqa: ARG002 # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of all parameters."""
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalize(p.grad.lerp(buffer, group["momentum"]))
                p.mul_(1 - group["lr"] * 0.02)
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonalize(g: torch.Tensor) -> torch.Tensor:
    """A matrix with the singular vectors of `g` and singular values near 1."""
    tall = g.shape[0] > g.shape[1]
    x = g.T if tall else g
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


def batches(stream: torch.Tensor, seed: int):
    """Windows of CONTEXT tokens that start with BOS, at a fresh random offset each epoch."""
    rng = random.Random(seed)
    while True:
        offset = rng.randrange(CONTEXT - 1)
        starts = list(range(offset, len(stream) - CONTEXT, CONTEXT - 1))
        rng.shuffle(starts)
        for i in range(0, len(starts) - BATCH, BATCH):
            rows = torch.stack([stream[s : s + CONTEXT - 1] for s in starts[i : i + BATCH]])
            yield torch.cat([torch.zeros(BATCH, 1, dtype=torch.long), rows], 1)


def token_stream(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> torch.Tensor:
    """All documents in one row of tokens, each after a BOS."""
    return torch.tensor([t for e in tokenizer(documents).input_ids for t in e], dtype=torch.long)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, stream: torch.Tensor, windows: int = 64) -> float:
    """Mean loss in nats per token over the first windows of a text."""
    rows = stream[: windows * (CONTEXT - 1)].view(windows, -1)
    rows = torch.cat([torch.zeros(windows, 1, dtype=torch.long), rows], 1)
    losses = [model(input_ids=part, labels=part).loss.item() for part in rows.split(16)]
    return sum(losses) / len(losses)


class Run:
    """The state of the training: model, optimizers, steps and time spent; it is kept in a file beside the output."""

    def __init__(self, model: LlamaForCausalLM, minutes: float, file: Path) -> None:
        self.model, self.seconds, self.file = model, minutes * 60, file
        hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        self.rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
        adam = torch.optim.AdamW(self.rest, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0)
        self.optimizers: list[torch.optim.Optimizer] = [Muon(hidden, lr=MUON_LR), adam]
        self.spent, self.step = 0.0, 0
        if file.exists():
            self._restore(torch.load(file, weights_only=True))

    def _restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.spent, self.step = state["spent"], state["step"]

    def save(self) -> None:
        """Write the state."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"model": self.model.state_dict(), "optimizers": optimizers, "spent": self.spent, "step": self.step}
        torch.save(state, self.file)

    @property
    def progress(self) -> float:
        """Share of the time that is spent."""
        return self.spent / self.seconds

    def train_step(self, forward, ids: torch.Tensor) -> float:
        """One step; returns the loss."""
        began = time.monotonic()
        scale = min(1.0, (self.step + 1) / WARMUP, max(0.02, (1 - self.progress) / DECAY))
        for optimizer, base in zip(self.optimizers, (MUON_LR, ADAM_LR), strict=True):
            optimizer.param_groups[0]["lr"] = base * scale
        loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.rest, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.spent += time.monotonic() - began
        return loss.item()


def train(run: Run, train_stream: torch.Tensor, eval_stream: torch.Tensor, seed: int) -> None:
    """Train until the time is spent."""
    forward, source = torch.compile(run.model), batches(train_stream, seed + run.step)
    running = None
    while run.progress < 1:
        loss = run.train_step(forward, next(source))
        running = loss if running is None else 0.98 * running + 0.02 * loss
        if run.step % 100 == 0:
            run.model.eval()
            held = evaluate(run.model, eval_stream)
            run.model.train()
            minutes, ppl = run.spent / 60, math.exp(held)
            print(
                f"step {run.step} {minutes:.1f} min  train {running:.4f}  held-out {held:.4f} ppl {ppl:.2f}", flush=True
            )
            run.save()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="train the demo model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    documents = python_documents("train")
    tokenizer = train_tokenizer(documents)
    train_stream, eval_stream = (token_stream(tokenizer, d) for d in (documents, python_documents("eval")))
    model = build_model(len(tokenizer))
    print(f"{model.num_parameters():,} parameters, {len(train_stream):,} training tokens", flush=True)
    run = Run(model, args.minutes, args.out / "state.pt")
    train(run, train_stream, eval_stream, args.seed)
    model.bfloat16().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    facts = {
        "steps": run.step, "tokens_seen": run.step * BATCH * CONTEXT, "minutes": round(run.spent / 60, 1),
        "seed": args.seed, "held_out_nll": evaluate(model.float(), eval_stream),
    }  # fmt: skip
    (args.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    run.file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
