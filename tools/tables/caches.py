"""The table of caches: ours out of the record, beside what others have published of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.decode_rows import DecodeRows
from cuattn import KVCache
from cuattn.bench.cases import DECODE, Case
from cuattn.bench.decode import FP16, KIND
from cuattn.language_model.attend import CACHES
from tools.tables.record_figures import NONE, Figures, show, table

# Of a long sequence and of several shorter ones.
LONG, SHORT = DECODE[:2]
TOKENS = 8192

# By the judge's names: what the page calls them, and what timings do.
OURS = {
    "float16": ("float16, the fastest kernel", FP16),
    "int8": ("`bits=8`", "kv-int8"),
    "k8v4": ("`k_bits=8, v_bits=4, group=32, v_zero=True`", None),
    "int4": ("`bits=4`", "kv-int4"),
}

# Name, bits of an element as far as they are said, and what is reported of errors; each was looked
# up where the link leads, TurboQuant's table of results in two quotations that agree.
PUBLISHED = (
    (
        "[KIVI](https://arxiv.org/abs/2402.02750)",
        "2, scales besides",
        "“almost the same quality” in benchmarks of Llama, Falcon and Mistral",
    ),
    (
        "[KVQuant](https://arxiv.org/abs/2401.18079)",
        "3",
        "less than 0.1 perplexity lost, Wikitext-2 and C4",
    ),
    (
        "[TurboQuant](https://arxiv.org/abs/2504.19874)",
        "3.5",
        "LongBench 50.06, as with 16 bits (Llama-3.1-8B-Instruct)",
    ),
    ("TurboQuant", "2.5", "LongBench 49.44 in version 1"),
    (
        "[KVarN](https://github.com/huawei-csl/KVarN), its preset",
        "K 4, V 2, scales besides",
        "AIME25 as with float16 (Qwen3-32B)",
    ),
    (
        "[vLLM](https://github.com/vllm-project/vllm/pull/39074), `int4_per_token_head`",
        "4, scales besides",
        "500 questions of GSM8K 96.8 %, bfloat16 95.6 % (Qwen3.5-35B-A3B)",
    ),
)


def caches(f: Figures) -> str:
    """Return bits, errors and times of caches."""
    header = [
        "cache",
        "bits an element, D 64 / 128",
        "error",
        f"µs, {_shape(SHORT)}",
        f"µs, {_shape(LONG)}",
    ]
    rows = [
        [title, _bits(CACHES[name]), _kl(f, name), _time(f, timed, SHORT), _time(f, timed, LONG)]
        for name, (title, timed) in OURS.items()
    ]
    return table(header, [*rows, *([*of_other, NONE, NONE] for of_other in PUBLISHED)], left=3)


def _bits(options: Mapping[str, Any]) -> str:
    """Return bits of an element of a sequence of `TOKENS`, with all that codes need besides."""
    if not options:
        return "16"
    sizes = (64, 128)
    bits = [
        8 * KVCache.bytes_needed(1, 1, size, TOKENS, **options) / (2 * size * TOKENS)
        for size in sizes
    ]
    return " / ".join(f"{x:.2f}" for x in bits)


def _kl(f: Figures, name: str) -> str:
    """Return the mean divergence of the record's texts."""
    found = [x.kl for x in f.record.language_model if x.cache == name and x.kl is not None]
    return f"KL {sum(found) / len(found):.1e}" if found else NONE


def _time(f: Figures, name: str | None, case: Case) -> str:
    """Return microseconds of one query, or of the fastest kernel that reads float16."""
    rows = DecodeRows(f.record.timings)
    if name == FP16:
        return show(rows.float16(case), ".0f", 1e3)
    t = rows.row(KIND, name, case) if name else None
    return show(t.kernel_ms if t else None, ".0f", 1e3)


def _shape(case: Case) -> str:
    return f"{case.batch} × {case.num_kv_heads} × {case.seqlen_kv}"
