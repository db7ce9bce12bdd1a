"""What a decoder layer of transformers relies on besides its own modules: the attention functions and recording hooks.

Written for and tested with transformers 5.23, like everything in this folder.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.output_capturing import _active_collector

_IGNORED = {"position_ids", "use_cache", "sliding_window"}  # by sdpa
_GQA_HEAD_DIM = 256  # up to which transformers leaves grouped heads to torch


def attend(
    attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> Tensor:
    """Attention by the function that the config chooses: eager, sdpa or whatever is registered.

    For sdpa of a single token without a mask this calls the torch function as transformers would, since what
    transformers does around it takes longer than the attention itself.

    `query` is (batch, heads, tokens, head_dim), `key` and `value` are (batch, key heads, cached tokens, head_dim); the
    module decides `dropout` and `scaling`. Returns (batch, tokens, heads, head_dim), or for a single token (batch,
    heads, 1, head_dim), which is the same bytes.
    """
    module: Any = attention
    eager = sys.modules[type(attention).__module__].eager_attention_forward
    # Imported by whoever has the module; not by us, whose import may be what the end of that import waits for.
    functions = sys.modules["transformers.modeling_utils"].ALL_ATTENTION_FUNCTIONS
    function = functions.get_interface(module.config._attn_implementation, eager)
    plain = kwargs.keys() <= _IGNORED and mask is None and query.shape[2] == 1 and key.shape[-1] <= _GQA_HEAD_DIM
    if plain and function is sdpa_attention_forward:
        grouped = module.num_key_value_groups > 1
        return functional.scaled_dot_product_attention(query, key, value, scale=module.scaling, enable_gqa=grouped)
    return function(attention, query, key, value, mask, dropout=0.0, scaling=module.scaling, **kwargs)[0]


def is_recording(module: nn.Module) -> bool:
    """Whether a forward hook of `module` would do anything now.

    transformers leaves a hook on every attention module after the first call that asks for attentions or hidden
    states; it is idle unless the running call asks for attentions.
    """
    hooks = module._forward_hooks.values()
    if any(getattr(hook, "__module__", "") != _active_collector.__class__.__module__ for hook in hooks):
        return True
    return "attentions" in (_active_collector.get() or {})
