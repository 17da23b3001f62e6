"""`attention`: on a GPU, or emulated in host memory."""

from __future__ import annotations

from typing import Any

from .arrays.caller import device_of, on_device
from .arrays.view import CPU, CUDA
from .attention_on_gpu import attention_on_gpu
from .common.public import public
from .emulation.attention import attention_on_host
from .errors import ArgumentError
from .operands.mods import Mods
from .operands.options import Options, check_flag
from .operands.pairs import check_orders
from .operands.quantized import QuantizedTensor
from .operands.score_arrays import OPTION_NAMES
from .operands.score_mod import MaskMod, ScoreMod, mod_of, mods_of
from .operands.scores import ALL_KEYS, checked_window
from .plan.prepared import CALLS
from .plan.repeated import repeating
from .scheme import Scheme
from .specs.coding import Name

__all__ = ["attention"]


@public
@repeating(CALLS)
def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    is_causal: bool = False,
    window_size: tuple[int, int] = ALL_KEYS,
    softcap: float = 0.0,
    sinks: Any = None,
    attn_mask: Any = None,
    alibi_slopes: Any = None,
    score_mod: str | ScoreMod | None = None,
    mask_mod: str | MaskMod | None = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    seqused_k: Any = None,
    scale: float | None = None,
    scheme: str | Scheme = "int8",
    layout: str = "HND",
    return_lse: bool = False,
    out: Any = None,
    check_finite: bool = False,
    stream: Any = None,
) -> Any:
    """Compute ``softmax(scale * q kᵀ) v`` with quantized operands.

    Options that change the logits may be combined. They do it in this order: `softcap`,
    `alibi_slopes`, an `attn_mask` of floats, `score_mod`; then keys are hidden, by all that hides
    some, and `sinks` take part in the softmax. Row i stands beside key
    ``i + seqlen_kv - seqlen_q``, its own: the last row beside the last key.

    Parameters
    ----------
    q : array [batch, num_q_heads, seqlen_q, head_dim], or QuantizedTensor
    k, v : array [batch, num_kv_heads, seqlen_kv, head_dim], or QuantizedTensor
        With layout "NHD" tokens come before heads. float16, bfloat16 or float32, all arrays of one
        type. `head_dim` is a multiple of 8 up to 512, that of `v` perhaps another one than that of
        `q` and `k`; `num_q_heads` is a multiple of `num_kv_heads`; lengths may be 0. Arrays of
        CuPy, PyTorch, JAX or anything else with ``__dlpack__`` on one GPU, or arrays in host
        memory, for which the scheme is emulated in NumPy. They are never written to. A tensor of
        PyTorch is dense and strided, and requires no gradients unless they are off. An array whose
        last axis is not contiguous is copied first, and so is one for an unquantized product if it
        does not begin its rows at multiples of 16 bytes.
    is_causal : bool
        Hide the keys behind a row's own: the last row sees every key.
    window_size : (int, int)
        How many keys before and behind its own a row sees, left and right; -1 for all. So
        ``(W - 1, 0)`` are W keys, which Hugging Face calls a sliding window of W.
    softcap : float
        Make a logit s ``softcap * tanh(s / softcap)``, as in Gemma 2; 0 does not.
    sinks : array [num_q_heads], optional
        A logit of each query head that takes part in the softmax and has no value, as in gpt-oss:
        natural, neither scaled nor capped. float16, bfloat16 or float32, whatever `q` is; -inf is
        no sink. The log-sum-exp includes it.
    attn_mask : array or BlockMask, optional
        It broadcasts to [batch, num_q_heads, seqlen_q, seqlen_kv], whatever the layout, and is read
        through its strides, never expanded. Of bool, True is seen. Of float16, bfloat16 or float32
        it is added to the logits, natural; -inf and the least number of its type hide the key. For
        many calls `cuattn.block_mask` looks at it once.
    alibi_slopes : array [num_q_heads] or [batch, num_q_heads], optional
        The slope times a key's distance from the row's own is taken from its logit. float16,
        bfloat16 or float32.
    score_mod : str or ScoreMod, optional
        An expression in CUDA C++ that a logit becomes, such as ``"score - 0.5f * abs(own - kv)"``;
        see `cuattn.ScoreMod`. It is compiled into the kernel. -INFINITY hides the key.
    mask_mod : str or MaskMod, optional
        One that says whether a row sees a key, such as ``"own / 8192 == kv / 8192"``; see
        `cuattn.MaskMod`. All blocks of keys are visited that `is_causal`, `window_size` and
        `attn_mask` leave, however few it leaves of them.
    cu_seqlens_q, cu_seqlens_k : array of int32 [batch + 1], optional
        Both or neither: sequences of different lengths lie end to end, that of number b from token
        ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``, and each is attended by itself. `q` is then
        [total_q, num_q_heads, head_dim] and `k` and `v` are [total_k, num_kv_heads, head_dim],
        whatever the layout; so is `out`. Tokens from ``cu_seqlens[batch]`` on are neither read nor
        written. Only the device reads these numbers: a captured call may be replayed with others
        within the same bounds. `attn_mask` is refused; `batch` of an expression is the
        number of the sequence, whose own are `q` and `kv`.
    max_seqlen_q, max_seqlen_k : int, optional
        With these, what no sequence is longer than: total_q and total_k by default. Of a longer one
        the rest is left out. Tight ones save time, and memory if Q is smoothed.
    seqused_k : array of int32 [batch], optional
        How many keys of each sequence count, from its first one on; those behind are padding, which
        may hold anything. Rows are aligned with the last one that counts.
    scale : float, optional
        Factor of the products of q and k, by default ``1/sqrt(head_dim)`` of these.
    scheme : str or Scheme
        A key of `cuattn.PRESETS` or a scheme of your own. A QuantizedTensor must have been made for
        a scheme that quantizes that operand alike, and K and V of sorted keys by one call of
        `cuattn.quantize_kv`, or one by one by `cuattn.quantize`. "auto" is the faster one of "fp16"
        and "int8", "auto-block" the fastest of these and "int8-block", for this GPU, shape and mask
        by a table of times: `cuattn.auto_scheme` says which and why. Both take arrays only, and in
        host memory are "int8" and "int8-block".
    layout : {"HND", "NHD"}
        Order of the axes of arrays, `out` included; a QuantizedTensor has none.
    return_lse : bool
        Return the log-sum-exp of the logits too. If `q` is a QuantizedTensor and the scheme smooths
        K, this, like `softcap`, `sinks` and `score_mod`, takes memory for `q` in float32 for a
        while.
    out : array, optional
        Written and returned: of any library but JAX, whose arrays are immutable, with the shape of
        `o`, type and device of `q`, overlapping no other array, and requiring no gradients. One
        whose rows are not contiguous or begin at odd elements is written by a copy.
    check_finite : bool
        Raise for NaN and infinities in `q`, `k` and `v`. This waits for the GPU.
    stream : int or stream, optional
        Where the work is enqueued: an address, or an object with ``__cuda_stream__``, ``ptr`` or
        ``cuda_stream``. By default PyTorch's current stream if `q` is its tensor, else CuPy's.

    Returns
    -------
    o : array with the shape of `q` but for the head_dim, which is that of `v`, and its type
        `out` if given; else of PyTorch or JAX if `q` is, and otherwise of CuPy on a GPU and of
        NumPy in host memory. A row that sees no key is 0, with a sink or without.
    lse : array of float32 [batch, num_q_heads, seqlen_q]
        Only with `return_lse`; with `cu_seqlens_q` [num_q_heads, total_q]. Natural logarithm. Of a
        row that sees no key it is the sink, -inf without one.

    Raises
    ------
    ArgumentError
        If an argument is wrong: it names the argument, and nothing has been launched or written.
        Of an unknown keyword it says which was meant, and is a TypeError too.
    NoGPUError
        If arrays are on a GPU that CuPy cannot use.
    UnsupportedError
        If the GPU, the driver or the compiler is too old.
    CompileError
        If the compiler is missing or fails, or rejects `score_mod` or `mask_mod`: it says which
        line of theirs and why.

    Notes
    -----
    NaN and infinities act as far as the scheme's scales reach; an infinity, which has no code of 8
    bits, acts like NaN. In a row of Q it makes that row NaN, and those that share its scale. In a
    key it does so to every row that sees the key or another one that shares its scale. With one
    scale for a head, in Q or K, it does so to all rows of the head. In V it does so, with a scale
    per token, to every row that sees the token (on the GPU, to their lse too), per block, to every
    row that sees any of its tokens; else to the channel or, with one scale, to all of the output.
    Rotated, it is that of all channels that are rotated together. Means leave such elements out.
    Unquantized operands follow IEEE arithmetic, except that in V they, and a scale per block, may
    also reach rows that do not see the token: those that see another one of its tile, and some up
    to a tile before the first one that sees it. In a mask, a sink or a slope NaN makes its rows so.

    If Q is smoothed and K is a QuantizedTensor, what smoothing took from the scores is worked out
    with the values that K's codes stand for: with 4 bits the result is a little less accurate.

    In a function that `torch.compile` compiles, a call breaks the graph and runs as it is.

    On the GPU nothing waits for the GPU, and all memory is CuPy's, except for outputs in PyTorch's.
    A call can be captured into a CUDA graph after one call of its kind, which loads the kernels.
    What a captured call uses as workspace is free again for others when it returns, so capture with
    an allocator of its own and keep it as long as the graph::

        pool = cupy.cuda.MemoryPool()
        with cupy.cuda.using_allocator(pool.malloc):
            ...  # capture
    """
    given: dict[Name, Any] = {"q": q, "k": k, "v": v}
    scores: dict[str, Any] = {}
    have_scores = sinks is not None or alibi_slopes is not None or attn_mask is not None
    if have_scores or cu_seqlens_q is not None or cu_seqlens_k is not None or seqused_k is not None:
        arrays = (cu_seqlens_q, cu_seqlens_k, seqused_k, sinks, alibi_slopes, attn_mask)
        pairs = zip(OPTION_NAMES, arrays, strict=True)
        scores = {name: x for name, x in pairs if x is not None}
    window = window_size if window_size is ALL_KEYS else checked_window(window_size)
    mods: Mods | None = None
    functions: tuple[ScoreMod | None, MaskMod | None] = (None, None)
    if score_mod is not None or mask_mod is not None:
        functions = mod_of(ScoreMod, score_mod), mod_of(MaskMod, mask_mod)
        mods, arrays_of_mods = mods_of(*functions)
        scores |= arrays_of_mods
    options = Options(
        scheme,
        scale,
        is_causal,
        return_lse,
        layout,
        window,
        softcap,
        mods,
        max_seqlen_q,
        max_seqlen_k,
    )
    if check_finite is not False:
        check_flag("check_finite", check_finite)
    check_orders(k, v)
    kind, ordinal = q.device if isinstance(q, QuantizedTensor) else device_of(q, "q")
    if kind == CUDA:
        with on_device(ordinal):
            return attention_on_gpu(given, scores, options, out, check_finite, stream)
    elif kind != CPU:
        raise ArgumentError("q", q, "on an NVIDIA GPU or in host memory")
    elif stream is not None:
        raise ArgumentError("stream", stream, "None for arrays in host memory")
    else:
        o, lse = attention_on_host(given, scores, options, out, check_finite, functions)
    return (o, lse) if return_lse else o
