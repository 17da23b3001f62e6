"""States to merge, and how far what a GPU makes of them may be from the float64 definition."""

import numpy as np

import cuattn
from cuattn.reference.merging import merge_states
from cuattn.specs.merge import MergeSpec
from helpers.arrays_in_memory import MEMORY, as_float32, storage
from helpers.gpu_cases import on_host

# Half a unit in the last place, relative, and of the smallest numbers.
ROUNDING = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 0.0), "float32": (2.0**-24, 0.0)}


def states(rng, parts, shape=(2, 3, 50, 64), *, spread=4.0, empty=0.2):
    """Return o [part, *shape] and lse [part, *shape[:3]] of float32; some parts have no keys."""
    o = rng.standard_normal((parts, *shape), np.float32) + np.float32(0.5)
    lse = (6 + spread * rng.standard_normal((parts, *shape[:3]))).astype(np.float32)
    none = rng.uniform(size=lse.shape) < empty
    lse[none] = -np.inf
    o[none] = rng.choice(np.array([np.nan, np.inf, 7], np.float32), (int(none.sum()), 1))
    return o, lse


def merged(given, o, lse, dtype, **options):
    """Merge, and compare with the definition.

    Parameters
    ----------
    given : (o, lse)
        What `cuattn.merge_states` gets.
    o : ndarray [part, batch, heads, seqlen, head_dim]
        The same as it is stored, in NumPy.
    lse : ndarray of float32

    Returns
    -------
    o, lse : as they were returned
    """
    result = cuattn.merge_states(*given, **options)
    got, got_lse = (_on_host(x) for x in result)
    if options.get("layout") == "NHD":
        got = got.swapaxes(1, 2)
    check(got, got_lse, as_float32(o, dtype), lse, dtype)
    return result


def check(got, got_lse, o, lse, dtype):
    want, want_lse = merge_states(o, lse)
    assert (got.shape, got_lse.shape) == (want.shape, want_lse.shape)
    assert got_lse.dtype == np.float32
    sizes, _ = merge_states(np.abs(o), lse)
    logarithm = np.where(np.isfinite(lse), np.abs(lse), 0).max(axis=0, initial=0)
    # Each launch but the first starts from a logarithm that was rounded, and so are those of the
    # others when the largest is subtracted; then an exponential, and a sum.
    hops = -(-len(o) // MergeSpec.parts)
    slack = 2.0**-23 * (len(o) + 4 + hops * (2 + logarithm))
    relative, absolute = ROUNDING[dtype]
    empty, known = want_lse == -np.inf, np.isfinite(want_lse)
    np.testing.assert_array_equal(got_lse == -np.inf, empty)
    np.testing.assert_array_equal(got[empty], 0)
    np.testing.assert_array_equal(np.isnan(got_lse), np.isnan(want_lse))
    assert np.isnan(got[np.isnan(want_lse)]).all()
    errors = np.abs(got_lse[known] - want_lse[known])
    assert (errors <= (slack + 2.0**-24 * logarithm)[known]).all()
    bound = slack[..., None] * sizes + relative * np.abs(want) + absolute
    assert (np.abs(got[known] - want[known]) <= bound[known]).all()


def placed(xp, o, lse, dtype, memory="contiguous"):
    """Return lists of arrays of a library: o as it is stored, in some way, and lse."""
    parts = [typed(MEMORY[memory](x)(xp), dtype) for x in o]
    return parts, [xp.asarray(x) for x in lse]


def typed(x, dtype):
    """Look at an array of CuPy that holds bits of bfloat16 as what they mean."""
    if dtype != "bfloat16" or isinstance(x, np.ndarray):
        return x
    import ml_dtypes

    return x.view(ml_dtypes.bfloat16)


def stored_states(rng, dtype, *args, **options):
    """As `states`, with o as it is stored."""
    o, lse = states(rng, *args, **options)
    with np.errstate(over="ignore", invalid="ignore"):
        return storage(o, dtype), lse


def on_device(cupy, rng, dtype="float16", parts=3, shape=(2, 3, 50, 64), **options):
    """Return states in NumPy, and the same as lists of arrays of CuPy."""
    o, lse = stored_states(rng, dtype, parts, shape, **options)
    return (o, lse), placed(cupy, o, lse, dtype)


def assert_same_bits(result, wanted):
    for x, y in zip(result, wanted, strict=True):
        assert on_host(x).tobytes() == on_host(y).tobytes()


def _on_host(x):
    """Return an array of a GPU, real or simulated, as float32."""
    if isinstance(x, np.ndarray):
        return as_float32(x, "bfloat16" if x.dtype == np.uint16 else x.dtype.name)
    return on_host(x).astype(np.float32)
