"""What a decoder layer of transformers relies on besides its own modules: the attention functions and recording hooks.

Written for and tested with transformers 5.23, like everything in this folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.output_capturing import _active_collector


def attention_function(attention: nn.Module) -> Callable[..., Any]:
    """The function that the module's config chooses: eager, sdpa or whatever is registered."""
    eager = sys.modules[type(attention).__module__].eager_attention_forward
    config: Any = attention.config
    return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager)


def is_recording(module: nn.Module) -> bool:
    """Whether a forward hook of `module` would do anything now.

    transformers leaves a hook on every attention module after the first call that asks for attentions or hidden
    states; it is idle unless the running call asks for attentions.
    """
    hooks = module._forward_hooks.values()
    if any(getattr(hook, "__module__", "") != _active_collector.__class__.__module__ for hook in hooks):
        return True
    return "attentions" in (_active_collector.get() or {})
