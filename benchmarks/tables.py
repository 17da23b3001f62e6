"""A record as a few narrow tables, on any computer: python -m benchmarks.tables [FILE]."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from cuattn.bench.cases import PREFILL, Case
from cuattn.bench.ceilings import share
from cuattn.bench.series import Series, end_to_end_tops
from cuattn.errors import CuattnError
from cuattn.records.record import Record, Timing, load, records
from cuattn.records.rows import shape_of

from . import host_calls
from .decode_rows import DecodeRows
from .real_model import EMBEDDING

# Length and head dim whose errors the table of accuracy shows; the record has all.
SHOWN = (4096, 128)


def show(record: Record) -> str:
    """Return everything worth reading at the end of a run."""
    parts = [f"{record.gpu}, digest {record.digest[:12]}"]
    if record.tests:
        parts.append(f"tests: {record.tests}")
    parts.append(f"sanitizer: {record.sanitizer}")
    parts += [_accuracy(record), _model(record), _language_model(record)]
    parts += [_ceilings(record), _host_and_memory(record), _first_calls(record)]
    parts += [_speed(record), _ratios(record), _beside(record, "comparison", "beside others")]
    parts += [_models(record), _beside(record, "mma-sync", "kernels of mma.sync")]
    parts += [_decode(record), _latent(record), _chunks(record)]
    return "\n\n".join(part for part in parts if part)


def _accuracy(record: Record) -> str:
    rows: dict[str, dict[str, float]] = {}
    for entry in record.accuracy:
        error = entry.metrics["relative_l1"]
        if (entry.seqlen_kv, entry.head_dim) == SHOWN and not entry.is_causal and error is not None:
            rows.setdefault(entry.scheme, {})[entry.distribution] = error
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    title = f"relative L1 in %, N={SHOWN[0]} D={SHOWN[1]}"
    cells = {scheme: {n: f"{100 * e:.3f}" for n, e in row.items()} for scheme, row in rows.items()}
    return _table(title, names, cells)


def _model(record: Record) -> str:
    lines = []
    for entry in record.accuracy:
        cosine = entry.metrics["cosine"]
        if entry.distribution == EMBEDDING and cosine is not None:
            lines.append(f"MiniLM's embedding, {entry.scheme}: 1 - cosine {1 - cosine:.1e}")
    return "\n".join(lines)


def _language_model(record: Record) -> str:
    rows: dict[str, dict[str, str]] = {}
    for x in record.language_model:
        row = rows.setdefault(f"cache {x.cache}" if x.cache else x.scheme, {})
        row[f"{x.text}, {x.where}"] = "-" if x.kl is None else f"{x.kl:.2e}"
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return _table("divergence of a language model's next token, nats", names, rows)


def _ceilings(record: Record) -> str:
    rows = {
        f"{ceiling.what}, {ceiling.instruction}": {
            ceiling.unit: f"{ceiling.rate:.0f}",
            "iqr": f"{ceiling.iqr:.1f}",
        }
        for ceiling in record.ceilings
    }
    return _table("the most that the GPU can do", ["TOPS", "GB/s", "iqr"], rows)


def _first_calls(record: Record) -> str:
    rows = {
        f"{first.call}, D {first.head_dim}": {
            "kernels": str(first.kernels),
            "empty cache": f"{first.cold_s:.2f}",
            "full cache": f"{first.warm_s:.2f}",
        }
        for first in record.first_calls
    }
    columns = ["kernels", "empty cache", "full cache"]
    return _table("seconds to the first result", columns, rows)


def _host_and_memory(record: Record) -> str:
    lines = []
    for t in record.timings:
        if t.case == "host" and t.end_to_end_ms is not None:
            lines.append(f"host, {t.scheme}: {1e3 * t.end_to_end_ms:.1f} us a call")
        if t.case == host_calls.CASE and t.end_to_end_ms is not None:
            what = f"host, {t.implementation}, {t.scheme}"
            lines.append(f"{what}: {1e3 * t.end_to_end_ms:.1f} us, in one loop with the others")
    for t in record.timings:
        if t.gbps is not None and (t.case == "copy" or t.case.startswith("quantize")):
            lines.append(f"{t.case} {t.scheme}: {t.kernel_ms:.3f} ms, {t.gbps:.0f} GB/s")
    return "\n".join(lines)


def _speed(record: Record) -> str:
    rows: dict[str, dict[str, str]] = {}
    for who, times in _prefill(record).items():
        row = rows.setdefault(" ".join(who), {})
        for case, t in times.items():
            row[str(case)] = f"{t.tops or 0:.0f}/{end_to_end_tops(t) or 0:.0f}{_share(record, t)}"
    title = "TOPS, kernel only / end to end, and the former's percent of the ceiling; B=4 H=32"
    return _table(title, [str(case) for case in PREFILL], rows)


def _share(record: Record, t: Timing) -> str:
    of_ceiling = share(record.ceilings, t)
    return f" {100 * of_ceiling:.0f}%" if of_ceiling else ""


def _ratios(record: Record) -> str:
    prefill = _prefill(record)
    rows: dict[str, dict[str, str]] = {}
    ours = {scheme: times for (name, scheme), times in prefill.items() if name == "cuattn"}
    others = {name: times for (name, _), times in prefill.items() if name != "cuattn"}
    for scheme, times in ours.items():
        for other, theirs in others.items():
            rows[f"{scheme} : {other}"] = {
                str(case): f"{_ratio(times[case].kernel_ms, theirs[case].kernel_ms)}/"
                f"{_ratio(times[case].end_to_end_ms, theirs[case].end_to_end_ms)}"
                for case in times
                if case in theirs
            }
    title = "times as fast, kernel only / end to end"
    return _table(title, [str(case) for case in PREFILL], rows)


def _beside(record: Record, kind: str, title: str) -> str:
    rows: dict[str, dict[str, str]] = {}
    for t in record.timings:
        if t.case == kind:
            shape = f"{t.batch}x{t.num_q_heads}/{t.num_kv_heads} {_case(t)}"
            row = rows.setdefault(f"{Series.of(t).name}, {t.state}", {})
            row[shape] = f"{t.tops or 0:.0f}/{end_to_end_tops(t) or 0:.0f}"
    shapes = list(dict.fromkeys(shape for row in rows.values() for shape in row))
    return _table(f"{title}: TOPS, kernel only / end to end", shapes, rows)


def _models(record: Record) -> str:
    rows: dict[str, dict[str, str]] = {}
    for t in record.timings:
        if t.case == "model" and t.end_to_end_ms:
            row = rows.setdefault(f"{t.model}, {t.state}", {})
            row[Series.of(t).name] = f"{t.end_to_end_ms:.3f}"
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return _table("shapes of models: ms of a call from float16", names, rows)


def _decode(record: Record) -> str:
    found = DecodeRows(record.timings)
    rows = {}
    for t in record.timings:
        if t.case.startswith(("decode", "append", "copy-decode")):
            case, name = _case(t), Series.of(t).name
            of_copy, faster = found.share(name, case), found.faster(name, case)
            decodes = t.case == "decode"
            shape = f"{t.batch}x{t.num_kv_heads}x{t.seqlen_kv}x{t.head_dim}"
            rows[f"{t.case} {shape} {name}"] = {
                "GPU us": f"{1e3 * t.kernel_ms:.1f}" if t.kernel_ms else "-",
                "host us": f"{1e3 * t.end_to_end_ms:.1f}" if t.end_to_end_ms else "-",
                "GB/s": f"{t.gbps:.0f}" if t.gbps else "-",
                "% of copy": f"{100 * of_copy:.0f}" if of_copy and decodes else "-",
                "x fp16": f"{faster:.2f}" if faster and decodes else "-",
            }
    columns = ["GPU us", "host us", "GB/s", "% of copy", "x fp16"]
    return _table("the KV cache: batch x heads of K x tokens x D", columns, rows)


def _latent(record: Record) -> str:
    copies = {_case(t): t.gbps for t in record.timings if t.case == "copy-mla-decode"}
    rows = {}
    for t in record.timings:
        if t.case == "mla-decode":
            of_copy = copies.get(_case(t))
            shape = f"{t.batch}x{t.num_q_heads}x{t.seqlen_kv}"
            rows[f"{shape} {Series.of(t).name}"] = {
                "GPU us": f"{1e3 * t.kernel_ms:.1f}" if t.kernel_ms else "-",
                "TOPS": f"{t.tops:.0f}" if t.tops else "-",
                "GB/s": f"{t.gbps:.0f}" if t.gbps else "-",
                "% of copy": f"{100 * t.gbps / of_copy:.0f}" if t.gbps and of_copy else "-",
            }
    columns = ["GPU us", "TOPS", "GB/s", "% of copy"]
    return _table("the latent cache: batch x heads of Q x tokens", columns, rows)


def _chunks(record: Record) -> str:
    rows: dict[str, dict[str, str]] = {}
    for t in record.timings:
        if t.case == "chunk" and t.kernel_ms and t.tops:
            name = f"{Series.of(t).name} {t.feature or ''}".rstrip()
            rows.setdefault(name, {})[str(t.seqlen_q)] = f"{1e3 * t.kernel_ms:.0f} ({t.tops:.0f})"
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return _table("queries against a long cache: us of a call (TOPS)", names, rows)


def _prefill(record: Record) -> dict[tuple[str, str], dict[Case, Timing]]:
    found: dict[tuple[str, str], dict[Case, Timing]] = {}
    for t in record.timings:
        if t.is_plain("prefill"):
            found.setdefault((t.implementation, t.scheme), {})[_case(t)] = t
    return found


def _case(t: Timing) -> Case:
    return Case(**asdict(shape_of(t)))


def _ratio(mine: float | None, theirs: float | None) -> str:
    return f"{theirs / mine:.2f}" if mine and theirs else "-"


def _table(title: str, columns: list[str], rows: dict[str, dict[str, str]]) -> str:
    if not rows:
        return ""
    first = max(len(name) for name in rows)
    widths = {c: max(len(c), *(len(row.get(c, "-")) for row in rows.values())) for c in columns}
    lines = [title, " " * first + "".join(f"  {c:>{widths[c]}}" for c in columns)]
    for name, row in rows.items():
        cells = "".join(f"  {row.get(c, '-'):>{widths[c]}}" for c in columns)
        lines.append(f"{name:<{first}}{cells}")
    return "\n".join(lines)


def main() -> None:
    """Print a record, or all that are committed."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("file", type=Path, nargs="?", help="a record (the committed ones)")
    file = parser.parse_args().file
    for path in [file] if file else records():
        print(show(load(path)))


if __name__ == "__main__":
    try:
        main()
    except CuattnError as error:
        raise SystemExit(f"tables: {error}") from None
