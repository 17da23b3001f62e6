"""What the documents say of a record: each section is a function from figures to Markdown."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tools import (
    decode_tables,
    error_tables,
    front_tables,
    goals,
    gpu_tables,
    paper_tables,
    prose,
    scheme_tables,
    speed_tables,
    support_tables,
)
from tools.record_figures import Figures

SECTIONS: dict[str, Callable[[Figures], str]] = {
    "origin": prose.origin,
    "claims": prose.claims,
    "presets": front_tables.presets,
    "speed": partial(speed_tables.speed, causal=False),
    "speed-causal": partial(speed_tables.speed, causal=True),
    "ceilings": gpu_tables.ceilings,
    "shares": speed_tables.shares,
    "ratios": speed_tables.ratios,
    "accuracy": error_tables.accuracy,
    "lengths": error_tables.lengths,
    "minilm": error_tables.minilm,
    "quantizers": speed_tables.quantizers,
    "host": speed_tables.host,
    "first-call": prose.first_call,
    "worth": prose.worth,
    "first-calls": gpu_tables.first_calls,
    "goals-first-calls": goals.goals_first_calls,
    "pareto": front_tables.pareto,
    "goals": goals.goals,
    "goals-hopper": goals.goals_hopper,
    "goals-schemes": goals.goals_schemes,
    "goals-decode": decode_tables.goals,
    "decode": decode_tables.decode,
    "decode-summary": decode_tables.summary,
    "decode-errors": decode_tables.errors,
    "support": support_tables.support,
    "schemes": scheme_tables.schemes,
    "scheme-costs": scheme_tables.costs,
    "scheme-errors": scheme_tables.errors,
    "paper-int-flash": paper_tables.int_flash,
    "paper-sage": paper_tables.sage,
    "paper-granularity": paper_tables.granularity,
    "paper-smoothing": paper_tables.smoothing,
    "rotation": paper_tables.rotation,
    "paper-twin": paper_tables.twin,
}
