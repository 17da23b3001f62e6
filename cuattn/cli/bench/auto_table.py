"""``cuattn bench --auto-table``: measure what `scheme="auto"` is chosen by on this GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby

from ...arrays.device import current_device, target
from ...auto.choose import choose
from ...auto.table import CANDIDATES, SpeedRow, SpeedTable, save
from ...auto.tables import Found, own_file
from ...bench.auto_table import CASES, table, timings
from ...bench.grid import Grid, kernels
from ...common.output_files import Target
from ...compile.jit import precompile
from ...errors import ArgumentError
from ...presets import AUTO
from ..progress import Bar
from ..table import Group, Table

__all__ = ["run"]


def run(file: Target | None) -> None:
    """Measure this GPU's table, print it, and write it to a file or to where `auto` looks for it.

    Raises
    ------
    ArgumentError
        If the GPU has no room for any of the shapes.
    """
    device = current_device()
    place = own_file(device.name) if file is None else file
    with Bar() as bar:
        specs = kernels(_grid(), CANDIDATES, target(device.arch))
        precompile(specs, [device.arch], progress=bar.task(f"compiling {len(specs)} kernels"))
        found = table(
            list(
                timings(
                    lambda what, reason: bar.note(f"left out: {what}: {reason}"),
                    bar.task("calls from float16"),
                )
            )
        )
    if not found.rows:
        raise ArgumentError("--auto-table", device.name, "run on a GPU with free memory")
    if file is None:
        own_file(device.name).parent.mkdir(parents=True, exist_ok=True)
    print(_shown(found))
    save(found, place)
    if file is None:
        print(f"\nscheme='auto' goes by {place} from the next process on", file=sys.stderr)


def _grid() -> Grid:
    return Grid(ceilings=False, prefill=CASES, decode=(), errors=(), schemes=CANDIDATES)


def _shown(found: SpeedTable) -> Table:
    """Return microseconds by shape, and those of what is chosen."""
    groups = [
        Group(f"D {head_dim}{', causal' * is_causal}", [_row(found, row) for row in rows])
        for (head_dim, is_causal), rows in groupby(
            found.rows, key=lambda row: (row.head_dim, row.is_causal)
        )
    ]
    title = f"{found.gpu}: us of a call from float16, of each scheme and of what is chosen"
    return Table([*CANDIDATES, *AUTO], groups, title)


def _row(found: SpeedTable, row: SpeedRow) -> tuple[str, list[float]]:
    name = (
        f"{row.batch} x {row.num_q_heads} over {row.num_kv_heads}, "
        f"N {row.seqlen_q} over {row.seqlen_kv}"
    )
    return name, [*_times(found, row)]


def _times(found: SpeedTable, row: SpeedRow) -> Iterator[float]:
    yield from (row.us[scheme] for scheme in CANDIDATES)
    for name in AUTO:
        yield row.us[choose(row, name, Found(found, "")).scheme]
