"""Any calls on a KV cache that change its sequences, against a plain model of it."""

import pytest
from helpers.kv_contents_cases import GPU, HOST, Place, _kernels  # noqa: F401
from helpers.kv_histories import histories, live
from hypothesis import example, given, settings

# Pages with some of the first keys, which have no offset, are evicted, and others of them stay.
SOME_FIRST_KEYS = {
    "batch": 1,
    "format": "8 bits",
    "smooth_k": True,
    "page_size": 16,
    "pages": 6,
    "window": 1,
    "sink_tokens": 5,
    "begin": (2, 0, 0, 0),
    "turns": [("append", (n, 0, 0, 0)) for n in (19, 44, 64)],
    "seed": 0,
}


class Simulated(Place):
    """A GPU that is simulated, whose arrays are NumPy's."""

    def array(self, x, dtype="float16"):
        return x.astype(dtype)

    def host(self, x):
        return x


@settings(max_examples=100)
@given(history=histories())
@example(history=SOME_FIRST_KEYS)
def test_any_history_on_the_host(history):
    live(HOST, history)


@settings(max_examples=30)
@given(history=histories())
def test_any_history_of_calls_on_a_simulated_gpu(history):
    pytest.importorskip("cupy")
    from simulated_gpu import SimulatedGPU

    with pytest.MonkeyPatch.context() as patch:
        SimulatedGPU(patch)
        live(Simulated(None), history)


@pytest.mark.slow
@settings(max_examples=1000)
@given(history=histories())
def test_a_thousand_histories_on_the_host(history):
    live(HOST, history)


@pytest.mark.gpu
@settings(max_examples=1000)
@given(history=histories())
@example(history=SOME_FIRST_KEYS)
def test_a_thousand_histories_on_the_gpu(history):
    live(GPU, history)
