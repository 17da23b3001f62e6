"""What a language model has said of schemes, caches and layers: as tables, and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ... import __version__
from ...language_model.judge import Judge, Judgement
from ...language_model.layer_plan import layer_name
from ...records.rows import LanguageModelRow
from ...reference.arrays import Progress
from ...scheme import Scheme
from ..progress import Bar
from ..table import Group, Row, Table

__all__ = ["Findings"]

COLUMNS = ("perplexity", "change of NLL", "KL", "same first choice, %")
BY_LAYER = "KL with the scheme in one layer, 1e-6 nats"
BY_POSITION = "KL of the tokens from, to"


@dataclass
class Findings:
    """Judgements one after the other, each with a bar of its own.

    Attributes
    ----------
    judge : Judge
    bar : Bar
    judged : list of (str, str, str or None, Judgement)
        Title, scheme and cache of each.
    by_layer : dict of Scheme to list of float
        The divergence with the scheme in one layer, by layer.
    """

    judge: Judge
    bar: Bar
    judged: list[tuple[str, str, str | None, Judgement]] = field(default_factory=list)
    by_layer: dict[Scheme, list[float]] = field(default_factory=dict)

    def add(
        self,
        title: str,
        judged: Callable[[Progress], Judgement],
        *,
        scheme: str = "exact",
        cache: str | None = None,
    ) -> None:
        """Judge and keep what is found."""
        self.judged.append((title, scheme, cache, judged(self.bar.task(title))))

    def add_scheme(self, title: str, scheme: Scheme | list[Scheme]) -> None:
        """Judge a scheme in all layers, or a plan's of each."""
        name = scheme.name if isinstance(scheme, Scheme) else "plan"
        self.add(title, lambda progress: self.judge.scheme(scheme, progress), scheme=name)

    def add_layers(self, scheme: Scheme) -> None:
        """Judge a scheme in one layer at a time."""
        progress = self.bar.task(f"{scheme.name} in one layer at a time")
        self.by_layer[scheme] = [x.kl for x in self.judge.by_layer(scheme, progress)]

    def table(self) -> Table:
        """Return what was found of all layers together."""
        groups: dict[str, list[Row]] = {}
        for title, _, cache, x in self.judged:
            group = "schemes in all layers" if cache is None else "caches"
            figures = (x.perplexity, x.delta_nll, x.kl, 100 * x.same_top1)
            groups.setdefault(group, []).append((title, figures))
        return Table(COLUMNS, [Group(name, rows) for name, rows in groups.items()])

    def layer_table(self) -> Table:
        """Return the divergences by layer, and their sums."""
        of_schemes = [*self.by_layer.values()]
        rows: list[Row] = [
            (layer_name(i), [1e6 * x for x in kl])
            for i, kl in enumerate(zip(*of_schemes, strict=True))
        ]
        rows.append(("sum", [1e6 * sum(kl) for kl in of_schemes]))
        return Table([scheme.name for scheme in self.by_layer], [Group(BY_LAYER, rows)])

    def by_position(self) -> dict[str, dict[range, float]]:
        """Return divergences by the number of tokens that a prediction is made of."""
        return {
            title if cache is None else f"cache {title}": x.kl_by_position()
            for title, _, cache, x in self.judged
        }

    def position_table(self) -> Table:
        """Return what `by_position` does, but for exact attention."""
        (_, exact), *others = self.by_position().items()
        rows: list[Row] = [
            (f"{run.start} to {run.stop - 1}", [found[run] for _, found in others]) for run in exact
        ]
        return Table([title for title, _ in others], [Group(BY_POSITION, rows)])

    def document(
        self, model: str, text: str, tokens: int, where: Literal["gpu", "host"]
    ) -> dict[str, Any]:
        """Return all of it as JSON's own types; rows are those of a record."""
        rows = [
            LanguageModelRow(
                model=model,
                text=text,
                tokens=tokens,
                scheme=scheme,
                cache=cache,
                **x.figures(),
                where=where,
            )
            for _, scheme, cache, x in self.judged
        ]
        return {
            "cuattn": __version__,
            "language_model": [asdict(row) for row in rows],
            "kl_by_layer": {scheme.name: kl for scheme, kl in self.by_layer.items()},
            "kl_by_position": {
                title: [
                    {"first": run.start, "last": run.stop - 1, "kl": kl}
                    for run, kl in found.items()
                ]
                for title, found in self.by_position().items()
            },
        }
