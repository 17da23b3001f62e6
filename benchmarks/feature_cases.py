"""Which options of scores are timed, at which shapes, and how many operations each leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cuattn.arrays.device import Target
from cuattn.bench.cases import Case
from cuattn.compile.jit import Spec
from cuattn.plan.kernels import attention_spec
from cuattn.plan.kernels_sm90 import INTEGER_O_KEYS
from cuattn.plan.listing import quantizer_specs
from cuattn.presets import resolve
from cuattn.reference.masking import Mask
from cuattn.scheme import Scheme
from cuattn.specs.attention import Type
from cuattn.specs.mask_map import MaskMapSpec
from cuattn.specs.rules import PLAIN, MaskKind, Rules

__all__ = [
    "CAUSAL",
    "DOCUMENTS",
    "FEATURES",
    "LONG",
    "SCHEMES",
    "WHOLE",
    "WINDOW",
    "Feature",
    "apart",
    "documents",
    "kernels",
]

SCHEMES = ("int8-block", "int8", "fp16")

# What Hugging Face calls a sliding window of 1024.
WINDOW = (1023, 0)
SOFTCAP = 50.0
# Documents in a sequence, of random lengths.
DOCUMENTS, SEED = 16, 0


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
        else:
            return case.operations
        return 4 * case.batch * case.num_q_heads * case.head_dim * pairs


def documents(tokens: int) -> NDArray[np.int64]:
    """Return the number of each token's document: each has tokens in a row, and at least one."""
    rng = np.random.default_rng(SEED)
    cuts = np.sort(rng.choice(np.arange(1, tokens), DOCUMENTS - 1, replace=False))
    return np.searchsorted(cuts, np.arange(tokens), side="right")


def _sinks(case: Case) -> dict[str, Any]:
    import cupy

    drawn = np.random.default_rng(SEED).standard_normal(case.num_q_heads)
    return {"sinks": cupy.asarray(drawn.astype(np.float32))}


def _alibi(case: Case) -> dict[str, Any]:
    import cupy

    # The slopes of the paper (arXiv 2108.12409, section 3): a geometric sequence that ends at 2⁻⁸.
    slopes = 2.0 ** (-8 * np.arange(1, case.num_q_heads + 1) / case.num_q_heads)
    return {"alibi_slopes": cupy.asarray(slopes.astype(np.float32))}


def _document_mask(case: Case) -> dict[str, Any]:
    import cupy

    of_token = cupy.asarray(documents(case.seqlen_kv))
    return {"attn_mask": (of_token[:, None] == of_token)[None, None]}


OPTIONS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "softcap-50": lambda case: {"softcap": SOFTCAP},
    "sinks": _sinks,
    "alibi": _alibi,
    "window-1023": lambda case: {"window_size": WINDOW},
    "mask-documents": _document_mask,
}

# Those of a shape take turns; each stands beside "plain" of the same shape.
CAUSAL, LONG, WHOLE = (
    Case.square(4, 32, seqlen, 128, is_causal)
    for seqlen, is_causal in ((4096, True), (16384, True), (8192, False))
)
FEATURES: dict[Case, tuple[Feature, ...]] = {
    CAUSAL: (
        Feature("plain", CAUSAL),
        Feature("softcap-50", CAUSAL, Rules(softcap=True)),
        Feature("sinks", CAUSAL, Rules(sinks=True)),
        Feature("alibi", CAUSAL, Rules(alibi=True)),
    ),
    LONG: (Feature("plain", LONG), Feature("window-1023", LONG, Rules(windowed=True))),
    WHOLE: (
        Feature("plain", WHOLE),
        Feature("mask-documents", WHOLE, Rules(attn_mask=MaskKind.bits)),
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
        case = feature.case
        if feature.rules.mapped:
            yield MaskMapSpec(feature.rules.attn_mask)
        for scheme in (resolve(name), apart(name)):
            yield attention_spec(
                scheme,
                case.head_dim,
                Type.fp16,
                # A window is the causal mask, too.
                case.is_causal and not feature.rules.windowed,
                target,
                long_kv=case.seqlen_kv > INTEGER_O_KEYS,
                rules=feature.rules,
            )
            for spec in quantizer_specs(scheme, case.head_dim, Type.fp16):
                if getattr(spec, "aligned", True):
                    yield spec
