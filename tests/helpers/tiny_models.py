"""Tiny random language models: as files, and their forward pass written out in float64."""

import json

import numpy as np

from cuattn.language_model.sizes import Sizes

TINY = Sizes(
    layers=2,
    width=32,
    heads=4,
    kv_heads=2,
    head_dim=64,
    hidden=48,
    vocabulary=300,
    context=128,
    norm_epsilon=1e-5,
    rope_base=1000.0,
    adjacent=False,
)

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 48,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
}


def random_tensors(sizes=TINY, *, seed=0, tied=True, biases=False, norms=False):
    """Return tensors by Hugging Face's names."""
    rng = np.random.default_rng(seed)
    q, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim

    def matrix(rows, columns):
        return rng.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)

    def gain(n):
        return (1 + 0.2 * rng.standard_normal(n)).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": 2 * matrix(sizes.vocabulary, sizes.width),
        "model.norm.weight": gain(sizes.width),
    }
    if not tied:
        tensors["lm_head.weight"] = matrix(sizes.vocabulary, sizes.width)
    for i in range(sizes.layers):
        at = f"model.layers.{i}."
        tensors |= {
            f"{at}input_layernorm.weight": gain(sizes.width),
            f"{at}self_attn.q_proj.weight": matrix(q, sizes.width),
            f"{at}self_attn.k_proj.weight": matrix(kv, sizes.width),
            f"{at}self_attn.v_proj.weight": matrix(kv, sizes.width),
            f"{at}self_attn.o_proj.weight": matrix(sizes.width, q),
            f"{at}post_attention_layernorm.weight": gain(sizes.width),
            f"{at}mlp.gate_proj.weight": matrix(sizes.hidden, sizes.width),
            f"{at}mlp.up_proj.weight": matrix(sizes.hidden, sizes.width),
            f"{at}mlp.down_proj.weight": matrix(sizes.width, sizes.hidden),
        }
        if biases:
            tensors |= {
                f"{at}self_attn.{name}_proj.bias": rng.standard_normal(n, np.float32)
                for name, n in (("q", q), ("k", kv), ("v", kv))
            }
        if norms:
            tensors |= {f"{at}self_attn.{x}_norm.weight": gain(sizes.head_dim) for x in "qk"}
    return tensors


def write_folder(folder, tensors, config=CONFIG, *, shards=1):
    """Write a model as Hugging Face has it, and return the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = [*tensors]
    files = {}
    for n in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{n}.safetensors"
        part = {name: tensors[name] for name in names[n::shards]}
        (folder / file).write_bytes(safetensors(part))
        files |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def safetensors(tensors):
    """Return a file of the safetensors format, of float32."""
    header, end = {}, 0
    for name, x in tensors.items():
        offsets = [end, end + x.nbytes]
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": offsets}
        end += x.nbytes
    text = json.dumps(header).encode()
    return b"".join(
        [len(text).to_bytes(8, "little"), text, *(x.tobytes() for x in tensors.values())]
    )


def logits(sizes, tensors, ids):
    """Return the logits [token, vocabulary] in float64, position by position and head by head."""
    t = {name: x.astype(np.float64) for name, x in tensors.items()}
    x = t["model.embed_tokens.weight"][ids]
    for i in range(sizes.layers):
        part = {
            name.removeprefix(f"model.layers.{i}."): w
            for name, w in t.items()
            if name.startswith(f"model.layers.{i}.")
        }
        h = _norm(sizes, x, part["input_layernorm.weight"])
        q, k, v = (_projected(sizes, part, h, name) for name in "qkv")
        for position in range(len(ids)):
            for heads in (q, k):
                for head in range(heads.shape[1]):
                    heads[position, head] = _turned(sizes, heads[position, head], position)
        o = np.zeros_like(q)
        for row in range(len(ids)):
            first = max(0, row - sizes.window + 1) if sizes.window else 0
            for head in range(sizes.heads):
                of_head = head // (sizes.heads // sizes.kv_heads)
                s = k[first : row + 1, of_head] @ q[row, head] / np.sqrt(sizes.head_dim)
                p = np.exp(s - s.max())
                o[row, head] = p / p.sum() @ v[first : row + 1, of_head]
        x = x + o.reshape(len(ids), -1) @ part["self_attn.o_proj.weight"].T
        h = _norm(sizes, x, part["post_attention_layernorm.weight"])
        gate = h @ part["mlp.gate_proj.weight"].T
        up = h @ part["mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ part["mlp.down_proj.weight"].T
    head = t.get("lm_head.weight", t["model.embed_tokens.weight"])
    return _norm(sizes, x, t["model.norm.weight"]) @ head.T


def _norm(sizes, x, gain):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + sizes.norm_epsilon) * gain


def _projected(sizes, part, h, name):
    y = h @ part[f"self_attn.{name}_proj.weight"].T + part.get(f"self_attn.{name}_proj.bias", 0)
    y = y.reshape(len(h), -1, sizes.head_dim)
    gain = part.get(f"self_attn.{name}_norm.weight")
    return y if gain is None else _norm(sizes, y, gain)


def _turned(sizes, x, position):
    turned = x.copy()
    for pair in range(sizes.head_dim // 2):
        a, b = pair, pair + sizes.head_dim // 2
        if sizes.adjacent:
            a, b = 2 * pair, 2 * pair + 1
        angle = position * sizes.rope_base ** (-2 * pair / sizes.head_dim)
        turned[a] = np.cos(angle) * x[a] - np.sin(angle) * x[b]
        turned[b] = np.sin(angle) * x[a] + np.cos(angle) * x[b]
    return turned
