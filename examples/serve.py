"""A server's loop in small: requests that come at different times are decoded together.

They share a prefix, which is read once and forked; their own prompts are read in chunks, while
others decode, one token a step each. Where pages run out, the request that came last gives its own
back and is resumed later: its prompt is read again in the same chunks and its tokens one by one, so
that the cache holds the same codes again. So texts are those that each request would have by
itself, with the same cache, bit for bit: see `serving_models.py`. Without a GPU the speed means
nothing.

The model is SmolLM2, or `--model tiny`, as in `generate.py`. There is no web server here.

    python examples/serve.py
"""

import argparse
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pretrained
from generate import LICENSE, ON_GPU, ON_HOST, fit
from serving_models import Little, Trained
from threadpoolctl import threadpool_limits
from tiny_lm import Sizes, TinyLM

import cuattn
from cuattn.language_model.files import open_model

PREFIX = {
    "tiny": "Subject to the terms and conditions of this License, ",
    "trained": "Short answers to questions about attention.\nQuestion: What are scores?\n"
    "Answer: Products of queries and keys.\nQuestion: ",
}
PROMPTS = {
    "tiny": ["each Contributor ", "the Work ", "You may ", "a copy of the ", "any Derivative "],
    "trained": [
        "What does a KV cache hold?\nAnswer:",
        "Why are keys quantized?\nAnswer:",
        "What is a page table for?\nAnswer:",
        "Who invented softmax?\nAnswer:",
        "What is a token?\nAnswer:",
    ],
}
CACHES = {"int8": {"bits": 8}, "int4": {"bits": 4}}

# The sequence that keeps the prefix.
KEEPER = 0


@dataclass
class Request:
    """A prompt behind the prefix, the step at which it arrives, and how many tokens it wants."""

    prompt: list
    arrives: int
    count: int
    tokens: list = field(default_factory=list)

    @property
    def known(self):
        """Its own tokens so far, of which the last one may not be in the cache."""
        return self.prompt + self.tokens


class Server:
    """Requests in the sequences of one cache for each layer.

    Parameters
    ----------
    model : Trained or Little
    prefix : list of int
        Tokens that all requests begin with.
    options : dict
        Of `cuattn.KVCache`.
    slots : int
        Requests that are decoded at the same time.
    capacity : int
        Most tokens of one, with the prefix.
    pages, page_size : int
    chunk : int
        Tokens of a prompt that are read in a step.
    """

    def __init__(self, model, prefix, options, *, slots, capacity, pages, page_size=16, chunk=16):
        sizes = model.sizes
        device = "cpu" if model.xp is np else None
        shape = (slots + 1, sizes.kv_heads, sizes.head_dim, capacity)
        paged = {"page_size": page_size, "num_pages": pages, "device": device}
        self.caches = [cuattn.KVCache(*shape, **paged, **options) for _ in range(sizes.layers)]
        self.model, self.prefix, self.chunk = model, prefix, chunk
        self.pages, self.page_size = pages, page_size
        # By sequence, in the order in which they were admitted.
        self.running = {}
        self.waiting = deque()
        self.steps = self.preempted = self.most_tokens = 0
        for begin in range(0, len(prefix), chunk):
            self._run([(KEEPER, begin, prefix[begin : begin + chunk])])

    def serve(self, requests):
        """Answer all requests."""
        coming = deque(sorted(requests, key=lambda request: request.arrives))
        while coming or self.waiting or self.running:
            while coming and coming[0].arrives <= self.steps:
                self.waiting.append(coming.popleft())
            self._admit()
            if self.running:
                self._step()
            self.steps += 1

    @property
    def free_pages(self):
        """Pages that no sequence has."""
        return self.pages - len(np.setdiff1d(self.caches[0].page_table, [-1]))

    def _admit(self):
        free = [b for b in range(1, len(self.caches[0].lengths)) if b not in self.running]
        while free and self.waiting:
            # Its first page may be a copy of the prefix's last one.
            wanted = 1 + -(-(len(self.waiting[0].known) + 1) // self.page_size)
            if self.running and wanted > self.free_pages:
                return
            b = free.pop(0)
            for cache in self.caches:
                cache.fork(KEEPER, b)
            self.running[b] = self.waiting.popleft()

    def _step(self):
        """Give every running request its next tokens: a chunk of its prompt, or one."""
        while True:
            runs = [(b, *self._next(b, request)) for b, request in self.running.items()]
            try:
                chosen = self._run(runs)
                break
            except cuattn.ArgumentError:
                # Too few pages; nothing has changed in any layer.
                if len(self.running) == 1:
                    raise
                self._preempt()
        for (b, first, tokens), token in zip(runs, chosen, strict=True):
            request = self.running[b]
            if first + len(tokens) == len(self.prefix) + len(request.known):
                request.tokens.append(token)
            if len(request.tokens) == request.count:
                self._empty(b)

    def _next(self, b, request):
        """Return the position of the request's next tokens, and these."""
        done = int(self.caches[0].lengths[b]) - len(self.prefix)
        end = done + 1
        if done < len(request.prompt):
            end = min(done + self.chunk, len(request.prompt))
        return len(self.prefix) + done, request.known[done:end]

    def _preempt(self):
        b = list(self.running)[-1]
        self.waiting.appendleft(self.running[b])
        self._empty(b)
        self.preempted += 1

    def _empty(self, b):
        del self.running[b]
        for cache in self.caches:
            lengths = cache.lengths
            lengths[b] = 0
            cache.truncate(lengths)

    def _run(self, runs):
        """Append runs of tokens, (sequence, position, tokens), and choose the token after each."""
        chosen = self.model.chosen([run[1:] for run in runs], self._attention(runs))
        self.most_tokens = max(self.most_tokens, int(self.caches[0].lengths.sum()))
        return chosen

    def _attention(self, runs):
        xp, batch = self.model.xp, len(self.caches[0].lengths)
        ends = np.cumsum([len(tokens) for *_, tokens in runs]).tolist()
        # Which rows are whose: the sequence, the first of its rows and the one behind the last.
        places = [
            (b, end - len(tokens), end) for (b, _, tokens), end in zip(runs, ends, strict=True)
        ]
        sequences = [b for b, *_ in places]

        def by_sequence(x, count):
            padded = xp.zeros((batch, x.shape[1], count, x.shape[3]), x.dtype)
            for b, begin, end in places:
                padded[b, :, : end - begin] = x[0, :, begin : min(end, begin + count)]
            return padded

        def attend(layer, q, k, v):
            cache, o = self.caches[layer], xp.empty_like(q)
            packed = (x[0].swapaxes(0, 1) for x in (k, v))  # [row, head, channel]
            cache.append(*packed, cu_seqlens_k=[0, *ends], sequences=sequences)
            # A call for each number of queries, as the last bits may depend on how many they are.
            for count in sorted({end - begin for _, begin, end in places}):
                answers = cache.attend(by_sequence(q, count), batch_invariant=True)
                for b, begin, end in places:
                    if end - begin == count:
                        o[0, :, begin:end] = answers[b]
            return o

        return attend


def alone(model, prefix, options, request, **sizes):
    """Return the tokens that a request gets by itself, with a cache of the same kind."""
    by_itself = Request(request.prompt, 0, request.count)
    Server(model, prefix, options, slots=1, **sizes).serve([by_itself])
    return by_itself.tokens


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", help=f"tiny, {pretrained.PACKAGE}, a GGUF file or a folder with safetensors"
    )
    parser.add_argument("--cache", choices=CACHES, default="int8")
    parser.add_argument("--requests", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=24, help="that each request wants")
    parser.add_argument("--slots", type=int, default=4, help="requests decoded at the same time")
    parser.add_argument("--pages", type=int, help="of 16 tokens; by default some too few")
    parser.add_argument("--chunk", type=int, default=16, help="tokens of a prompt in a step")
    parser.add_argument("--steps", type=int, help="of training, for --model tiny")
    args = parser.parse_args(argv)
    if min(args.requests, args.slots, args.chunk) < 1 or args.tokens < 2:
        parser.error("requests, slots and chunks are 1 at least, tokens 2")
    with threadpool_limits(1, user_api="blas"):
        try:
            served(args)
        except cuattn.CuattnError as error:
            parser.error(str(error))


