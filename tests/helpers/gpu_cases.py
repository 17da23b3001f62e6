"""What the tests of attention on a GPU share: inputs, operands as the GPU made them, tolerances."""

import os
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

import cuattn
from cuattn.arrays.caller import stream_at
from cuattn.arrays.device import current_device, target
from cuattn.compile.jit import precompile
from cuattn.operands.operand import DTYPES as DTYPE_OF
from cuattn.plan import kernels as plan
from cuattn.plan.kernels import runnable
from cuattn.plan.listing import attention_specs
from cuattn.plan.prepared import forget_plans
from cuattn.presets import PRESETS
from cuattn.reference import emulate, exact
from cuattn.reference.layout import HEAD_DIMS, pad_head_dim
from cuattn.reference.quantize import Operands
from cuattn.reference.rounding import round_half
from cuattn.reference.smoothing import lse_shift, products_with_means
from cuattn.scheme import Scheme


def runs_here(scheme):
    """Whether the GPU has kernels of a scheme; yes where there is no GPU."""
    return bool(runnable([scheme]))


# Those that are tried with everything; test_schemes_gpu.py has the others.
CORE = (
    *("int8", "int8-token", "int8-block", "int8-fast", "int8-fp8", "int8-fp16"),
    *("int4", "int-flash", "int-flash-half", "fp8", "fp16"),
)
ALL_SCHEMES = {
    **{name: PRESETS[name] for name in CORE},
    # What they leave out.
    "bare sorted": Scheme("bare sorted", k_scope="sorted", v_scope="sorted", smooth_k="none"),
    "mean": Scheme("mean", smooth_k="mean", smooth_v="mean"),
    "bare": Scheme("bare", smooth_k="none", smooth_v="none"),
    "running": Scheme(
        "running", k_scope="block", v_scope="channel", p_range="row", smooth_v="mean"
    ),
    "plain fp8": Scheme("plain fp8", pv="fp8", v_scope="tensor", p_range="row", smooth_k="none"),
    "half block": Scheme("half block", k_scope="block", pv="fp16", p_range="row", p_block=64),
}
SCHEMES = {name: scheme for name, scheme in ALL_SCHEMES.items() if runs_here(scheme)}
# A Hopper GPU makes FP8 products of the other family of other instructions.
MMA_SCHEMES = [name for name, how in SCHEMES.items() if "fp8" not in (how.qk, how.pv)]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
every_preset = pytest.mark.parametrize("scheme", [name for name in SCHEMES if name in PRESETS])

# What matters of (queries, keys): whether rows see nothing under a mask, and whether blocks of
# keys, and rows of a warpgroup, are whole.
OF_LENGTHS = (
    lambda seqlens: seqlens[0] > seqlens[1],
    lambda seqlens: seqlens[1] % 128 == 0,
    lambda seqlens: seqlens[0] % 64 == 0,
)

DTYPES = ("float16", "bfloat16", "float32")

# Half a unit in the last place, relative.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}


@pytest.fixture(scope="session", autouse=True)
def _kernels():
    """Compile what the tests need on all cores; one after the other it would take minutes.

    Processes that share the tests compile as they go, and find each other's kernels on disk.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    arch = current_device().arch
    precompile(attention_specs(SCHEMES.values(), HEAD_DIMS, DTYPES, target(arch)), [arch])


@contextmanager
def mma_family(*, native_int4=False):
    """Let the kernels of mma.sync serve all calls, whatever the GPU has besides.

    With `native_int4` those that multiply 4 bits too, of which a GPU without makes others.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "wgmma_serves", lambda target, scheme: False)
        if native_int4:
            native = plan._native_int4
            having = replace(target("89"), native_s4=True)
            patch.setattr(
                plan,
                "_native_int4",
                lambda scheme, head_dim, target: native(scheme, head_dim, having),
            )
        _forget_plans()
        try:
            yield
        finally:
            _forget_plans()


def _forget_plans():
    plan.attention_spec.cache_clear()
    forget_plans()


def make(rng, *, batch=1, heads=(2, 2), seqlens=(128, 128), head_dim=64, head_dim_v=None):
    """Return float32 Q, K, V: normal, with a channel bias in K and an offset in V.

    V has the head_dim of Q and K unless it has one of its own.
    """
    q_heads, kv_heads = heads
    seqlen_q, seqlen_kv = seqlens

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    q = normal(batch, q_heads, seqlen_q, head_dim)
    k = normal(batch, kv_heads, seqlen_kv, head_dim) + 2 * normal(1, kv_heads, 1, head_dim)
    v = normal(batch, kv_heads, seqlen_kv, head_dim_v or head_dim) + np.float32(0.5)
    return q, k, v


def on_gpu(x, dtype):
    """Return an array of CuPy in a type."""
    import cupy

    if dtype != "bfloat16":
        return cupy.asarray(x.astype(dtype))
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return cupy.asarray(x.astype(ml_dtypes.bfloat16).view(np.uint16)).view(ml_dtypes.bfloat16)


