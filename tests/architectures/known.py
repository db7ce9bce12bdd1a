"""Architectures that are no tiny model, or that are refused, with the words that say why."""

from __future__ import annotations

_OTHER_INPUTS = "text alone does not run it"
_FULL_SIZE = "a part of full size belongs to it"
_OWN_CONFIG = "its config wants sizes of its own"

# Model types of which `tiny.py` makes nothing that transformers runs.
NOT_TINY = {
    "blt": _FULL_SIZE, "cohere_compass_text": _OWN_CONFIG, "dots3_note": _OWN_CONFIG, "gemma3": _FULL_SIZE,
    "gemma3n": "it wants PIL", "gemma4": _FULL_SIZE, "gemma4_assistant": _OWN_CONFIG,
    "gemma4_unified_assistant": _OWN_CONFIG, "git": _FULL_SIZE, "got_ocr2": _FULL_SIZE, "inkling2_text": _OWN_CONFIG,
    "mimo_v2_flash": _OWN_CONFIG, "moss_transcribe_diarize": _FULL_SIZE, "musicgen": _OTHER_INPUTS,
    "musicgen_melody": _OTHER_INPUTS, "phi4_multimodal": _FULL_SIZE, "prophetnet": _OWN_CONFIG,
    "reformer": _OWN_CONFIG, "roc_bert": _FULL_SIZE, "xlnet": _OTHER_INPUTS, "xlstm": _OWN_CONFIG,
    "xmod": "it wants a language",
}  # fmt: skip

# transformers itself does not load or run what it saves.
ORIGINALS = {
    "emu3": "Unrecognized configuration",
    "mllama": "Unrecognized configuration",
    "youtu": "model.embed_tokens.weight is lost",
}

# `plan` says so, before any work.
REFUSED: dict[str, str] = dict.fromkeys(
    ("gpt2", "gpt-sw3", "openai-gpt"), "Conv1D layers are read back by llmquant alone"
)

# Recipes with calibration are refused; rounding to nearest works.
_ENCODER = "encoder_attn"
UNCALIBRATED = {
    **dict.fromkeys(
        ("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart",
         "trocr", "whisper"),
        _ENCODER,
    ),
    **dict.fromkeys(("camembert", "xlm-roberta"), "cannot be run block by block"),
    "hrm_text": "once each and in order",
    "zaya": "shared its input",
}  # fmt: skip

# Every tensor is where it belongs, and the logits still are not the same bits.
OTHER_LOGITS = {
    "falcon_mamba": "its code computes the time step by another formula when a config is marked as quantized",
    "jamba": "as Falcon-Mamba",
}
