"""The kernels of calls with options of scores, compiled side by side before tests need them."""

import os

import numpy as np

from cuattn.arrays.device import current_device, target
from cuattn.compile.jit import precompile
from cuattn.operands.operand import DTYPES
from cuattn.plan.kernels import attention_spec
from cuattn.reference.layout import pad_head_dim
from cuattn.specs.mask_map import MaskMapSpec
from cuattn.specs.rules import PLAIN, MaskKind, Rules

from .score_cases import score_options

FLOATS = {"float16": MaskKind.fp16, "bfloat16": MaskKind.bf16, "float32": MaskKind.fp32}
MASKED = {"bool": Rules(attn_mask=MaskKind.bits)}
MASKED |= {dtype: Rules(attn_mask=kind) for dtype, kind in FLOATS.items()}
WINDOWED = Rules(windowed=True)


def rules_of(name, dtype):
    """Return whether the kernel of a set is causal, and its rules with arrays of a type."""
    options = score_options(name, np.random.default_rng(0), (1, 2, 300), 300)
    mask = MaskKind.none
    if "attn_mask" in options:
        mask = MaskKind.bits if options["attn_mask"].dtype == bool else FLOATS[dtype]
    windowed = "window_size" in options
    has = ["softcap" in options, "alibi_slopes" in options, "sinks" in options]
    rules = Rules(windowed, *has, mask)
    return options.get("is_causal", False) and not windowed, rules


def compile_kernels(kinds):
    """Compile attention kernels on all cores, unless processes share the tests.

    Parameters
    ----------
    kinds : iterable of (Scheme, int, str, (bool, Rules))
        head_dim and type of the inputs; whether a call is causal, and its rules.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    arch = current_device().arch
    specs = [MaskMapSpec(kind) for kind in MaskKind if kind is not MaskKind.none]
    for scheme, head_dim, dtype, (is_causal, rules) in kinds:
        kind = scheme, pad_head_dim(head_dim), DTYPES[dtype], is_causal, target(arch)
        specs.append(attention_spec(*kind, rules=rules))
    precompile(specs, [arch])


def same_but_for_rules(scheme, head_dim, dtype, is_causal):
    """Whether a kernel with a mask of bits differs from the plain one in nothing that rounds."""
    kind = scheme, pad_head_dim(head_dim), DTYPES[dtype], is_causal, target(current_device().arch)
    plain, masked = (vars(attention_spec(*kind, rules=x)) for x in (PLAIN, MASKED["bool"]))
    return {name for name in plain if plain[name] != masked[name]} <= {"rules", "tied_steps"}
