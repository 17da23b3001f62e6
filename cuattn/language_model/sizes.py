"""What a model is made of, read from the metadata of GGUF or from Hugging Face's config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.sizes import is_whole_number
from ..errors import ArgumentError
from ..reference.arrays import FloatArray

__all__ = ["Sizes", "sizes_of_config", "sizes_of_gguf"]

# Architectures that are Llama's but for biases of Q, K and V, norms of Q and K, and a window: all
# of that is seen in their tensors or said below. By these names in GGUF, with whether a pair of
# channels that turns together is adjacent there, as llama.cpp stores Llama's.
GGUF_ARCHITECTURES = {"llama": True, "qwen2": False, "qwen3": False}
ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)


@dataclass(frozen=True)
class Sizes:
    """Sizes and constants of a model.

    Attributes
    ----------
    layers, width, heads, kv_heads, head_dim, hidden, vocabulary : int
        `width` is that of a token between layers, `hidden` that inside the feed-forward part.
    context : int
        Most tokens that the model was made for.
    norm_epsilon : float
        Of RMSNorm.
    rope_base : float
        Pair i of a head's channels turns by ``position * rope_base ** (-2 i / head_dim)``.
    adjacent : bool
        Whether a pair is channels 2 i and 2 i + 1, or i and head_dim / 2 + i.
    window : int
        Keys that a row sees, its own among them; 0 for all up to its own.
    rope_scaling : mapping of str to float, optional
        Of Llama 3.1: "factor", "low_freq_factor", "high_freq_factor" and
        "original_max_position_embeddings"; with "factor" alone all angles are divided by it.

    Raises
    ------
    ArgumentError
        If they are not sizes, or do not fit each other.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    context: int
    norm_epsilon: float
    rope_base: float
    adjacent: bool
    window: int = 0
    rope_scaling: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "kv_heads", "head_dim", "hidden", "vocabulary"):
            value = getattr(self, name)
            if not is_whole_number(value) or value < 1:
                raise ArgumentError(f"{name} of the model", value, "a whole number of at least 1")
        if self.heads % self.kv_heads:
            expected = f"a divisor of its {self.heads} heads"
            raise ArgumentError("kv_heads of the model", self.kv_heads, expected)
        if self.head_dim % 2:
            raise ArgumentError("head_dim of the model", self.head_dim, "even")
        if not is_whole_number(self.window) or self.window < 0:
            raise ArgumentError("window of the model", self.window, "a whole number, 0 for none")
        for name in ("norm_epsilon", "rope_base"):
            value = getattr(self, name)
            if not isinstance(value, float) or not 0 < value < math.inf:
                raise ArgumentError(f"{name} of the model", value, "a positive number")

    def frequencies(self) -> FloatArray:
        """Return the angle of each pair of channels for one position, [head_dim / 2].

        Llama 3.1's scaling keeps short wavelengths, divides those of long ones, and goes from one
        to the other in between (Llama 3 model card; Transformers calls it "llama3").
        """
        plain = self.rope_base ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        if self.rope_scaling is None:
            return plain
        factor = self.rope_scaling["factor"]
        if len(self.rope_scaling) == 1:
            return plain / factor
        low, high = (self.rope_scaling[f"{x}_freq_factor"] for x in ("low", "high"))
        turns = self.rope_scaling["original_max_position_embeddings"] * plain / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return plain * (kept + (1 - kept) / factor)


