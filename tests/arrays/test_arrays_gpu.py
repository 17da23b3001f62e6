"""Arrays that are not quite what they seem, on a GPU: each is read as it should be, or refused."""

import copy
import pickle
import warnings

import numpy as np
import pytest
from helpers.gpu_cases import arrays, as_cupys, delay, on_host

import cuattn
from cuattn.errors import ArgumentError

pytestmark = pytest.mark.gpu


def fake(torch, x):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        return mode.from_tensor(x)


def nested(torch, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the form may change
        return torch.nested.nested_tensor([x[0], x[0]])


KINDS = {
    "fake": fake,
    "meta": lambda torch, x: x.to("meta"),
    "sparse": lambda torch, x: x.to_sparse(),
    "nested": nested,
    "gradients": lambda torch, x: x.clone().requires_grad_(),
    "zero": lambda torch, x: torch._efficientzerotensor(x.shape, dtype=x.dtype, device=x.device),
}


@pytest.mark.parametrize("which", ["q", "k", "v", "out"])
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_are_no_plain_memory_are_refused(torch, rng, kind, which):
    q, k, v = (torch.from_dlpack(x) for x in arrays(rng))
    expected = cuattn.attention(q, k, v)
    given = {"q": q, "k": k, "v": v}
    given[which] = KINDS[kind](torch, q)
    with pytest.raises(ArgumentError) as error:
        cuattn.attention(**given)
    assert error.value.argument.partition(".")[0] == which
    # The context is still there.
    assert torch.equal(cuattn.attention(q, k, v), expected)


def test_transforms_are_refused(torch, rng):
    q, k, v = (torch.from_dlpack(x) for x in arrays(rng))
    with pytest.raises(ArgumentError, match=r"^k must be "):
        torch.vmap(lambda x: cuattn.attention(q, x, v))(k[None])


def test_what_is_negated_when_it_is_read_is_read_so(torch, rng):
    q, k, v = (torch.from_dlpack(x).float() for x in arrays(rng))
    lazy = torch.complex(torch.zeros_like(k), -k).conj().imag
    assert lazy.is_neg()
    assert torch.equal(cuattn.attention(q, lazy, v), cuattn.attention(q, k, v))


def test_parameters_without_gradients_are_taken(torch, rng):
    q, k, v = (torch.from_dlpack(x) for x in arrays(rng))
    expected = cuattn.attention(q, k, v)
    with torch.no_grad():
        assert torch.equal(cuattn.attention(q, torch.nn.Parameter(k), v), expected)


def test_compiled_functions_call_it_as_it_is(torch, rng):
    q, k, v = (torch.from_dlpack(x) for x in arrays(rng))

    def model(q, k, v):
        return cuattn.attention(q * 2, k, v, is_causal=True) + 1

    assert torch.equal(torch.compile(model, backend="eager")(q, k, v), model(q, k, v))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_reads_its_own_memory(cupy, rng, how):
    inputs = arrays(rng)
    tensors = [cuattn.quantize(inputs[0], operand="q"), *cuattn.quantize_kv(*inputs[1:])]
    expected = on_host(cuattn.attention(*tensors))
    # Together, as K and V of sorted keys share their order.
    copies = how(tensors)
    for tensor in tensors:
        tensor.codes.fill(1)
        tensor.scale.fill(1)
    np.testing.assert_array_equal(on_host(cuattn.attention(*copies)), expected)


def test_tensors_are_ordered_before_cupys_stream_of_the_thread(cupy, torch, rng):
    inputs = arrays(rng)
    expected = on_host(cuattn.attention(*inputs))
    k = torch.from_dlpack(inputs[1])
    late, side = torch.zeros_like(k), torch.cuda.Stream()
    torch.cuda.synchronize()
    delay(cupy, as_cupys(side))
    with torch.cuda.stream(side):
        late.copy_(k)
        with cupy.cuda.Stream.ptds:
            o = cuattn.attention(inputs[0], late, inputs[2])
    torch.cuda.synchronize()
    np.testing.assert_array_equal(on_host(o), expected)


@pytest.mark.parametrize("stream", [None, "own"])
def test_managed_memory_is_taken(cupy, rng, stream):
    inputs = arrays(rng)
    expected = on_host(cuattn.attention(*inputs))
    with cupy.cuda.using_allocator(cupy.cuda.malloc_managed):
        managed = [x.copy() for x in inputs]
    cupy.cuda.Device().synchronize()
    given = None if stream is None else cupy.cuda.Stream(non_blocking=True)
    for some in (managed, [inputs[0], *managed[1:]], [managed[0], *inputs[1:]]):
        o = cuattn.attention(*some, stream=given)
        cupy.cuda.Device().synchronize()
        np.testing.assert_array_equal(on_host(o), expected)


def test_subclasses_of_cupys_arrays_are_taken(cupy, rng):
    class Named(cupy.ndarray):
        pass

    inputs = arrays(rng)
    expected = on_host(cuattn.attention(*inputs))
    given = [x.view(type=Named) for x in inputs]
    np.testing.assert_array_equal(on_host(cuattn.attention(*given)), expected)


def test_arrays_of_jax_are_not_written(jax, rng):
    q, k, v = (jax.numpy.asarray(on_host(x)) for x in arrays(rng, "float32"))
    out = jax.numpy.zeros_like(q)
    with pytest.raises(ArgumentError, match=r"^out must be writable"):
        cuattn.attention(q, k, v, out=out)
    assert not np.asarray(out).any()
