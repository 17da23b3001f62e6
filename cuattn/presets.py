"""The schemes that have names."""

from __future__ import annotations

from difflib import get_close_matches

from .errors import ArgumentError
from .scheme import INTEGERS, Scheme

__all__ = ["AUTO", "PRESETS", "resolve"]

PRESETS: dict[str, Scheme] = {
    s.name: s
    for s in (
        # Nearly the errors of scales per token in nearly the time of scales per block.
        Scheme("int8", k_scope="sorted", v_scope="sorted", smooth_v="sample", rotate="qk"),
        # A scale for every token of Q, K and V.
        Scheme("int8-token", smooth_v="sample"),
        Scheme("int8-block", k_scope="block", v_scope="channel", smooth_v="robust", rotate="qk"),
        # The fewest instructions for each score.
        Scheme(
            "int8-fast",
            k_scope="block",
            v_scope="channel",
            p_range="row_pow2",
            smooth_v="robust",
            rotate="qk",
        ),
        # The 8-bit products of SageAttention2 (arXiv 2411.10958, section 3): INT8 Q Kᵀ, and e4m3
        # P V with P times 448 and V per channel.
        Scheme(
            "int8-fp8",
            pv="fp8",
            k_scope="block",
            v_scope="channel",
            p_range="row",
            smooth_v="robust",
        ),
        Scheme("int8-fp16", pv="fp16", p_range="row", p_block=64, rotate="qk"),
        # P as the sum of two bytes: what is left is the error of Q, K and V.
        Scheme("int8-two-term", p_terms=2, smooth_v="sample"),
        # 4 bits for Q and K, smoothed as SageAttention2 does, with our P V.
        Scheme(
            "int4",
            qk="int4",
            k_scope="thread",
            v_scope="channel",
            smooth_q="block",
            smooth_v="robust",
            rotate="qk",
        ),
        Scheme(
            "int4-fp16",
            qk="int4",
            pv="fp16",
            p_range="row",
            p_block=64,
            smooth_q="block",
        ),
        # INT-FlashAttention (arXiv 2409.16997): full INT8, INT8 Q Kᵀ with float16 P V, and full
        # INT4 but for P, which has nothing to gain from 7 steps.
        Scheme("int-flash", v_scope="tensor", p_range="static127", smooth_k="none"),
        Scheme("int-flash-half", pv="fp16", p_range="row", p_block=64, smooth_k="none"),
        Scheme(
            "int-flash-int4",
            qk="int4",
            pv="int4",
            v_scope="tensor",
            p_range="static127",
            smooth_k="none",
        ),
        # Its future work (section 5): V by blocks, and Hadamard's matrix.
        Scheme(
            "int-flash-rotated",
            v_scope="block",
            p_range="static127",
            smooth_k="none",
            rotate="qkv",
        ),
        # SageAttention (arXiv 2410.02367, section 4.4), K smoothed by its mean: scales of tokens
        # (-t) or blocks (-b, of 128 rows of Q and 64 keys), P V in float16; or (-v) V per channel
        # and P in 127 steps. Products in float16 are summed in float32 and not, as on its GPU, in
        # float16. A block of keys has 128 in `sage-vb`, as many as one step of P V.
        Scheme("sage-t", pv="fp16", p_range="row", p_block=64, smooth_k="mean"),
        Scheme(
            "sage-b",
            pv="fp16",
            q_scope="block",
            k_scope="block",
            p_range="row",
            p_block=64,
            smooth_k="mean",
        ),
        Scheme("sage-vt", v_scope="channel", p_range="static127", smooth_k="mean"),
        Scheme(
            "sage-vb",
            q_scope="block",
            k_scope="block",
            v_scope="channel",
            p_range="static127",
            smooth_k="mean",
        ),
        # SageAttention2 (arXiv 2411.10958, section 3): Q, K and V smoothed, scales of threads for Q
        # and K, P times 448 and V per channel in e4m3, added up in float32 after each block.
        *(
            Scheme(
                f"sage2-{qk[-1]}",
                qk=qk,
                pv="fp8",
                q_scope="thread",
                k_scope="thread",
                v_scope="channel",
                p_range="row",
                smooth_q="block",
                smooth_k="mean",
                smooth_v="mean",
            )
            for qk in INTEGERS
        ),
        # PTQ4ViT (arXiv 2111.12293, equation 5): twin-uniform P.
        Scheme("twin", v_scope="channel", p_range="twin", smooth_v="robust"),
        # One scale for each head of Q, K and V, as FlashAttention-3 (arXiv 2407.08608) compares to.
        Scheme(
            "fp8",
            qk="fp8",
            pv="fp8",
            q_scope="tensor",
            k_scope="tensor",
            v_scope="tensor",
            p_range="row",
            smooth_k="none",
        ),
        Scheme("fp16", qk="fp16", pv="fp16", p_range="row", p_block=64, smooth_k="none"),
    )
}

# What `attention` takes besides, and the presets that each may stand for: the last is its class of
# accuracy, that of the largest error, and the first what everything is held against.
AUTO: dict[str, tuple[str, ...]] = {
    "auto": ("fp16", "int8"),
    "auto-block": ("fp16", "int8", "int8-block"),
}


def resolve(scheme: str | Scheme) -> Scheme:
    """Return the scheme itself, or the preset of that name.

    Raises
    ------
    ArgumentError
        If the name is not a preset, or the argument is neither a name nor a `Scheme`. Names of
        `AUTO` are refused, too: they mean a scheme only where all shapes of a call are known.
    """
    if isinstance(scheme, Scheme):
        return scheme
    if isinstance(scheme, str) and scheme in PRESETS:
        return PRESETS[scheme]
    if isinstance(scheme, str) and scheme in AUTO:
        by_name = " or ".join(map(repr, AUTO[scheme]))
        raise ArgumentError(
            "scheme",
            scheme,
            f"one scheme: {by_name}; only cuattn.attention chooses among them, by the shapes of "
            "its arrays, and cuattn.auto_scheme says which one",
        )
    close = get_close_matches(scheme, [*PRESETS, *AUTO]) if isinstance(scheme, str) else []
    if close:
        meant = " or ".join(map(repr, close))
        expected = f"a Scheme or a preset's name (did you mean {meant}?)"
    else:
        expected = f"a Scheme or one of {sorted(PRESETS)}"
    raise ArgumentError("scheme", scheme, expected)
