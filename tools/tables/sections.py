"""What the documents say of a record: each section is a function from figures to Markdown."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tools.tables import (
    decode,
    errors,
    front,
    goals,
    papers,
    prose,
    reliability,
    schemes,
    speed,
    states,
    support,
)
from tools.tables.record_figures import Figures

SECTIONS: dict[str, Callable[[Figures], str]] = {
    "origin": prose.origin,
    "claims": prose.claims,
    "status": prose.status,
    "summary": front.summary,
    "presets": front.presets,
    "speed": partial(speed.speed, causal=False),
    "speed-causal": partial(speed.speed, causal=True),
    "comparison": states.comparison,
    "models": states.models,
    "ceilings": speed.ceilings,
    "shares": speed.shares,
    "ratios": speed.ratios,
    "mma-sync": speed.mma_sync,
    "accuracy": errors.accuracy,
    "lengths": errors.lengths,
    "minilm": errors.minilm,
    "quantizers": speed.quantizers,
    "host": speed.host,
    "first-call": prose.first_call,
    "worth": prose.worth,
    "first-calls": speed.first_calls,
    "goals-first-calls": goals.goals_first_calls,
    "pareto": front.pareto,
    "goals": goals.goals,
    "goals-missed": goals.goals_missed,
    "goals-hopper": goals.goals_hopper,
    "goals-schemes": goals.goals_schemes,
    "goals-decode": decode.goals,
    "decode": decode.decode,
    "decode-summary": decode.summary,
    "decode-errors": decode.errors,
    "support": support.support,
    "schemes": schemes.schemes,
    "scheme-costs": schemes.costs,
    "scheme-errors": schemes.errors,
    "paper-int-flash": papers.int_flash,
    "paper-sage": papers.sage,
    "paper-granularity": papers.granularity,
    "paper-smoothing": papers.smoothing,
    "rotation": papers.rotation,
    "paper-twin": papers.twin,
    "mutants": reliability.mutants,
    "fuzz": reliability.fuzz,
    "sanitizer": reliability.sanitizer,
}
