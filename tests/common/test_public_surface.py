"""All that is public says which keyword was meant, whether it computes, makes or only tells."""

import inspect
from functools import partial

import pytest

import cuattn
import cuattn.distributed
from cuattn.distributed import DistributedKVCache, MismatchError
from cuattn.distributed.virtual import single
from cuattn.errors import KeywordError

SIZES = {"batch": 1, "num_kv_heads": 1, "head_dim": 64, "capacity": 16}


def surface(module):
    """Functions, constructors and methods by their names; what takes any keyword is not there."""
    for name in module.__all__:
        x = getattr(module, name)
        if not callable(x) or (isinstance(x, type) and issubclass(x, BaseException)):
            continue
        if not inspect.isabstract(x):
            yield name, x
        own = {*dir(x)} - {*dir(tuple)} if isinstance(x, type) else ()
        for member in sorted(own):
            if not member.startswith("_") and callable(method := getattr(x, member)):
                is_bound = not inspect.isfunction(inspect.getattr_static(x, member))
                yield f"{name}.{member}", method if is_bound else partial(method, None)


FOUND = {
    f"{module.__name__}.{name}": x
    for module in (cuattn, cuattn.distributed)
    for name, x in surface(module)
}
TAKE_ANY = {"cuattn.KVCache.bytes_needed", "cuattn.distributed.DistributedKVCache"}


def test_the_surface_is_that_which_users_meet():
    assert len(FOUND) > 80
    assert {"cuattn.KVCache.fork", "cuattn.LatentKVCache", "cuattn.Scheme.rotates"} < FOUND.keys()
    any_keyword = {
        name
        for name, x in FOUND.items()
        if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(x).parameters.values())
    }
    assert any_keyword == TAKE_ANY


@pytest.mark.parametrize("name", [name for name in FOUND if name not in TAKE_ANY])
def test_an_unknown_keyword_is_named_with_those_that_there_are(name):
    with pytest.raises(KeywordError, match="no argument 'no_such_thing'; expected ") as error:
        FOUND[name](no_such_thing=7)
    known = [x for x in inspect.signature(FOUND[name]).parameters if x not in ("self", "_cls")]
    expected = f"one of {known}" if known else "none"
    assert str(error.value).endswith(f"expected {expected}")


@pytest.mark.parametrize(
    ("call", "keyword", "meant"),
    [
        (partial(cuattn.KVCache, **SIZES), "pagesize", "page_size"),
        (partial(cuattn.KVCache.bytes_needed, **SIZES), "smoothk", "smooth_k"),
        (partial(cuattn.KVCache.bytes_needed, **SIZES), "pagesize", "page_size"),
        (partial(cuattn.LatentKVCache, 1, 16), "num_page", "num_pages"),
        (partial(cuattn.LatentKVCache(1, 64, device="cpu").fork, 0, 0), "dest", "dst"),
        (partial(cuattn.KVCache(**SIZES, device="cpu").reserve, 8), "cuda_stream", "stream"),
        (partial(cuattn.MaskMod, "q == kv"), "number", "numbers"),
        (partial(cuattn.measure_error, *"qkv"), "causal", "is_causal"),
        (cuattn.distributed.Link, "bandwith", "bandwidth"),
    ],
)
def test_keywords_that_are_nearly_right(call, keyword, meant):
    with pytest.raises(KeywordError) as error:
        call(**{keyword: 1})
    assert str(error.value) == f"there is no argument {keyword!r}; expected {meant!r}"


@pytest.mark.parametrize(("keyword", "meant"), [("interleaved", "interleave"), ("bit", "bits")])
def test_a_spread_cache_names_its_own_keywords_and_those_of_its_parts(keyword, meant):
    with pytest.raises(MismatchError, match=f"no argument '{keyword}'; expected '{meant}'"):
        DistributedKVCache(single(1.0), **SIZES, device="cpu", **{keyword: 4})
