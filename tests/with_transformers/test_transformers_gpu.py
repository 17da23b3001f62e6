"""`cuattn.transformers` on a GPU: kernels behind a model's attention, its caches, and graphs."""

import numpy as np
import pytest
from tiny_models import DECODERS, keyword, model_of, padded, prompt, relative_l1

pytestmark = [pytest.mark.gpu, pytest.mark.needs("torch", "transformers")]


@pytest.fixture
def on_gpu(hf, torch):
    """Return a function that makes a model in half precision on the GPU."""
    made = []

    def make(name, dtype="float16"):
        model = model_of(hf, name).to("cuda", getattr(torch, dtype))
        made.append(model)
        return model

    yield make
    for model in made:  # they are shared with the tests of host memory
        model.to("cpu", torch.float32)


def logits(hf, model, attention, ids, **options):
    model.set_attn_implementation(attention)
    with hf.torch.inference_mode():
        return model(ids, **options).logits.double().cpu().numpy()


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_logits_are_those_of_the_models_own_attention(hf, on_gpu, name, dtype, side):
    model = on_gpu(name, dtype)
    ids, mask = (x.cuda() for x in padded(hf, side, tokens=300, padding=90))
    real = mask.cpu().numpy().astype(bool)
    ours = hf.ours.register("int8", "cuattn-gpu")
    exact = logits(hf, model, "eager", ids, attention_mask=mask)
    found = logits(hf, model, ours.name, ids, attention_mask=mask)
    assert ours.calls == {"cuattn": 2}
    # Routers of experts turn small errors into others.
    most = 0.4 if name == "gpt-oss" else 0.15
    assert 0 < relative_l1(found[real], exact[real]) < most
    np.testing.assert_array_equal(logits(hf, model, ours.name, ids, attention_mask=mask), found)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-oss"])
def test_texts_are_the_same_again(hf, on_gpu, bits, how, name):
    model = on_gpu(name)
    ours = hf.ours.register("int8", "cuattn-gpu")
    model.set_attn_implementation(ours.name)
    ids, mask = (x.cuda() for x in padded(hf, "left", tokens=100, padding=30))
    texts = []
    for _ in range(2):
        cache = hf.ours.Cache(model.config, 128, bits=bits)
        options = {"max_new_tokens": 20, "do_sample": False, "attention_mask": mask, **how}
        texts.append(model.generate(ids, **options, **{keyword(hf): cache}))
    assert hf.torch.equal(*texts)
    assert set(ours.calls) == {"cuattn, cache"}


def test_caches_are_those_of_host_memory(hf, on_gpu):
    """Beams and crops leave the same tokens as `cuattn.KVCache` has in host memory."""
    ids, mask = padded(hf, "left", batch=3, tokens=40, padding=9)
    model = model_of(hf, "mistral")
    codes = []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        cache = hf.ours.Cache(model.config, 64)
        ours = hf.ours.register("fp16", "cuattn-gpu")
        options = {"attention_mask": mask.to(device), keyword(hf): cache}
        logits(hf, model, ours.name, ids.to(device), **options)
        cache.reorder_cache(hf.torch.tensor([1, 0, 1], device=device))
        cache.crop(-3)
        kv = cache.layers[0].kv
        np.testing.assert_array_equal(kv.lengths, [37, 28, 37])
        codes.append(kv.codes()[0].codes.astype(int))
    model.to("cpu")
    # Both round what their own matrix products have made.
    assert abs(codes[0] - codes[1]).max() <= 1
    assert np.mean(codes[0] != codes[1]) < 0.02


def test_a_step_can_be_captured_and_replayed(hf, on_gpu, torch):
    model = on_gpu("llama")
    ours = hf.ours.register("int8", "cuattn-gpu")
    model.set_attn_implementation(ours.name)
    ids = prompt(hf, tokens=40).cuda()
    caches = [hf.ours.Cache(model.config, 64) for _ in range(2)]
    word = torch.zeros((2, 1), dtype=torch.int64, device="cuda")
    place = torch.zeros_like(word)

    def step(cache):
        options = {keyword(hf): cache, "position_ids": place, "use_cache": True}
        return model(word, **options).logits

    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        for cache in caches:
            model(ids[:, :30], **{keyword(hf): cache})
            word.copy_(ids[:, 30:31])
            place.fill_(30)
            step(cache)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = step(caches[0])
        # Capturing appends nothing; the layers' counts are read below.
        for i in range(31, 40):
            word.copy_(ids[:, i : i + 1])
            place.fill_(i)
            graph.replay()
            assert torch.equal(captured, step(caches[1]))
        stream.synchronize()
    caches[0].learn_lengths()
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == 40
