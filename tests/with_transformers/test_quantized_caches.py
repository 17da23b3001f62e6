"""`cuattn.transformers.Cache`: models of Transformers that generate from INT8 and INT4 caches."""

import numpy as np
import pytest
from tiny_models import (
    DECODERS,
    PAD,
    asks_for_attention,
    keyword,
    logits,
    model_of,
    padded,
    prompt,
    relative_l1,
    take,
)

from cuattn import ArgumentError, UnsupportedError

pytestmark = pytest.mark.needs("torch", "transformers")

TEXT = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}


@pytest.fixture
def attention(hf):
    return hf.ours.register("fp16", "cuattn-cached")


def steps(hf, model, name, cache, ids, mask, prompt_tokens):
    """Return logits of a prompt and of tokens one by one, float64 [batch, token, word]."""
    found = []
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for part in (slice(0, prompt_tokens), *(slice(i, i + 1) for i in range(prompt_tokens, 21))):
        options = {"attention_mask": mask[:, : part.stop], "position_ids": positions[:, part]}
        found.append(logits(hf, model, name, ids[:, part], **options, **{keyword(hf): cache}))
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(("bits", "most"), [(8, 0.08), (4, 0.5)])
def test_tokens_one_by_one_are_near_the_whole(hf, attention, name, bits, most):
    model = model_of(hf, name)
    ids, mask = padded(hf, "left")
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    exact = logits(hf, model, "eager", ids, attention_mask=mask, **positions)
    cache = hf.ours.Cache(model.config, 32, bits=bits)
    found = steps(hf, model, attention.name, cache, ids, mask, 14)
    real = mask.numpy().astype(bool)
    assert attention.calls == {"cuattn, cache": 2 * 8}
    # The prompt is attended as it is.
    assert relative_l1(found[:, :14][real[:, :14]], exact[:, :14][real[:, :14]]) < 0.003
    assert 1e-4 < relative_l1(found[:, 14:], exact[:, 14:]) < most
    assert cache.get_seq_length() == 21
    np.testing.assert_array_equal(cache.layers[0].kv.lengths, [16, 21])


def test_padded_batches_have_the_caches_of_sequences_alone(hf, attention):
    model = model_of(hf, "mistral")
    ids, mask = padded(hf, "left")
    caches = [hf.ours.Cache(model.config, 32) for _ in range(2)]
    batch = steps(hf, model, attention.name, caches[0], ids, mask, 14)
    alone = [
        logits(hf, model, attention.name, ids[:1, part], **{keyword(hf): caches[1]})
        for part in (slice(5, 14), *(slice(i, i + 1) for i in range(14, 21)))
    ]
    # PyTorch's matrix products of other sizes round otherwise, and codes may be others for it.
    assert relative_l1(batch[0, 5:], np.concatenate(alone, axis=1)[0]) < 0.01
    codes = [cache.layers[0].kv.codes()[0].codes[0, :, :16] for cache in caches]
    assert np.mean(codes[0] != codes[1]) < 0.001


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 3},
        {"do_sample": True, "temperature": 0.7},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=["greedy", "beams", "sampling", "assisted"],
)
def test_texts_are_the_same_again(hf, attention, bits, how):
    model = model_of(hf, "llama")
    model.set_attn_implementation(attention.name)
    batch = 1 if "prompt_lookup_num_tokens" in how else 2
    ids, mask = padded(hf, "left", batch=batch, tokens=12)
    texts = []
    for _ in range(2):
        hf.torch.manual_seed(3)
        cache = hf.ours.Cache(model.config, 24, bits=bits)
        options = {**TEXT, **how, "attention_mask": mask, keyword(hf): cache}
        texts.append(model.generate(ids, **options))
    assert hf.torch.equal(*texts)
    assert texts[0].shape == (batch, 18)
    assert cache.nbytes > 0


def test_beams_are_those_of_the_tokens_that_they_keep(hf, attention):
    """Logits of the best beam, with a cache that was reordered, and without any."""
    model = model_of(hf, "qwen2")
    model.set_attn_implementation(attention.name)
    ids, mask = padded(hf, "left", tokens=12)
    cache = hf.ours.Cache(model.config, 24)
    text = model.generate(
        ids,
        **{**TEXT, "max_new_tokens": 8, "num_beams": 4, "attention_mask": mask, keyword(hf): cache},
        return_dict_in_generate=True,
        output_scores=True,
    )
    whole = hf.torch.cat([mask, hf.torch.ones(2, 8, dtype=mask.dtype)], 1)
    positions = {"position_ids": (whole.cumsum(1) - 1).clamp(min=0)}
    exact = logits(hf, model, "eager", text.sequences, attention_mask=whole, **positions)
    scores = hf.torch.from_numpy(exact).log_softmax(-1)[:, 11:-1]
    chosen = scores.gather(2, text.sequences[:, 12:, None])[..., 0].mean(1)
    np.testing.assert_allclose(text.sequences_scores, chosen, atol=0.02)


def test_cropped_tokens_are_forgotten(hf, attention):
    model = model_of(hf, "llama")
    ids = prompt(hf)
    cache, other = (hf.ours.Cache(model.config, 32) for _ in range(2))
    logits(hf, model, attention.name, ids[:, :12], **{keyword(hf): cache})
    logits(hf, model, attention.name, ids[:, :12], **{keyword(hf): other})
    logits(hf, model, attention.name, ids[:, 5:10], **{keyword(hf): cache})
    cache.crop(0)
    cache.crop(-5)
    assert cache.get_seq_length() == 12
    found = [
        logits(hf, model, attention.name, ids[:, 12:15], **{keyword(hf): some})
        for some in (cache, other)
    ]
    np.testing.assert_array_equal(*found)
    cache.crop(11)  # as Transformers 5.0 says it
    assert cache.get_seq_length() == 11
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.get_mask_sizes(4, 0) == (4, 0)
    assert cache.layers[0].get_max_length() == 32


