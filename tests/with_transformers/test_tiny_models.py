"""Models of Transformers with cuattn's attention, against their own in float32."""

import numpy as np
import pytest
from tiny_models import (
    DECODERS,
    asks_for_attention,
    keyword,
    logits,
    model_of,
    padded,
    prompt,
    relative_l1,
)

pytestmark = pytest.mark.needs("torch", "transformers")


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_logits_are_those_of_the_models_own_attention(hf, name, side):
    model = model_of(hf, name)
    ids, mask = padded(hf, side)
    ours = hf.ours.register("fp16", "cuattn-fp16")
    exact = logits(hf, model, "eager", ids, attention_mask=mask)
    found = logits(hf, model, ours.name, ids, attention_mask=mask)
    real = mask.numpy().astype(bool)
    assert ours.calls == {"cuattn": 2}
    assert 0 < relative_l1(found[real], exact[real]) < 0.003


@pytest.mark.parametrize(("scheme", "most"), [("int8", 0.12), ("int8-block", 0.15)])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-oss"])
def test_schemes_are_near(hf, name, scheme, most):
    model = model_of(hf, name)
    ids, mask = padded(hf, "left")
    ours = hf.ours.register(scheme, "cuattn-near")
    exact = logits(hf, model, "eager", ids, attention_mask=mask)
    found = logits(hf, model, ours.name, ids, attention_mask=mask)
    real = mask.numpy().astype(bool)
    assert 0 < relative_l1(found[real], exact[real]) < most


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt-oss"])
def test_texts_with_caches_of_transformers(hf, name, cache):
    model = model_of(hf, name)
    ids, mask = padded(hf, "left", tokens=12)
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    if cache == "static":
        options |= {"cache_implementation": "static", "disable_compile": True}
    texts = []
    ours = hf.ours.register("fp16", "cuattn-fp16")
    for attention in ("eager", ours.name):
        model.set_attn_implementation(attention)
        texts.append(model.generate(ids, **options).numpy())
    np.testing.assert_array_equal(*texts)
    assert ours.calls == {"cuattn": 2, "PyTorch: one query": 10}


def test_decoding_that_generate_compiles(hf):
    model = model_of(hf, "llama")
    ids, mask = padded(hf, "left", tokens=12)
    how = hf.library.CompileConfig(backend="eager", fullgraph=True, mode=None)
    how._compile_all_devices = True  # not on GPUs only
    static = {"cache_implementation": "static", "compile_config": how}
    texts = []
    ours = hf.ours.register("fp16", "cuattn-fp16")
    for attention, more in (("eager", {}), (ours.name, static)):
        model.set_attn_implementation(attention)
        options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, **more}
        texts.append(model.generate(ids, **options).numpy())
    np.testing.assert_array_equal(*texts)
    assert ours.calls == {"cuattn": 2, "PyTorch: one query": 6}


def test_later_chunks_of_a_prompt_are_cuattns(hf):
    """Several queries behind keys of before, with windows that forget, and padding."""
    for name in ("llama", "qwen2"):
        model = model_of(hf, name)
        ids, mask = padded(hf, "left")
        whole = logits(hf, model, "eager", ids, attention_mask=mask)
        ours = hf.ours.register("fp16", "cuattn-fp16")
        model.set_attn_implementation(ours.name)
        cache = hf.library.DynamicCache(config=model.config)
        for part in (slice(0, 13), slice(13, 21)):
            options = {keyword(hf): cache, "attention_mask": mask[:, : part.stop]}
            found = logits(hf, model, ours.name, ids[:, part], **options)
            real = mask[:, part].numpy().astype(bool)
            assert relative_l1(found[real], whole[:, part][real]) < 0.003
        assert ours.calls == {"cuattn": 4}


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_t5_has_its_biases_and_both_its_masks(hf, side):
    model = model_of(hf, "t5")
    ids, mask = padded(hf, side)
    options = {"attention_mask": mask, "decoder_input_ids": prompt(hf, tokens=9, seed=1)}
    exact = logits(hf, model, "eager", ids, **options)
    ours = hf.ours.register("fp16", "cuattn-fp16")
    found = logits(hf, model, ours.name, ids, **options)
    if asks_for_attention(model):
        assert 0 < relative_l1(found, exact) < 0.003
        assert ours.calls == {"cuattn": 6}
    else:  # it has its own whatever it is told, and `calls` says so
        np.testing.assert_array_equal(found, exact)
        assert ours.calls == {}


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_bert_leaves_padding_out(hf, side):
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 64}
    config = hf.library.BertConfig(vocab_size=96, num_hidden_layers=2, **sizes)
    hf.torch.manual_seed(0)
    model = hf.library.BertForMaskedLM(config).eval()
    ids, mask = padded(hf, side)
    ours = hf.ours.register("int8", "cuattn-bert")
    exact = logits(hf, model, "eager", ids, attention_mask=mask)
    found = logits(hf, model, ours.name, ids, attention_mask=mask)
    real = mask.numpy().astype(bool)
    assert ours.calls == {"cuattn": 2}
    assert 0 < relative_l1(found[real], exact[real]) < 0.02


def test_masks_that_are_written_out(hf):
    """A caller's own, [batch, 1, query, key], of bool and added; and sequences packed in one."""
    model = model_of(hf, "llama")
    ids, _ = padded(hf, "none", batch=1)
    tokens = ids.shape[1]
    places = hf.torch.arange(tokens)
    packed = (places[:, None] >= places) & (places[:, None] // 8 == places // 8)
    ours = hf.ours.register("fp16", "cuattn-fp16")
    added = hf.torch.where(packed, 0.0, hf.torch.finfo(hf.torch.float32).min)
    exact = logits(hf, model, "eager", ids, attention_mask=added[None, None])
    for mask in (packed, added):
        found = logits(hf, model, ours.name, ids, attention_mask=mask[None, None])
        assert 0 < relative_l1(found, exact) < 0.003
    # Positions that begin anew are sequences of their own.
    positions = {"position_ids": (places % 8)[None], "use_cache": False}
    exact = logits(hf, model, "eager", ids, **positions)
    assert 0 < relative_l1(logits(hf, model, ours.name, ids, **positions), exact) < 0.003