def sizes_of_gguf(fields: Mapping[str, Any]) -> Sizes:
    """Read the metadata of a GGUF file.

    Raises
    ------
    ArgumentError
        If the architecture is none of `GGUF_ARCHITECTURES`, or something is missing, or changes
        results and is not carried out; names it.
    """
    name = fields.get("general.architecture")
    if name not in GGUF_ARCHITECTURES:
        raise ArgumentError("general.architecture", name, f"one of {[*GGUF_ARCHITECTURES]}")

    def value(key: str, default: Any = None) -> Any:
        found = fields.get(f"{name}.{key}", default)
        if found is None:
            raise ArgumentError("the model", sorted(fields)[:8], f"one that says {name}.{key}")
        return found

    for key in ("expert_count", "attn_logit_softcapping", "attention.sliding_window"):
        if fields.get(f"{name}.{key}"):
            raise ArgumentError(f"{name}.{key}", fields[f"{name}.{key}"], "left out or 0")
    scaling = fields.get(f"{name}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise ArgumentError(f"{name}.rope.scaling.type", scaling, "'none' or 'linear'")
    heads, width = value("attention.head_count"), value("embedding_length")
    head_dim = fields.get(f"{name}.attention.key_length", width // max(heads, 1))
    if (turned := fields.get(f"{name}.rope.dimension_count", head_dim)) != head_dim:
        expected = f"all {head_dim} channels of a head"
        raise ArgumentError(f"{name}.rope.dimension_count", turned, expected)
    tokens = fields.get("tokenizer.ggml.tokens", ())
    return Sizes(
        layers=value("block_count"),
        width=width,
        heads=heads,
        kv_heads=value("attention.head_count_kv", heads),
        head_dim=head_dim,
        hidden=value("feed_forward_length"),
        vocabulary=fields.get(f"{name}.vocab_size", len(tokens)),
        context=value("context_length"),
        norm_epsilon=float(value("attention.layer_norm_rms_epsilon")),
        rope_base=float(value("rope.freq_base", 10000.0)),
        adjacent=GGUF_ARCHITECTURES[name],
        rope_scaling=(
            {"factor": float(value("rope.scaling.factor"))} if scaling == "linear" else None
        ),
    )


def sizes_of_config(config: Mapping[str, Any]) -> Sizes:
    """Read Hugging Face's config.json.

    Raises
    ------
    ArgumentError
        As `sizes_of_gguf`; architectures are `ARCHITECTURES`.
    """
    names = config.get("architectures") or [None]
    if names[0] not in ARCHITECTURES:
        raise ArgumentError("architectures", names, f"one of {[*ARCHITECTURES]}")

    def value(key: str) -> Any:
        if config.get(key) is None:
            raise ArgumentError("config.json", sorted(config)[:8], f"one that says {key}")
        return config[key]

    if (act := config.get("hidden_act", "silu")) != "silu":
        raise ArgumentError("hidden_act", act, "'silu'")
    layers, kinds = value("num_hidden_layers"), config.get("layer_types") or []
    window = config.get("sliding_window") or 0
    if names[0] != "MistralForCausalLM":
        window = window if config.get("use_sliding_window", False) else 0
        if window:
            raise ArgumentError("use_sliding_window", True, "left out or false")
    if {*kinds} - {"sliding_attention" if window else "full_attention"}:
        raise ArgumentError("layer_types", kinds, "the same for all layers")
    # Transformers 5 writes `rope_parameters`, older ones `rope_theta` and `rope_scaling`.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    heads, width = value("num_attention_heads"), value("hidden_size")
    return Sizes(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or width // max(heads, 1),
        hidden=value("intermediate_size"),
        vocabulary=value("vocab_size"),
        context=value("max_position_embeddings"),
        norm_epsilon=float(value("rms_norm_eps")),
        rope_base=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        adjacent=False,
        window=window,
        rope_scaling=_scaling(rope),
    )


def _scaling(rope: Mapping[str, Any]) -> Mapping[str, float] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ArgumentError("partial_rotary_factor", rope["partial_rotary_factor"], "1")
    if kind == "default":
        return None
    names: tuple[str, ...] = ("factor",)
    if kind == "llama3":
        names += ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    elif kind != "linear":
        raise ArgumentError("rope_type", kind, "'default', 'linear' or 'llama3'")
    if missing := [name for name in names if not isinstance(rope.get(name), (int, float))]:
        raise ArgumentError("rope parameters", dict(rope), f"such with {missing}")
    return {name: float(rope[name]) for name in names}