def test_several_tokens_behind_a_padded_prompt_may_have_padding_too(hf, attention):
    model = model_of(hf, "llama")
    ids, mask = padded(hf, "left")
    mask[1, 17:19] = 0  # the second turn of the second sequence has gaps
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    exact = logits(hf, model, "eager", ids, attention_mask=mask, **positions)
    cache = hf.ours.Cache(model.config, 32)
    for part in (slice(0, 14), slice(14, 21)):
        options = {
            "attention_mask": mask[:, : part.stop],
            "position_ids": positions["position_ids"][:, part],
            keyword(hf): cache,
        }
        found = logits(hf, model, attention.name, ids[:, part], **options)
        real = mask[:, part].numpy().astype(bool)
        assert relative_l1(found[real], exact[:, part][real]) < 0.05
    np.testing.assert_array_equal(cache.layers[1].kv.lengths, [16, 19])


def test_layers_left_out_keep_their_tokens_as_they_are(hf):
    model = model_of(hf, "gpt-oss")
    ids, mask = padded(hf, "left")
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    exact = logits(hf, model, "eager", ids, attention_mask=mask, **positions)
    ours = hf.ours.register("fp16", "cuattn-cached", skip=[0])
    cache = hf.ours.Cache(model.config, 32, skip=[0])
    found = steps(hf, model, ours.name, cache, ids, mask, 14)
    assert relative_l1(found[:, 14:], exact[:, 14:]) < 0.08
    assert ours.calls == {"PyTorch: layer left out": 8, "cuattn, cache": 8}
    both = hf.ours.Cache(model.config, 32, skip=[0, 1])
    steps(hf, model, hf.ours.register("fp16", "cuattn-cached").name, both, ids, mask, 14)
    assert both.nbytes == 0


def test_t5_decodes_from_it(hf, attention):
    model = model_of(hf, "t5")
    ids, mask = padded(hf, "right")
    texts = []
    for name in ("eager", attention.name):
        take(hf, model, name)
        options = {**TEXT, "attention_mask": mask}
        if name != "eager":
            own, crossed = hf.ours.Cache(model.config, 16), hf.library.DynamicCache()
            options[keyword(hf)] = hf.library.EncoderDecoderCache(own, crossed)
            if not asks_for_attention(model):
                with pytest.raises(UnsupportedError, match="only its own attention reads"):
                    model.generate(ids, **options)
                return
        found = model.generate(ids, **options, return_dict_in_generate=True, output_logits=True)
        texts.append(np.stack([x.numpy() for x in found.logits], 1))
    assert 0 < relative_l1(texts[1], texts[0]) < 0.05
    assert own.get_seq_length() == 6


def test_another_attention_does_not_read_it(hf):
    model = model_of(hf, "llama")
    for name in ("eager", "sdpa"):
        with pytest.raises(
            UnsupportedError, match=r"only its own attention reads: register\(\) it"
        ):
            logits(hf, model, name, prompt(hf), **{keyword(hf): hf.ours.Cache(model.config, 32)})


def test_what_it_cannot_do_is_said(hf, attention):
    model = model_of(hf, "llama")
    cache = hf.ours.Cache(model.config, 24)
    ids, mask = padded(hf, "left")

    def call(ids, **options):
        return logits(hf, model, attention.name, ids, **{keyword(hf): cache}, **options)

    call(ids, attention_mask=mask)
    with pytest.raises(ArgumentError, match="at most 3 tokens, as max_cache_len is 24"):
        call(ids[:, :4], attention_mask=hf.torch.cat([mask, mask[:, -4:]], 1))
    tree = hf.torch.ones(2, 1, 2, 23, dtype=hf.torch.bool)
    with pytest.raises(UnsupportedError, match=r"without the padding: give attention_mask as \["):
        call(ids[:, :2], attention_mask=tree)
    with pytest.raises(UnsupportedError, match="have not been attended"):
        call(ids[:, :1])
    cache.reset()
    call(ids[:, :2])
    for method in (cache.batch_repeat_interleave, cache.batch_select_indices):
        with pytest.raises(UnsupportedError, match="keeps the batch that it began with"):
            method(2)
    with pytest.raises(UnsupportedError, match="cuattn has no gradients"):
        model(ids[:, :1], **{keyword(hf): cache})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_cache_len": 0}, "max_cache_len must be a whole number from 1 on"),
        ({"skip": [2]}, "skip must be layers from 0 to 1"),
        ({"config": {}}, r"config must be the configuration of a model, model\.config"),
        ({"num_bits": 8}, "there is no argument 'num_bits'"),
    ],
)
def test_wrong_arguments_are_named(hf, options, said):
    given = {"config": model_of(hf, "llama").config, "max_cache_len": 32, **options}
    with pytest.raises(ArgumentError, match=said):
        hf.ours.Cache(**given)


def test_other_kinds_of_layers_are_refused(hf):
    config = model_of(hf, "llama").config.__class__(num_hidden_layers=2)
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UnsupportedError, match=r"kinds \['linear_attention'\] have no cache"):
        hf.ours.Cache(config, 32)
    config.layer_types = None
    config.num_kv_shared_layers = 1
    with pytest.raises(UnsupportedError, match="layers that share keys"):
        hf.ours.Cache(config, 32)
