"""Which kernels serve a scheme on each GPU, for docs/support.md: asked of the planner."""

from __future__ import annotations

from dataclasses import replace

from cuattn.arrays.device import TARGETS, Target
from cuattn.errors import UnsupportedError
from cuattn.kv.spec import decode_spec
from cuattn.kv_format import KVFormat
from cuattn.plan.kernels import attention_spec
from cuattn.presets import PRESETS
from cuattn.scheme import Scheme
from cuattn.specs.attention import AttentionSpec, Type
from tools.tables.record_figures import NONE, Figures, table

# Targets of the GPUs that there may be records of.
RECORDED = {"NVIDIA H200": "90a"}
RAN, COMPILED = "●", "○"

HEAD_DIM = 128
# Besides the presets: what takes another family than they do.
GROUPS = replace(PRESETS["int8-token"], name="groups of channels", q_scope="group", k_scope="group")
# Schemes of the record that have groups.
MEASURED_GROUPS = "int4-fp16 group"
CACHE = KVFormat(HEAD_DIM, 8, 8, 0, False)


def support(f: Figures) -> str:
    """Return a row for presets that the same kernels serve, and a column for each target."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, scheme in PRESETS.items():
        cells = tuple(_cell(f, name, arch, _family(scheme, TARGETS[arch])) for arch in TARGETS)
        rows.setdefault(cells, []).append(f"`{name}`")
    lines = [[", ".join(names), *cells] for cells, names in rows.items()]
    groups = [_cell(f, MEASURED_GROUPS, x, _family(GROUPS, TARGETS[x])) for x in TARGETS]
    caches = [_cell(f, "kv-int8", x, _decodes(TARGETS[x])) for x in TARGETS]
    lines += [[GROUPS.name, *groups], ["`KVCache`", *caches]]
    return table(["", *(f"sm_{arch.rstrip('a')}" for arch in TARGETS)], lines)


def _family(scheme: Scheme, target: Target) -> str | None:
    """Return the kernel family that serves a scheme on a target, or None if there is none."""
    try:
        spec = attention_spec(scheme, HEAD_DIM, Type.fp16, False, target)
    except UnsupportedError:
        return None
    family = spec.function.removeprefix("attention_")
    return f"{family}, s4" if isinstance(spec, AttentionSpec) and spec.qk is Type.int4 else family


def _decodes(target: Target) -> str | None:
    fits = decode_spec(CACHE, Type.fp16, 1, target).smem_bytes <= target.max_smem_per_cta
    return "mma" if fits else None


def _cell(f: Figures, name: str, arch: str, family: str | None) -> str:
    """Return whether the record's GPU has run a scheme, or it is compiled only, and as what."""
    if family is None:
        return NONE
    ran = RECORDED.get(f.record.gpu) == arch and name in {a.scheme for a in f.record.accuracy}
    return f"{RAN if ran else COMPILED} {family}"
