"""Which options of a call are timed, at which shapes, and how many operations each leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cuattn import ScoreMod
from cuattn.arrays.device import Target
from cuattn.bench.cases import Case
from cuattn.compile.jit import Spec
from cuattn.plan.kernels import attention_spec
from cuattn.plan.kernels_sm90 import INTEGER_O_KEYS
from cuattn.plan.linear_mod import slope_source
from cuattn.plan.listing import quantizer_specs
from cuattn.presets import resolve
from cuattn.reference.masking import Mask
from cuattn.scheme import Scheme
from cuattn.specs.attention import Type
from cuattn.specs.mask_map import MaskMapSpec
from cuattn.specs.mods import ModSource
from cuattn.specs.quantize import QuantizeSpec
from cuattn.specs.rules import PLAIN, MaskKind, Rules

__all__ = [
    "ALONE",
    "CAUSAL",
    "DEEP",
    "DOCUMENTS",
    "EXPRESSED",
    "FEATURES",
    "HEAD_DIM_V",
    "LONG",
    "PACKED",
    "SCHEMES",
    "VARLEN",
    "WHOLE",
    "WINDOW",
    "Feature",
    "apart",
    "documents",
    "kernels",
    "lengths",
]

SCHEMES = ("int8-block", "int8", "fp16")

# What Hugging Face calls a sliding window of 1024.
WINDOW = (1023, 0)
SOFTCAP = 50.0
# Documents in a sequence, of random lengths.
DOCUMENTS, SEED = 16, 0
# Where V has another head_dim than Q and K: DeepSeek-V3's.
HEAD_DIM_V = 128
# Sequences of other lengths than one another in one call, and the same in calls of their own.
VARLEN, ALONE = "varlen", "varlen-singles"
SHORTEST, LONGEST = 256, 8192

# What ALiBi adds, as an expression.
BY_DISTANCE = "score - slope[head] * fabsf(float(kv - own))"


@dataclass(frozen=True)
class Feature:
    """An option of scores at one shape.

    Attributes
    ----------
    name : str
        What rows of a record call it; "plain" of none.
    case : Case
    rules : Rules
        Of the kernels that serve it.
    """

    name: str
    case: Case
    rules: Rules = PLAIN

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of `cuattn.attention`, arrays on the current GPU."""
        make = OPTIONS.get(self.name)
        return {} if make is None else make(self.case)

    @property
    def operations(self) -> int:
        """Multiplications and additions over the pairs that all masks together leave."""
        case = self.case
        if self.name == "window-1023":
            mask = Mask(case, case.is_causal, WINDOW)
            pairs = int(mask.num_visible(range(case.seqlen_q)).sum())
        elif self.name == "mask-documents":
            pairs = int((np.bincount(documents(case.seqlen_kv)) ** 2).sum())
        elif self.name in (VARLEN, ALONE):
            return 4 * case.num_q_heads * case.head_dim * int((lengths(case) ** 2).sum())
        elif self.name == "dv-128":
            return case.operations * (case.head_dim + HEAD_DIM_V) // (2 * case.head_dim)
        else:
            return case.operations
        return 4 * case.batch * case.num_q_heads * case.head_dim * pairs


def documents(tokens: int) -> NDArray[np.int64]:
    """Return the number of each token's document: each has tokens in a row, and at least one."""
    rng = np.random.default_rng(SEED)
    cuts = np.sort(rng.choice(np.arange(1, tokens), DOCUMENTS - 1, replace=False))
    return np.searchsorted(cuts, np.arange(tokens), side="right")


def lengths(case: Case) -> NDArray[np.int64]:
    """Return the lengths of `case.batch` sequences, in some order, that have its tokens in all."""
    even = np.linspace(SHORTEST, 2 * case.seqlen_kv - SHORTEST, case.batch).round().astype(np.int64)
    return np.random.default_rng(SEED).permutation(even)


def _sinks(case: Case) -> dict[str, Any]:
    import cupy

    drawn = np.random.default_rng(SEED).standard_normal(case.num_q_heads)
    return {"sinks": cupy.asarray(drawn.astype(np.float32))}


def _alibi(case: Case) -> dict[str, Any]:
    import cupy

    # The slopes of the paper (arXiv 2108.12409, section 3): a geometric sequence that ends at 2⁻⁸.
    slopes = 2.0 ** (-8 * np.arange(1, case.num_q_heads + 1) / case.num_q_heads)
    return {"alibi_slopes": cupy.asarray(slopes.astype(np.float32))}


