"""``cuattn perplexity``: what schemes and caches make of a language model's predictions."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...arrays.device import gpu_available
from ...choice.scheme_plan import SchemePlan
from ...common.text import printable
from ...common.typed_json import write
from ...errors import ArgumentError
from ...language_model.attend import CACHES
from ...language_model.files import PACKAGED, open_model
from ...language_model.judge import Judge, Judgement
from ...language_model.layer_plan import plan_layers, schemes_of
from ...presets import resolve
from ...reference.arrays import Progress
from ...scheme import Scheme
from ..inputs import where
from ..options import at_least, between, items, one_of
from ..outputs import add_outputs
from ..progress import Bar
from .findings import Findings

__all__ = ["add_to"]

# A quarter of a text is the prompt, but no more than the cache takes K's offset from.
LONGEST_PROMPT = 512
# On the host a step takes about as long for many tokens as for one.
CHUNK_ON_HOST = 256


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "perplexity",
        help="what schemes and caches make of a language model's predictions",
        description="Perplexity of a text with quantized attention in all layers of a language "
        "model of Llama's kind, and how far the distributions of each next token are from those "
        "with exact attention. Without a GPU the schemes are emulated: 2048 tokens of a model of "
        "135 million parameters take a minute or two for each.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a GGUF file; a folder with config.json, safetensors and tokenizer.json; or the "
        f"installed package {', '.join(PACKAGED)}",
    )
    parser.add_argument("text", metavar="TEXT", type=Path, help="a file of text in UTF-8")
    parser.add_argument(
        "--tokens", type=at_least(2), default=2048, metavar="N", help="of the text's first (2048)"
    )
    parser.add_argument(
        "--schemes",
        type=items(resolve),
        default=None,
        metavar="NAMES",
        help="in all layers, comma-separated (int8,int8-block,int8-fast,int8-fp16; none with "
        "--cache or --plan)",
    )
    parser.add_argument("--plan", type=Path, metavar="FILE", help="a plan of schemes by layer, too")
    parser.add_argument("--host", action="store_true", help="emulate, though there is a GPU")
    parser.add_argument(
        "--by-position", action="store_true", help="divergences by position in the text, too"
    )
    layers = parser.add_argument_group("by layer")
    layers.add_argument(
        "--by-layer", action="store_true", help="each scheme in one layer at a time, too"
    )
    layers.add_argument(
        "--max-kl",
        type=between(0, math.inf),
        metavar="X",
        help="with --by-layer: choose a scheme for each layer such that divergences add up to no "
        "more, and judge that plan",
    )
    layers.add_argument(
        "--qkv", type=Path, metavar="FOLDER", help="write Q, K and V of each layer as report reads"
    )
    caches = parser.add_argument_group("decoding")
    caches.add_argument(
        "--cache",
        type=items(one_of(CACHES)),
        default=[],
        metavar="NAMES",
        help=f"read the text token by token through these: some of {','.join(CACHES)}",
    )
    caches.add_argument(
        "--prompt",
        type=at_least(1),
        metavar="N",
        help=f"tokens appended at once to begin with (a quarter, at most {LONGEST_PROMPT})",
    )
    caches.add_argument(
        "--chunk",
        type=at_least(1),
        metavar="N",
        help=f"tokens of a step behind them (1; emulated, {CHUNK_ON_HOST})",
    )
    add_outputs(
        parser,
        parser.add_argument_group("output"),
        json="also write all figures here (- is standard output)",
        save="with --max-kl: write the plan here (.json)",
    )


def run(args: argparse.Namespace) -> None:
    """Judge, print, and write what the options ask for."""
    _check(args)
    found = open_model(args.model)
    layers = found.sizes.layers
    given = None if args.plan is None else schemes_of(SchemePlan.load(args.plan), layers)
    ids = found.tokenizer().encode(_read(args.text))[: args.tokens]
    on_gpu = gpu_available() and not args.host
    xp: Any = import_module("cupy") if on_gpu else np
    place = where() if on_gpu or not gpu_available() else "emulated in NumPy"
    text = printable(args.text.name)
    print(f"{found.name}, {len(ids)} tokens of {text}, {place}", flush=True)
    chosen = None
    with Bar() as bar:
        watch = None if args.qkv is None else _saver(args.qkv)
        judge = Judge(found.load(xp), ids, bar.task("exact"), watch)
        findings = Findings(judge, bar)
        findings.add("exact", lambda _: judge.reference)
        for scheme in _schemes(args):
            findings.add_scheme(scheme.name, scheme)
        if given is not None:
            findings.add_scheme(printable(args.plan.name), given)
        _add_caches(findings, args, len(ids), 1 if on_gpu else CHUNK_ON_HOST)
        for scheme in _schemes(args) if args.by_layer else ():
            findings.add_layers(scheme)
        if args.max_kl is not None:
            chosen = plan_layers(findings.by_layer, args.max_kl)
            findings.add_scheme("the plan", schemes_of(chosen, layers))
    print(f"\n{findings.table()}")
    if args.by_position:
        print(f"\n{findings.position_table()}")
    if findings.by_layer:
        print(f"\n{findings.layer_table()}")
    if chosen is not None:
        print(f"\nplan\n{chosen}")
        if args.save is not None:
            chosen.save(args.save)
    if args.json is not None:
        found_by: Literal["gpu", "host"] = "gpu" if on_gpu else "host"
        write(findings.document(found.name, text, len(ids), found_by), args.json)


def _add_caches(findings: Findings, args: argparse.Namespace, tokens: int, chunk: int) -> None:
    prompt = args.prompt or max(1, min(LONGEST_PROMPT, tokens // 4))
    for name in args.cache:

        def judged(progress: Progress, name: str = name) -> Judgement:
            return findings.judge.cache(name, prompt, args.chunk or chunk, progress)

        findings.add(name, judged, cache=name)


def _schemes(args: argparse.Namespace) -> list[Scheme]:
    if args.schemes is not None:
        return list(args.schemes)
    if (args.cache or args.plan) and not args.by_layer:
        return []
    return [resolve(name) for name in ("int8", "int8-block", "int8-fast", "int8-fp16")]


def _check(args: argparse.Namespace) -> None:
    if args.max_kl is not None and not args.by_layer:
        raise ArgumentError("--max-kl", args.max_kl, "left out without --by-layer")
    if args.save is not None and args.max_kl is None:
        raise ArgumentError("--save", str(args.save), "left out without --max-kl")
    for option in ("prompt", "chunk"):
        if (value := getattr(args, option)) is not None and not args.cache:
            raise ArgumentError(f"--{option}", value, "left out without --cache")
    if args.qkv is not None and not args.qkv.is_dir():
        raise ArgumentError("--qkv", str(args.qkv), "an existing folder")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ArgumentError("TEXT", str(path), f"a file of text in UTF-8 ({reason})") from None


def _saver(folder: Path) -> Callable[[int, Any, Any, Any], None]:
    def save(layer: int, q: Any, k: Any, v: Any) -> None:
        arrays = {name: _on_host(x) for name, x in (("q", q), ("k", k), ("v", v))}
        np.savez(folder / f"layer_{layer}.npz", **arrays, is_causal=np.array(1))

    return save


def _on_host(x: Any) -> Any:
    return x if isinstance(x, np.ndarray) else x.get()
