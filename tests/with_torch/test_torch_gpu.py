"""`cuattn.torch` on a GPU: graphs, streams, whose memory it is, and what Inductor makes of it."""

import pytest
from helpers.torch_calls import error, own

import cuattn

pytestmark = [pytest.mark.needs("torch"), pytest.mark.gpu]

SCHEMES = ["int8", "int8-block", "int8-fast", "int4", "fp16"]


@pytest.fixture
def qkv(torch, rng):
    """Return a function that makes float16 tensors [batch, head, token, channel]."""

    def make(tokens=300, heads=4, kv_heads=2, head_dim=64):
        sizes = [(1, heads), (1, kv_heads), (1, kv_heads)]
        arrays = [rng.standard_normal((*size, tokens, head_dim), "float32") for size in sizes]
        return [torch.from_numpy(x).cuda().half() for x in arrays]

    return make


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_graph_needs_no_pool_of_its_own(ct, torch, cupy, qkv, scheme):
    def step(q, k, v):
        for _ in range(3):
            q = ct.attention(q, k, v, scheme=scheme, is_causal=True)
        return q

    first, second = qkv(), qkv()
    static = [x.clone() for x in first]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(*static)  # loads the kernels
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = step(*static)
    for given in (first, second, first):
        # Others use all that is free meanwhile.
        torch.cuda.empty_cache()
        cupy.get_default_memory_pool().free_all_blocks()
        noise = [torch.full((1 << 20,), 0xFF, dtype=torch.uint8, device="cuda") for _ in range(64)]
        for to, x in zip(static, given, strict=True):
            to.copy_(x)
        graph.replay()
        assert torch.equal(o, step(*given))
        del noise


def test_a_graph_of_sequences_is_replayed_with_other_lengths(ct, torch, qkv):
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in qkv(kv_heads=4))
    bounds = torch.tensor([0, 100, 300], dtype=torch.int32, device="cuda")

    def step():
        return ct.flash_attn_varlen_func(
            q, k, v, bounds, bounds, 300, 300, causal=True, return_attn_probs=True
        )[:2]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o, lse = step()
    for middle in (100, 17, 290):
        bounds[1] = middle
        graph.replay()
        expected = step()
        assert torch.equal(o, expected[0])
        assert torch.equal(lse, expected[1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_workspace_is_pytorchs_memory(ct, torch, cupy, qkv, scheme):
    q, k, v = qkv(2048)
    ct.attention(q, k, v, scheme=scheme)
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before, in_use = pool.total_bytes(), torch.cuda.memory_allocated()
    o = ct.attention(q, k, v, scheme=scheme, return_lse=True)
    assert pool.total_bytes() == before
    assert torch.cuda.memory_allocated() - in_use < 1.1 * sum(x.nbytes for x in o) + 4096
    assert torch.equal(o[0], cuattn.attention(q, k, v, scheme=scheme))


def test_work_is_enqueued_on_the_current_stream(ct, torch, qkv):
    q, k, v = qkv(1024)
    expected = ct.attention(q, k, v)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = [x.clone() for x in (q, k, v)]
        o = ct.attention(*late)
        assert not stream.query()  # nothing has waited
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(o, expected)


def test_threads_and_streams_share_nothing(ct, torch, qkv):
    from concurrent.futures import ThreadPoolExecutor

    inputs = [qkv(700) for _ in range(4)]
    expected = [ct.attention(*given) for given in inputs]
    torch.cuda.synchronize()

    def run(given):
        with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
            for _ in range(20):
                o = ct.attention(*given)
            torch.cuda.current_stream().synchronize()
        return o

    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(run, inputs), expected))


# PyTorch captures an empty graph to begin with.
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor_makes_one_graph(ct, torch, qkv, mode, dynamic):
    pytest.importorskip("triton")
    torch._dynamo.reset()

    def function(q, k, v):
        o, lse = ct.attention(q + 0.25, k, v, is_causal=True, return_lse=True)
        return o * 2, lse - 1

    compiled = torch.compile(function, fullgraph=True, mode=mode, dynamic=dynamic)
    with torch.inference_mode():
        for tokens in (256, 320):
            for _ in range(4):  # warms up, records a graph, replays it
                given = qkv(tokens)
                torch.compiler.cudagraph_mark_step_begin()
                found = [x.clone() for x in compiled(*given)]
                for x, y in zip(found, function(*given), strict=True):
                    torch.testing.assert_close(x, y)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_autocast(ct, torch, qkv, dtype):
    q, k, v = (x.float() for x in qkv())
    low = [x.to(getattr(torch, dtype)) for x in (q, k, v)]
    with torch.autocast("cuda", getattr(torch, dtype)):
        o = ct.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        assert o.dtype == torch.nn.functional.scaled_dot_product_attention(q, q, q).dtype
    assert torch.equal(o, own(*low))


def test_a_model_on_the_gpu(ct, torch):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(256, 4, 512, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).cuda().half().train()
    x = torch.randn(2, 640, 256, device="cuda").half()
    with torch.no_grad():
        exact = model(x)
        with ct.replace(model, "int8", leave_out="layers.2") as replaced:
            o = model(x)
            assert replaced.calls.schemes == {"int8": 2}
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                again = model(x)
            graph.replay()
            assert torch.equal(again, o)
    assert 0 < error(o, exact) < 0.02


def test_gradients_on_the_gpu(ct, torch, qkv):
    q, k, v = (x.requires_grad_() for x in qkv())
    options = {"is_causal": True, "enable_gqa": True}
    o = ct.scaled_dot_product_attention(q, k, v, **options, scheme="fp16", backward="torch")
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
    found = torch.autograd.grad(o.float().sum(), (q, k, v))
    for x, y in zip(found, torch.autograd.grad(exact.float().sum(), (q, k, v)), strict=True):
        assert error(x, y) < 5e-3
