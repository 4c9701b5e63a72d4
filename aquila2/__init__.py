"""Aquila2: a thin language model, tokenizer, generator and trainer on flagattn's ops."""

from aquila2.cache import KVCache
from aquila2.checkpoint import from_pretrained, save_pretrained
from aquila2.config import PRESETS, Aquila2Config
from aquila2.generate import Generation, generate
from aquila2.linear import Linear
from aquila2.model import Aquila2ForCausalLM, Aquila2Output, SwiGLU
from aquila2.sampling import Sampling
from aquila2.tokenizer import Aquila2Tokenizer

__all__ = [
    "PRESETS",
    "Aquila2Config",
    "Aquila2ForCausalLM",
    "Aquila2Output",
    "Aquila2Tokenizer",
    "Generation",
    "KVCache",
    "Linear",
    "Sampling",
    "SwiGLU",
    "from_pretrained",
    "generate",
    "save_pretrained",
]
