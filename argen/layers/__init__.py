"""Building blocks that every network shares; nothing here knows a paper's whole system."""

from argen.layers.adaln import AdaLNBlock, AdaNorm, Modulation
from argen.layers.attention import SelfAttention, attend
from argen.layers.cache import KVCache, ReadOnlyView, Window
from argen.layers.feed_forward import FEED_FORWARD, GEGLU, MLP, SwiGLU, make_feed_forward
from argen.layers.gradient_checkpointing import enable_gradient_checkpointing
from argen.layers.init import init_embeddings, init_normal, init_xavier
from argen.layers.masks import Predicate, block_causal, causal, dense_mask
from argen.layers.noise import Noise, SeededNoise
from argen.layers.norms import NORMS, RMSNorm, make_norm
from argen.layers.rope import apply_rope, rope_table_1d, rope_table_2d
from argen.layers.transformer import Block, DropPath

__all__ = [
    "FEED_FORWARD",
    "GEGLU",
    "MLP",
    "NORMS",
    "AdaLNBlock",
    "AdaNorm",
    "Block",
    "DropPath",
    "KVCache",
    "Modulation",
    "Noise",
    "Predicate",
    "RMSNorm",
    "ReadOnlyView",
    "SeededNoise",
    "SelfAttention",
    "SwiGLU",
    "Window",
    "apply_rope",
    "attend",
    "block_causal",
    "causal",
    "dense_mask",
    "enable_gradient_checkpointing",
    "init_embeddings",
    "init_normal",
    "init_xavier",
    "make_feed_forward",
    "make_norm",
    "rope_table_1d",
    "rope_table_2d",
]