def on_host(x):
    """Return an array of CuPy in NumPy's memory, as float32 if it is bfloat16."""
    if x.dtype.name == "bfloat16":
        return (x.view(np.uint16).get().astype(np.uint32) << np.uint32(16)).view(np.float32)
    return x.get()


def run(arrays, scheme, **options):
    """Return (o, lse) of a scheme: one of `SCHEMES` by name, or any other itself."""
    return cuattn.attention(*arrays, scheme=scheme_of(scheme), return_lse=True, **options)


def scheme_of(scheme):
    return scheme if isinstance(scheme, Scheme) else SCHEMES[scheme]


def assert_same(result, wanted):
    """Compare (o, lse) with another, value by value."""
    for x, y in zip(result, wanted, strict=True):
        np.testing.assert_array_equal(on_host(x), on_host(y))


def assert_runs_are_bit_identical(arrays, scheme, *, times, is_causal):
    """Repeat a call and compare bits, which also tells NaN and signs of zeros."""
    first = run(arrays, scheme, is_causal=is_causal)
    for _ in range(times):
        for x, y in zip(run(arrays, scheme, is_causal=is_causal), first, strict=True):
            assert on_host(x).tobytes() == on_host(y).tobytes()


def quantized(arrays, scheme):
    """Return tensors by name of what a scheme quantizes of Q, K and V; of sorted keys a pair."""
    how = scheme_of(scheme)
    given = dict(zip("qkv", arrays, strict=True))
    products = {"q": how.qk, "k": how.qk, "v": how.pv}
    if how.k_scope == "sorted":
        pair = cuattn.quantize_kv(given["k"], given["v"], scheme=how)
        return {
            "q": cuattn.quantize(given["q"], operand="q", scheme=how),
            "k": pair[0],
            "v": pair[1],
        }
    return {
        name: cuattn.quantize(x, operand=name, scheme=how)
        for name, x in given.items()
        if products[name] != "fp16"
    }


def operands_of(arrays, scheme):
    """Return the operands of the products as the GPU quantizes or rounds them."""
    scheme = scheme_of(scheme)
    bf16 = scheme.qk == "fp16" and arrays[0].dtype.name == "bfloat16"
    half = "bfloat16" if bf16 else "float16"
    tensors = quantized(arrays, scheme)
    operands = {
        name: tensors[name].to_reference() if name in tensors else round_half(on_host(x), half)
        for name, x in zip("qkv", arrays, strict=True)
    }
    delta = None
    if scheme.smooth_q != "none":
        means = tensors["q"].vector.get()
        delta = products_with_means(means, on_host(arrays[1]), operands["k"].vector)
    return Operands(**operands, compute=half, delta=delta)


def emulated(arrays, scheme, *, is_causal=False, scale=None, **scores):
    """Return (o, lse) of the emulation on the GPU's own codes; options of scores are NumPy's."""
    operands = operands_of(arrays, scheme)
    q = on_host(arrays[0])
    factor = q.shape[3] ** -0.5 if scale is None else scale
    shift = lse_shift(q, getattr(operands.k, "vector", None), factor)
    options = {"is_causal": is_causal, "scale": scale, **scores}
    return emulate.emulate(operands, scheme_of(scheme), lse_shift=shift, **options)


def check(result, arrays, scheme, *, is_causal=False, scale=None, **scores):
    """Compare a result with the emulation on the same codes, tightly, and with exact attention."""
    options = {"is_causal": is_causal, "scale": scale, **scores}
    allowed = tolerance(scheme, scores.get("softcap", 0.0))
    dtype = arrays[0].dtype.name
    o, lse = (on_host(x).astype(np.float64) for x in result)
    wanted, wanted_lse = emulated(arrays, scheme, **options)
    of_sums = rounding_of_float_sums(arrays, scheme, is_causal)
    assert_close(o, wanted, dtype, allowed, of_sums)
    assert_same_lse(lse, wanted_lse, allowed)
    truth, _ = exact.attention(*map(on_host, arrays), **options)
    error, most = relative_l1(o, truth), relative_l1(wanted, truth)
    if of_sums:
        most += of_sums / np.abs(truth).mean()
    assert error <= 1.25 * most + ROUNDING[dtype] + allowed.of_cap, (error, most)


# What sums of P V that begin at the bits of 12582912 may cost, in steps of V: attention_sm90.cu.
FLOAT_SUMS = 1 / 40


def rounding_of_float_sums(arrays, scheme, is_causal):
    """Return how far float sums may take O: a part of the largest step of V, or 0 without them."""
    how = scheme_of(scheme)
    facts = target(current_device().arch)
    kind = (how, pad_head_dim(arrays[0].shape[3]), DTYPE_OF[arrays[0].dtype.name], is_causal, facts)
    head_dim_v = pad_head_dim(arrays[2].shape[3])
    if not getattr(plan.attention_spec(*kind, head_dim_v=head_dim_v), "float_sums", False):
        return 0.0
    v = cuattn.quantize(arrays[2], operand="v", scheme=how)
    return FLOAT_SUMS * float(v.to_reference().scale.max())


