"""Tables of all presets for docs/schemes.md: formulas, papers, costs and errors."""

from __future__ import annotations

from typing import Literal, NamedTuple

from cuattn.presets import PRESETS
from cuattn.reference.distributions import DISTRIBUTIONS
from cuattn.scheme import Scheme
from tools.tables.record_figures import Figures, pair, percent, table


class About(NamedTuple):
    """What a scheme's fields do not say: a key of `PAPERS` or nothing, its part, and the use."""

    paper: str
    where: str
    use: str


PAPERS = {
    "INT-FlashAttention": "2409.16997",
    "SageAttention": "2410.02367",
    "SageAttention2": "2411.10958",
    "PTQ4ViT": "2111.12293",
    "FlashAttention-2": "2307.08691",
    "FlashAttention-3": "2407.08608",
}
COMPARE = "to compare with the paper"
ABOUT = {
    "int8": About("", "", "the default, if nothing is known of the inputs"),
    "int8-token": About("", "", "a scale for every token: no other token's size matters"),
    "int8-block": About("", "", "for speed, where no token of V stands out"),
    "int8-fast": About("", "", "for speed on long sequences, the same"),
    "int8-fp8": About("SageAttention2", "section 3", "P of a wide range, at the speed of 8 bits"),
    "int8-fp16": About("SageAttention", "section 4.4", "small errors where P V need not be fast"),
    "int8-two-term": About("", "", "small errors of P in INT8 alone"),
    "int4": About("SageAttention2", "section 3", "Q and K in 4 bits, after a look at the error"),
    "int4-fp16": About("SageAttention2", "section 3", "to see what 4 bits of Q and K cost alone"),
    "int-flash": About("INT-FlashAttention", "", COMPARE),
    "int-flash-half": About("INT-FlashAttention", "", COMPARE),
    "int-flash-int4": About("INT-FlashAttention", "", COMPARE),
    "int-flash-rotated": About("INT-FlashAttention", "section 5", "outliers in single channels"),
    "sage-t": About("SageAttention", "section 4.4", COMPARE),
    "sage-b": About("SageAttention", "section 4.4", COMPARE),
    "sage-vt": About("SageAttention", "section 4.4", COMPARE),
    "sage-vb": About("SageAttention", "section 4.4", COMPARE),
    "sage2-8": About("SageAttention2", "section 3", COMPARE),
    "sage2-4": About("SageAttention2", "section 3", COMPARE),
    "twin": About("PTQ4ViT", "equation 5", COMPARE),
    "fp8": About("FlashAttention-3", "section 3.3", "to compare with FP8 attention"),
    "fp16": About("FlashAttention-2", "", "the baseline: nothing is quantized"),
}

BITS = {"int4": 4, "int8": 8, "fp8": 8, "fp16": 16}
TYPES = {"int4": "INT4", "int8": "INT8", "fp8": "e4m3", "fp16": "float16"}
RANGES = {
    "block": "u8, 255 steps of the block's maximum",
    "row": "u8, 255 steps of the running maximum",
    "row_pow2": "u8, 255 steps of the running maximum, which moves by powers of two",
    "static127": "127 steps of the running maximum",
    "twin": "127 steps below 2^-{p_split} and 127 above",
}


def schemes(f: Figures) -> str:
    """Return a row for each preset: its formula in short, its paper, and when to use it."""
    del f
    rows = [
        [f"`{name}`", _scores(x), _weights(x), _values(x), _paper(ABOUT[name]), ABOUT[name].use]
        for name, x in PRESETS.items()
    ]
    return table(["preset", "Q, K", "P", "V", "paper", "use"], rows, left=6)


def costs(f: Figures) -> str:
    """Return what each preset costs: bits, products, what precedes the quantizer, and speed."""
    rows = []
    for name, x in PRESETS.items():
        bits = f"{BITS[x.qk]} / {BITS[x.pv]} / {_bits_of_p(x)}"
        speed = pair(f.tops(name, 128))
        rows.append([f"`{name}`", _before(x), bits, str(_products(x)), speed])
    header = ["preset", "before it is quantized", "bits of Q, K / V / P", "products", "TOPS, D 128"]
    return table(header, rows, left=2)


def errors(f: Figures) -> str:
    """Return the errors of all presets that were measured, by distribution."""
    rows = []
    for name in PRESETS:
        found = [f.error(name, distribution) for distribution in DISTRIBUTIONS]
        if any(found):
            rows.append([f"`{name}`", *map(percent, found)])
    return table(["relative L1, %", *DISTRIBUTIONS], rows)


def _scores(x: Scheme) -> str:
    if x.qk == "fp16":
        return TYPES[x.qk]
    of_keys = "section" if x.k_scope == "sorted" else x.k_scope
    scopes = x.q_scope if x.q_scope == of_keys else f"{x.q_scope} / {of_keys}"
    smooth = [f"Q − {x.smooth_q} mean"] * (x.smooth_q != "none")
    smooth += [f"K − {x.smooth_k}"] * (x.smooth_k != "none")
    return ", ".join([f"{TYPES[x.qk]} per {scopes}", *smooth, *_rotated(x, "q")])


def _weights(x: Scheme) -> str:
    if x.pv == "fp16":
        return "float16"
    if x.pv == "fp8":
        return "e4m3 of 448 p"
    text = RANGES[x.p_range].format(p_split=x.p_split)
    return text.replace("u8, 255", "u16, 65535") if x.p_terms == 2 else text


def _values(x: Scheme) -> str:
    if x.pv == "fp16":
        return "float16"
    smooth = [f"V − {x.smooth_v}"] * (x.smooth_v != "none")
    scope = "section" if x.v_scope == "sorted" else x.v_scope
    return ", ".join([f"{TYPES[x.pv]} per {scope}", *smooth, *_rotated(x, "v")])


def _rotated(x: Scheme, operand: Literal["q", "v"]) -> list[str]:
    return ["rotated"] if x.rotates(operand) else []


def _paper(about: About) -> str:
    if not about.paper:
        return ""
    link = f"[{about.paper}](https://arxiv.org/abs/{PAPERS[about.paper]})"
    return ", ".join(filter(None, [link, about.where]))


def _bits_of_p(x: Scheme) -> int:
    # Codes of 4 bits are V's only.
    return 16 if x.pv == "fp16" else 8 * x.p_terms


def _products(x: Scheme) -> int:
    """Matrix products of 8 or 16 bits of a block of keys: Q Kᵀ and the terms of P V."""
    return 1 + x.p_matrices


def _before(x: Scheme) -> str:
    """Name what must be known of operands beforehand, and how much of them is read for that."""
    coded = {"q": x.qk != "fp16", "k": x.qk != "fp16", "v": x.pv != "fp16"}
    scope = {"q": x.q_scope, "k": x.k_scope, "v": x.v_scope}
    smooth = {"q": "none", "k": x.smooth_k, "v": x.smooth_v}
    whole = [
        name
        for name in coded
        if coded[name]
        and (scope[name] in ("channel", "tensor") or smooth[name] in ("mean", "robust"))
    ]
    some = [name for name in coded if coded[name] and smooth[name] == "sample"]
    steps = [f"512 tokens of {_listed(some)}"] * bool(some)
    steps += [f"all of {_listed(whole)}"] * bool(whole)
    steps += ["means of 128 rows of Q"] * (x.smooth_q != "none")
    steps += ["V rotated"] * x.rotates("v")
    return "; ".join(steps) or "nothing"


def _listed(names: list[str]) -> str:
    return ", ".join(name.upper() for name in names)