def _score_mod(case: Case) -> dict[str, Any]:
    slopes = _alibi(case)["alibi_slopes"]
    return {"score_mod": ScoreMod(BY_DISTANCE, arrays={"slope": slopes})}


def _document_mask(case: Case) -> dict[str, Any]:
    import cupy

    of_token = cupy.asarray(documents(case.seqlen_kv))
    return {"attn_mask": (of_token[:, None] == of_token)[None, None]}


OPTIONS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "softcap-50": lambda case: {"softcap": SOFTCAP},
    "sinks": _sinks,
    "alibi": _alibi,
    "score-mod": _score_mod,
    "window-1023": lambda case: {"window_size": WINDOW},
    "mask-documents": _document_mask,
}

_SOURCE = ModSource("score_mod", BY_DISTANCE, (("slope", "float32"),))
# It is linear in the key where no key is behind a row's own.
EXPRESSED = Rules(score_mod=_SOURCE, score_slope=slope_source(_SOURCE, only_past=True))

# Those of a shape take turns; each stands beside "plain" of the same shape.
CAUSAL, LONG, WHOLE = (
    Case.square(4, 32, seqlen, 128, is_causal)
    for seqlen, is_causal in ((4096, True), (16384, True), (8192, False))
)
DEEP = Case.square(4, 32, 8192, 192, True)
PACKED = Case.square(16, 32, (SHORTEST + LONGEST) // 2, 128, False)
FEATURES: dict[Case, tuple[Feature, ...]] = {
    CAUSAL: (
        Feature("plain", CAUSAL),
        Feature("softcap-50", CAUSAL, Rules(softcap=True)),
        Feature("sinks", CAUSAL, Rules(sinks=True)),
        Feature("alibi", CAUSAL, Rules(alibi=True)),
        Feature("score-mod", CAUSAL, EXPRESSED),
    ),
    LONG: (Feature("plain", LONG), Feature("window-1023", LONG, Rules(windowed=True))),
    WHOLE: (
        Feature("plain", WHOLE),
        Feature("mask-documents", WHOLE, Rules(attn_mask=MaskKind.bits)),
    ),
    DEEP: (Feature("dv-128", DEEP),),
    PACKED: (
        Feature("plain", PACKED),
        Feature(VARLEN, PACKED, Rules(varlen=True)),
        Feature(ALONE, PACKED),
    ),
}


def apart(scheme: str) -> Scheme:
    """Return what kernels of a preset are timed with: K is not smoothed.

    Where it is, a Q that is quantized beforehand has a product with K's vector to be made first
    where there are caps or sinks, which is no part of the kernel.
    """
    return replace(resolve(scheme), smooth_k="none")


def kernels(target: Target, schemes: Iterable[str] = SCHEMES) -> Iterator[Spec]:
    """Yield the kernels of all of these calls."""
    features = [feature for of_case in FEATURES.values() for feature in of_case]
    for feature, name in product(features, schemes):
        case, rules = feature.case, feature.rules
        if rules.mapped:
            yield MaskMapSpec(rules.attn_mask)
        # Operands of sequences whose lengths the host does not know are quantized by their call.
        for scheme in (resolve(name),) if rules.varlen else (resolve(name), apart(name)):
            yield attention_spec(
                scheme,
                case.head_dim,
                Type.fp16,
                # A window is the causal mask, too.
                case.is_causal and not rules.windowed,
                target,
                long_kv=case.seqlen_kv > INTEGER_O_KEYS,
                rules=rules,
                head_dim_v=HEAD_DIM_V if feature.name == "dv-128" else None,
            )
            yield from _quantizers(scheme, case.head_dim, feature)


def _quantizers(scheme: Scheme, head_dim: int, feature: Feature) -> Iterator[Spec]:
    """Yield what converts the operands of calls, whose rows begin at whole vectors."""
    for spec in quantizer_specs(scheme, head_dim, Type.fp16):
        if not getattr(spec, "aligned", True):
            continue
        if feature.rules.varlen and hasattr(spec, "varlen"):
            yield replace(spec, varlen=True)
        elif feature.name == "dv-128" and isinstance(spec, QuantizeSpec):
            yield replace(spec, head_dim_v=HEAD_DIM_V)
        else:
            yield spec
