"""``cuattn perplexity``: what schemes and caches make of a language model's predictions."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..arrays.device import gpu_available
from ..choice.scheme_plan import SchemePlan
from ..common.output_files import Target
from ..common.text import printable
from ..common.typed_json import write
from ..errors import ArgumentError
from ..language_model.attend import CACHES
from ..language_model.files import PACKAGED, open_model
from ..language_model.judge import Judge, Judgement
from ..language_model.layer_plan import layer_name, plan_layers, schemes_of
from ..presets import resolve
from ..records.rows import LanguageModelRow
from ..scheme import Scheme
from .inputs import where
from .options import at_least, between, items, one_of
from .outputs import add_outputs
from .progress import Bar
from .table import Group, Row, Table

__all__ = ["add_to"]

# A quarter of a text is the prompt, but no more than the cache takes K's offset from.
LONGEST_PROMPT = 512
# On the host a step takes about as long for many tokens as for one.
CHUNK_ON_HOST = 256

COLUMNS = ("perplexity", "change of NLL", "KL", "same first choice, %")


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
    plan = None if args.plan is None else schemes_of(SchemePlan.load(args.plan), found.sizes.layers)
    ids = found.tokenizer().encode(_read(args.text))[: args.tokens]
    on_gpu = gpu_available() and not args.host
    xp: Any = import_module("cupy") if on_gpu else np
    place = where() if on_gpu or not gpu_available() else "emulated in NumPy"
    text = printable(args.text.name)
    print(f"{found.name}, {len(ids)} tokens of {text}, {place}", flush=True)
    with Bar() as bar:
        judge = Judge(
            found.load(xp), ids, bar.task("exact"), _saver(args.qkv) if args.qkv else None
        )
        session = _Session(judge, bar, args, [])
        session.add("exact", "exact", None, lambda _: judge.reference)
        for scheme in _schemes(args):
            session.add(scheme.name, scheme.name, None, _whole(judge, scheme))
        if plan is not None:
            session.add(printable(args.plan.name), "plan", None, _whole(judge, plan))
        _caches(session, len(ids), 1 if on_gpu else CHUNK_ON_HOST)
        by_layer = _by_layer(session)
        chosen = None if args.max_kl is None else plan_layers(by_layer, args.max_kl)
        if chosen is not None:
            of_layers = schemes_of(chosen, found.sizes.layers)
            session.add("the plan", "plan", None, _whole(judge, of_layers))
    print(f"\n{session.table()}")
    if by_layer:
        print(f"\n{_layer_table(by_layer)}")
    if chosen is not None:
        print(f"\nplan\n{chosen}")
        if args.save is not None:
            chosen.save(args.save)
    if args.json is not None:
        about = {"model": found.name, "text": text, "tokens": len(ids)}
        place = "gpu" if on_gpu else "host"
        _write_json(args.json, session, about, place, by_layer)


class _Session:
    """What has been judged so far."""

    def __init__(self, judge: Judge, bar: Bar, args: argparse.Namespace, rows: list[Any]) -> None:
        self.judge, self.bar, self.args = judge, bar, args
        # Title, scheme, cache and judgement of each.
        self.rows: list[tuple[str, str, str | None, Judgement]] = rows

    def add(
        self, title: str, scheme: str, cache: str | None, judged: Callable[[Any], Judgement]
    ) -> None:
        self.rows.append((title, scheme, cache, judged(self.bar.task(title))))

    def table(self) -> Table:
        groups: dict[str, list[Row]] = {}
        for title, _, cache, x in self.rows:
            group = "schemes in all layers" if cache is None else "caches"
            figures = (x.perplexity, x.delta_nll, x.kl, 100 * x.same_top1)
            groups.setdefault(group, []).append((title, figures))
        return Table(COLUMNS, [Group(name, rows) for name, rows in groups.items()])


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


def _whole(judge: Judge, scheme: Any) -> Callable[[Any], Judgement]:
    return lambda progress: judge.scheme(scheme, progress)


def _caches(session: _Session, tokens: int, chunk: int) -> None:
    args, judge = session.args, session.judge
    prompt = args.prompt or max(1, min(LONGEST_PROMPT, tokens // 4))
    for name in args.cache:

        def judged(progress: Any, name: str = name) -> Judgement:
            return judge.cache(name, prompt, args.chunk or chunk, progress)

        session.add(name, "exact", name, judged)


def _by_layer(session: _Session) -> dict[Scheme, list[float]]:
    if not session.args.by_layer:
        return {}
    return {
        scheme: [
            x.kl
            for x in session.judge.by_layer(
                scheme, session.bar.task(f"{scheme.name} in one layer at a time")
            )
        ]
        for scheme in _schemes(session.args)
    }


def _layer_table(by_layer: dict[Scheme, list[float]]) -> Table:
    layers = len(next(iter(by_layer.values())))
    rows: list[Row] = [(layer_name(i), [kl[i] for kl in by_layer.values()]) for i in range(layers)]
    rows.append(("sum", [sum(kl) for kl in by_layer.values()]))
    group = Group(
        "KL with the scheme in one layer, 1e-6 nats",
        [(name, [None if x is None else 1e6 * x for x in figures]) for name, figures in rows],
    )
    return Table([scheme.name for scheme in by_layer], [group])


def _saver(folder: Path) -> Callable[[int, Any, Any, Any], None]:
    def save(layer: int, q: Any, k: Any, v: Any) -> None:
        arrays = {name: _on_host(x) for name, x in (("q", q), ("k", k), ("v", v))}
        np.savez(folder / f"layer_{layer}.npz", **arrays, is_causal=np.array(1))

    return save


def _on_host(x: Any) -> Any:
    return x if isinstance(x, np.ndarray) else x.get()


def _write_json(
    target: Target,
    session: _Session,
    about: dict[str, Any],
    place: Any,
    by_layer: dict[Scheme, list[float]],
) -> None:
    rows = [
        LanguageModelRow(**about, scheme=scheme, cache=cache, where=place, **asdict(x))
        for _, scheme, cache, x in session.rows
    ]
    document = {
        "cuattn": __version__,
        "language_model": [asdict(row) for row in rows],
        "kl_by_layer": {scheme.name: kl for scheme, kl in by_layer.items()},
    }
    write(document, target)
