"""Shapes of attention in published models: for tests, benchmarks and documents alike.

Of language models a prompt as long as the model was trained on, or a part of it, of a layer that
sees all tokens before; of image and video models one step at their usual resolution. Each source is
the configuration that was published with the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from .cases import Case

__all__ = ["MODELS", "Model"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """One layer's attention.

    Attributes
    ----------
    name : str
        Stands as `model` in records.
    heads, kv_heads, head_dim : int
    tokens : int
        Of queries and of keys.
    is_causal : bool
    batch : int
        2 where guidance takes a step with and one without the prompt.
    about : str
        What the tokens are.
    """

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    tokens: int
    is_causal: bool
    batch: int = 1
    about: str

    @property
    def case(self) -> Case:
        """The shape as it is measured."""
        return Case(
            batch=self.batch,
            num_q_heads=self.heads,
            num_kv_heads=self.kv_heads,
            seqlen_q=self.tokens,
            seqlen_kv=self.tokens,
            head_dim=self.head_dim,
            is_causal=self.is_causal,
        )


def _language(name: str, heads: int, kv_heads: int, head_dim: int, tokens: int) -> Model:
    return Model(
        name=name,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        tokens=tokens,
        is_causal=True,
        about="a prompt",
    )


def _picture(
    name: str, heads: int, head_dim: int, tokens: int, about: str, batch: int = 1
) -> Model:
    return Model(
        name=name,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        tokens=tokens,
        is_causal=False,
        batch=batch,
        about=about,
    )


MODELS = (
    # huggingface.co/HuggingFaceTB/SmolLM2-1.7B, config.json
    _language("SmolLM2 1.7B", 32, 32, 64, 8192),
    # huggingface.co/meta-llama/Meta-Llama-3-8B and -70B, config.json
    _language("Llama 3 8B", 32, 8, 128, 8192),
    _language("Llama 3 70B", 64, 8, 128, 8192),
    # huggingface.co/google/gemma-2-9b, config.json; every other layer sees 4096 tokens only, and
    # all have their scores capped.
    _language("Gemma 2 9B", 16, 8, 256, 8192),
    # huggingface.co/openai/gpt-oss-20b, config.json; every other layer sees 128 tokens only, and
    # all have a sink.
    _language("gpt-oss 20B", 64, 8, 64, 8192),
    # huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct, config.json; the language part, of hidden size
    # 3584 with K and V of 512.
    _language("Qwen2.5-VL 7B", 28, 4, 128, 16384),
    # huggingface.co/black-forest-labs/FLUX.1-dev, transformer/config.json
    _picture("Flux.1 dev", 24, 128, 64 * 64 + 512, "1024 x 1024 pixels, and 512 of text"),
    # github.com/Wan-Video/Wan2.1, wan/configs/wan_t2v_14B.py
    _picture("Wan 2.1 14B", 40, 128, 21 * 30 * 52, "81 frames of 480 x 832 pixels"),
    # huggingface.co/THUDM/CogVideoX-2b, transformer/config.json
    _picture(
        "CogVideoX 2B",
        30,
        64,
        13 * 30 * 45 + 226,
        "49 frames of 480 x 720 pixels, and 226 of text",
    ),
    # huggingface.co/stabilityai/stable-diffusion-xl-base-1.0, unet/config.json; the larger of the
    # two resolutions that have attention.
    _picture("SDXL", 10, 64, 64 * 64, "1024 x 1024 pixels", batch=2),
    # huggingface.co/stabilityai/stable-diffusion-3.5-large, transformer/config.json; text of 77
    # tokens by CLIP and 256 by T5.
    _picture(
        "Stable Diffusion 3.5 large",
        38,
        64,
        64 * 64 + 77 + 256,
        "1024 x 1024 pixels, and 333 of text",
        batch=2,
    ),
)
