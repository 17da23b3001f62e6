"""A scheme for each layer of a model, chosen by what each layer's costs its predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..choice.choose import speed_rank
from ..choice.scheme_plan import SchemePlan
from ..errors import ArgumentError
from ..scheme import Scheme

__all__ = ["layer_name", "plan_layers", "schemes_of"]


def layer_name(i: int) -> str:
    """Return what a plan calls a layer."""
    return f"layer {i}"


def plan_layers(costs: Mapping[Scheme, Sequence[float]], max_kl: float) -> SchemePlan:
    """Choose fast schemes whose divergences, one layer at a time, add up to no more than a bound.

    Rounding errors of different layers are nearly independent, and so their divergences nearly add
    up: the plan is to be judged as a whole all the same. All layers begin with the fastest scheme;
    as long as the sum is too large, the layer changes where that gains most for the speed it costs.

    Parameters
    ----------
    costs : mapping of Scheme to sequence of float [layer]
        The divergence with this scheme in one layer, by layer.
    max_kl : float
        For all layers together, in nats.

    Returns
    -------
    SchemePlan
        By `layer_name`.

    Raises
    ------
    ArgumentError
        If the sum is larger with the best scheme of every layer; says how large.
    """
    ranked = sorted(costs, key=speed_rank)
    # What a layer may use, the fastest first: a slower one must be better.
    options: list[list[tuple[float, int]]] = []
    for of_layer in zip(*(costs[scheme] for scheme in ranked), strict=True):
        better: list[tuple[float, int]] = []
        for rank, cost in enumerate(of_layer):
            if not math.isnan(cost) and (not better or cost < better[-1][0]):
                better.append((cost, rank))
        options.append(better or [(math.inf, 0)])
    least = sum(of_layer[-1][0] for of_layer in options)
    if least > max_kl:
        raise ArgumentError("max_kl", max_kl, f"at least {least:.4g} with these schemes")
    at = [0] * len(options)

    def gain(i: int) -> float:
        (cost, rank), (after, slower) = options[i][at[i] : at[i] + 2]
        return (cost - after) / (slower - rank)

    while sum(of_layer[n][0] for of_layer, n in zip(options, at, strict=True)) > max_kl:
        at[max((i for i in range(len(at)) if at[i] + 1 < len(options[i])), key=gain)] += 1
    chosen = [ranked[of_layer[n][1]] for of_layer, n in zip(options, at, strict=True)]
    return SchemePlan({layer_name(i): scheme for i, scheme in enumerate(chosen)})


def schemes_of(plan: SchemePlan, layers: int) -> list[Scheme]:
    """Return a plan's scheme of each layer of a model.

    Raises
    ------
    ArgumentError
        If it has none for one of them.
    """
    return [plan[layer_name(i)] for i in range(layers)]
