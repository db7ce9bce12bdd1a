"""llmquant: weight quantization for Hugging Face causal language models."""