def served(args):
    """Serve, and print what became of it."""
    name = args.model or (pretrained.PACKAGE if pretrained.installed() else "tiny")
    model = little(args.steps) if name == "tiny" else trained(name)
    kind = "tiny" if name == "tiny" else "trained"
    prefix, options = model.encode(PREFIX[kind]), CACHES[args.cache]
    requests = [
        Request(model.encode(PROMPTS[kind][i % len(PROMPTS[kind])]), 3 * i, args.tokens)
        for i in range(args.requests)
    ]
    own = max(len(request.prompt) for request in requests) + args.tokens
    capacity = len(prefix) + own
    # Enough for one request, and for all to begin, so that some have to make room.
    pages = args.pages or -(-capacity // 16) + 1 + args.slots
    sizes = {"capacity": capacity, "pages": pages, "chunk": args.chunk}
    server = Server(model, prefix, options, slots=args.slots, **sizes)
    begun = time.perf_counter()
    server.serve(requests)
    seconds = time.perf_counter() - begun
    for request in requests:
        print(f"{model.decode(request.prompt)!r} -> {model.decode(request.tokens)!r}")
    count = sum(len(request.tokens) for request in requests)
    print(f"\n{count} tokens in {server.steps} steps, {count / seconds:.1f} tokens / s")
    print(f"requests that had to wait for pages: {server.preempted} times")
    halves = 2 * 2 * model.sizes.layers * model.sizes.kv_heads * model.sizes.head_dim
    print(f"caches: {sum(cache.nbytes for cache in server.caches)} bytes of {args.cache},")
    print(f"{halves * 16 * pages} in float16 for as many pages,")
    print(f"{halves * server.most_tokens} for the tokens of all sequences, were none shared")
    same = [alone(model, prefix, options, x, **sizes) == x.tokens for x in requests]
    print(f"texts as of one request at a time: {sum(same)} of {len(same)}")


def little(steps):
    """Train the model of bytes."""
    xp, options = np, ON_HOST
    if cuattn.gpu_available():
        import cupy

        xp, options = cupy, ON_GPU
    words = " ".join(LICENSE.read_text("utf-8").split())
    model = TinyLM(xp, Sizes())
    text = np.frombuffer(words.encode(), np.uint8).astype(np.int64)
    steps = options["steps"] if steps is None else steps
    fit(model, text, steps, batch=options["batch"], length=options["length"], seed=0)
    return Little(model)


def trained(path):
    """Load a model of Llama's kind."""
    xp = np
    if cuattn.gpu_available():
        import cupy as xp
    found = open_model(path)
    return Trained(found.load(xp), found.tokenizer())


if __name__ == "__main__":
    main()
