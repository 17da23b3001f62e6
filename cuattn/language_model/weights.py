"""The weights of a model in float32, from whatever file has them, with every shape checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..common.text import listed
from ..errors import ArgumentError
from ..reference.arrays import Float32Array, FloatArray
from .sizes import Sizes

__all__ = ["GGUF", "HUGGING_FACE", "Layer", "Names", "Tensors", "Weights", "weights_of"]

# Tensors of a file by name, each to be read when it is called.
Tensors: TypeAlias = Mapping[str, Callable[[], Float32Array]]


@dataclass(frozen=True)
class Names:
    """What a kind of file calls its tensors.

    Attributes
    ----------
    embedding, norm, head : str
        The last one is missing where it is the embedding.
    layer : str
        What the names of a layer's begin with, with its number.
    of_layer : mapping of str to str
        By the fields of `Layer`.
    unread : tuple of str
        Parts of names of tensors that follow from the sizes.
    """

    embedding: str
    norm: str
    head: str
    layer: str
    of_layer: Mapping[str, str]
    unread: tuple[str, ...] = ()


GGUF = Names(
    "token_embd.weight",
    "output_norm.weight",
    "output.weight",
    "blk.{}.",
    {
        "attention_norm": "attn_norm.weight",
        "q": "attn_q.weight",
        "k": "attn_k.weight",
        "v": "attn_v.weight",
        "out": "attn_output.weight",
        "mlp_norm": "ffn_norm.weight",
        "gate": "ffn_gate.weight",
        "up": "ffn_up.weight",
        "down": "ffn_down.weight",
        "q_bias": "attn_q.bias",
        "k_bias": "attn_k.bias",
        "v_bias": "attn_v.bias",
        "q_norm": "attn_q_norm.weight",
        "k_norm": "attn_k_norm.weight",
    },
)
HUGGING_FACE = Names(
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    "model.layers.{}.",
    {
        "attention_norm": "input_layernorm.weight",
        "q": "self_attn.q_proj.weight",
        "k": "self_attn.k_proj.weight",
        "v": "self_attn.v_proj.weight",
        "out": "self_attn.o_proj.weight",
        "mlp_norm": "post_attention_layernorm.weight",
        "gate": "mlp.gate_proj.weight",
        "up": "mlp.up_proj.weight",
        "down": "mlp.down_proj.weight",
        "q_bias": "self_attn.q_proj.bias",
        "k_bias": "self_attn.k_proj.bias",
        "v_bias": "self_attn.v_proj.bias",
        "q_norm": "self_attn.q_norm.weight",
        "k_norm": "self_attn.k_norm.weight",
    },
    unread=("rotary_emb.inv_freq",),
)

# Of llama.cpp: what Llama 3.1's scaling divides the frequencies by, [head_dim / 2].
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Layer:
    """The weights of a layer; matrices are [out, in]."""

    attention_norm: Any
    q: Any
    k: Any
    v: Any
    out: Any
    mlp_norm: Any
    gate: Any
    up: Any
    down: Any
    q_bias: Any = None
    k_bias: Any = None
    v_bias: Any = None
    q_norm: Any = None
    k_norm: Any = None


@dataclass(frozen=True)
class Weights:
    """All weights, arrays of float32 of NumPy or CuPy, and the angles of a position.

    Attributes
    ----------
    embedding, head : array [vocabulary, width]
        Perhaps the same one.
    layers : list of Layer
    norm : array [width]
    frequencies : ndarray of float64 [head_dim / 2]
    """

    embedding: Any
    layers: list[Layer]
    norm: Any
    head: Any
    frequencies: FloatArray


def weights_of(tensors: Tensors, names: Names, sizes: Sizes, xp: Any = np) -> Weights:
    """Read the weights one after the other and put them where `xp` has its arrays.

    Parameters
    ----------
    tensors : mapping of str to callable
    names : Names
    sizes : Sizes
    xp : module
        NumPy or CuPy.

    Raises
    ------
    ArgumentError
        If one is missing or has another shape than the sizes say, or there is one that would not
        be used: the model is of another kind then.
    """
    used = set()

    def read(name: str, *shape: int) -> Any:
        used.add(name)
        if name not in tensors:
            raise ArgumentError("the model", [*tensors][:8], f"one with a tensor {name!r}")
        x = tensors[name]()
        if x.shape != shape:
            raise ArgumentError(f"tensor {name!r}", x.shape, f"of the shape {shape}")
        return xp.asarray(x, np.float32)

    shapes = _shapes(sizes)
    layers = []
    for i in range(sizes.layers):
        prefix = names.layer.format(i)
        parts = {field: prefix + name for field, name in names.of_layer.items()}
        layers.append(
            Layer(
                **{
                    field: read(name, *shapes[field])
                    for field, name in parts.items()
                    if name in tensors or not field.startswith(("q_", "k_", "v_"))
                }
            )
        )
    embedding = read(names.embedding, sizes.vocabulary, sizes.width)
    norm = read(names.norm, sizes.width)
    head = embedding
    if names.head in tensors:
        head = read(names.head, sizes.vocabulary, sizes.width)
    frequencies = sizes.frequencies()
    if ROPE_FACTORS in tensors:
        frequencies = frequencies / np.asarray(tensors[ROPE_FACTORS](), np.float64)
        used.add(ROPE_FACTORS)
    left = [x for x in tensors if x not in used and not any(y in x for y in names.unread)]
    if left:
        raise ArgumentError("the model", left[:8], f"one without {listed(left[:1])}")
    return Weights(embedding, layers, norm, head, frequencies)


def _shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    q, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    width, hidden = sizes.width, sizes.hidden
    return {
        "attention_norm": (width,),
        "q": (q, width),
        "k": (kv, width),
        "v": (kv, width),
        "out": (width, q),
        "mlp_norm": (width,),
        "gate": (hidden, width),
        "up": (hidden, width),
        "down": (width, hidden),
        "q_bias": (q,),
        "k_bias": (kv,),
        "v_bias": (kv,),
        "q_norm": (sizes.head_dim,),
        "k_norm": (sizes.head_dim,),
    }