class Tolerance(NamedTuple):
    """How far a kernel may be from the emulation: O relative to its norm, and lse."""

    rms: float
    median: float
    lse_rtol: float
    lse_atol: float
    of_cap: float = 0.0


# The mma.sync kernels take an integer score out of a float that starts at 12582912, which may cost
# 3/4 of a unit of the score (docs/numerics.md); a unit is up to 3e-4 of the exponent here, where K
# is not smoothed. So exponents are off by up to 2^-12 (2^-11 at head_dim 8), and P by as much. That
# is below a step of P, but a P closer than this to the middle of two steps rounds the other way:
# 127 * 2^-12 or 3 % of them where there are 127 steps. These errors are independent, so in the norm
# of O they come to at most sqrt(3 %) / 127 = 1.4e-3.
_FLIPS = Tolerance(rms=1.4e-3, median=2.0**-12, lse_rtol=2.0**-18, lse_atol=2.0**-11)
# An e4m3 P has steps of up to 1/8 of itself, so that 2 * 8 * 2^-12 or 0.4 % of them round the other
# way, by less than 1/11 on average: sqrt(0.4 %) / 11 = 6e-3. The tensor cores add FP8 products with
# 13 bits behind the point, cut off.
_FP8_VALUES = _FLIPS._replace(rms=6e-3, median=2.0**-10)
# Of Q K^T cut off in this way an exponent of 20 may be wrong by 5e-3, which takes one in twenty
# e4m3 P over an edge.
_FP8_SCORES = Tolerance(rms=3e-2, median=1.2e-2, lse_rtol=2.0**-10, lse_atol=2.0**-8)


# Of tanh.approx.f32 (PTX ISA, section 9.7.3.22): the largest relative error, of what is at most 1.
_TANH = 2.0**-10.987


def tolerance(scheme, softcap=0.0):
    """Return what a scheme's products allow for, and a softcap's hyperbolic tangent."""
    how = scheme_of(scheme)
    of_products = _FP8_SCORES if how.qk == "fp8" else _FP8_VALUES if how.pv == "fp8" else _FLIPS
    # The error of a logit, which is that of its weight; and P that rounds the other way for it.
    of_cap = 2 * _TANH * softcap
    return Tolerance(
        of_products.rms + of_cap,
        of_products.median + of_cap,
        of_products.lse_rtol,
        of_products.lse_atol + of_cap,
        of_cap,
    )


def assert_close(o, wanted, dtype="float32", allowed=_FLIPS, of_sums=0.0):
    """Outputs may differ by float32 arithmetic, by what it makes of P, and by their rounding.

    `of_sums` is what float sums may add to each: `rounding_of_float_sums`.
    """
    assert o.shape == wanted.shape
    assert np.isfinite(o).all()
    if not o.size or not wanted.any():
        np.testing.assert_array_equal(o, wanted)
        return
    off = np.abs(o - wanted)
    norm = np.sqrt(np.mean(wanted**2))
    worst = np.unravel_index(off.argmax(), off.shape)
    where = f"worst at {worst}: {o[worst]} instead of {wanted[worst]}"
    assert np.sqrt(np.mean(off**2)) <= (allowed.rms + ROUNDING[dtype]) * norm + of_sums, where
    assert np.median(off) <= (allowed.median + ROUNDING[dtype]) * norm + of_sums, where


def assert_same_lse(lse, wanted, allowed=_FLIPS):
    """Sums of unrounded P have no steps: only the error of the exponents is allowed for."""
    assert lse.shape == wanted.shape
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(wanted))
    seen = np.isfinite(wanted)
    np.testing.assert_allclose(
        lse[seen], wanted[seen], rtol=allowed.lse_rtol, atol=allowed.lse_atol
    )


def relative_l1(o, truth):
    """Error as the benchmarks state it; 0 where nothing is to be attended."""
    total = np.abs(truth).sum()
    return float(np.abs(o - truth).sum() / total) if total else 0.0


def arrays(rng, dtype="float16", **sizes):
    sizes = {"heads": (4, 2), "seqlens": (200, 300), "head_dim": 64} | sizes
    return [on_gpu(x, dtype) for x in make(rng, **sizes)]


def as_cupys(stream):
    """Return a stream of PyTorch as one of CuPy: by address, for older PyTorch."""
    return stream_at(stream.cuda_stream)


def delay(cupy, stream, seconds=0.05):
    """Keep a stream busy, so that whoever does not wait for it reads too early."""
    spin = cupy.RawKernel(
        r"""extern "C" __global__ void spin(long long cycles) {
          for (const long long end = clock64() + cycles; clock64() < end;) {}
        }""",
        "spin",
    )
    with stream:
        spin((1,), (1,), (np.int64(seconds * 1.5e9),))
