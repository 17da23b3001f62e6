"""`replace`: a model's attention answered by cuattn, layer by layer, without a change to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial, wraps
from types import MethodType, TracebackType
from typing import Any

import torch

from ..choice.scheme_plan import SchemePlan
from ..common.public import naming_keywords
from ..errors import ArgumentError
from ..presets import resolve
from ..scheme import Scheme
from .backward import check_gradients
from .calls import Calls
from .constants import scheme_text
from .patches import Use, everywhere, here, install, uninstall

__all__ = ["Replacement", "replace"]

# Messages show no more names than these.
_SHOWN = 8


class Replacement:
    """What `replace` has done, until `restore`; as a context it restores at the end.

    Attributes
    ----------
    calls : Calls
        Of this replacement alone: how many calls cuattn has answered, and why not others.
    step : int or None
        The time step that a plan with steps is asked for; set it before each one.
    """

    def __init__(self) -> None:
        self.calls = Calls()
        self.step: int | None = None
        self.active = True
        self._undo: list[Callable[[], None]] = []

    def restore(self) -> None:
        """Make everything as it was before; a second time it does nothing."""
        self.active = False
        while self._undo:
            self._undo.pop()()

    def on_restore(self, undo: Callable[[], None]) -> None:
        """Have something else undone by `restore`, before all that is there already."""
        self._undo.append(undo)

    def __enter__(self) -> Replacement:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()


@naming_keywords
def replace(
    model: Any = None,
    scheme: str | Scheme | SchemePlan = "int8",
    *,
    leave_out: str | Iterable[str] = (),
    fallback: bool = True,
    backward: str | None = None,
) -> Replacement:
    """Let cuattn answer a model's calls of attention functions that it knows.

    These are `torch.nn.functional.scaled_dot_product_attention` of PyTorch; `flash_attn_func`,
    `flash_attn_varlen_func` and `flash_attn_with_kvcache` of flash_attn 2; and `sageattn` of
    sageattention. They are replaced in all modules of Python that have been imported, also under
    names that these have given them, and come back with `Replacement.restore` or at the end of a
    ``with``. Replace before you compile, or outside of what you compile: `torch.compile` compiles
    anew when it finds other functions.

    Parameters
    ----------
    model : torch.nn.Module, optional
        Only calls that are made while it runs; by default all, of all threads. Its modules get a
        `forward` that says which of them runs. A replaced model cannot be pickled.
    scheme : str, Scheme or SchemePlan
        A plan's layers are names of ``model.named_modules()``; each is for all calls inside of that
        module. Calls in no layer of the plan are left as they are.
    leave_out : str or iterable of str
        Modules whose calls are left as they are, with all inside of them: names, or patterns as
        of files, such as ``"*.attn2"``.
    fallback : bool
        Let the function of before answer what cuattn cannot; else that is an error.
    backward : {None, "torch"}
        As for `cuattn.torch.attention`. With None calls that need gradients are among those that
        cuattn cannot answer.

    Returns
    -------
    Replacement

    Raises
    ------
    ArgumentError
        If an argument is wrong: a plan or `leave_out` without a model, a name that no module has, a
        model that is replaced already.
    """
    if model is not None and not isinstance(model, torch.nn.Module):
        raise ArgumentError("model", model, "a torch.nn.Module or None")
    patterns = (leave_out,) if isinstance(leave_out, str) else tuple(leave_out)
    if not isinstance(scheme, SchemePlan):
        resolve(scheme)
    check_gradients({}, backward)
    made = Replacement()
    use = partial(Use, fallback=fallback, backward=backward, number=made.calls.number)
    if model is None:
        if isinstance(scheme, SchemePlan):
            raise ArgumentError("scheme", scheme, "given with a model, whose modules it names")
        if patterns:
            raise ArgumentError("leave_out", leave_out, "empty, as there is no model")
        _replace_everywhere(made, use(_always(scheme_text(scheme)), ""))
        return made
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if hasattr(vars(module).get("forward"), "_is_cuattns"):
            where = f"its module {name!r}" if name else "it"
            raise ArgumentError("model", type(model).__name__, f"not replaced yet, as {where} is")
    left = _left_out(modules, patterns)
    uses = {name: use(_never, "left out") for name in left}
    if isinstance(scheme, SchemePlan):
        uses[""] = uses.get("", use(_never, "not in the plan"))
        for name, of_layer in _planned(scheme, modules, made).items():
            if not any(_is_inside(name, other) for other in left):
                uses[name] = use(of_layer, "not in the plan")
    else:
        uses.setdefault("", use(_always(scheme_text(scheme)), ""))
    install()
    made.on_restore(uninstall)
    for name, of_layer_use in uses.items():
        made.on_restore(_enter_at(modules[name], of_layer_use, made))
    return made


def _replace_everywhere(made: Replacement, use: Use) -> None:
    install()
    made.on_restore(uninstall)
    everywhere.append(use)
    made.on_restore(partial(_forget, use))


def _forget(use: Use) -> None:
    del everywhere[next(n for n, other in enumerate(everywhere) if other is use)]


def _always(text: str) -> Callable[[], str | None]:
    return lambda: text


def _never() -> str | None:
    return None


def _planned(
    plan: SchemePlan, modules: dict[str, Any], made: Replacement
) -> dict[str, Callable[[], str | None]]:
    """Return what gives the scheme of each layer of a plan at the step that it is."""
    texts: dict[str, dict[int | None, str]] = {}
    for key, scheme in plan.schemes.items():
        layer, step = (key, None) if isinstance(key, str) else key
        if layer not in modules:
            raise ArgumentError("scheme", layer, f"of layers of the model: {_some(modules)}")
        texts.setdefault(layer, {})[step] = scheme_text(scheme)
    return {layer: partial(_at_step, made, steps) for layer, steps in texts.items()}


def _at_step(made: Replacement, steps: dict[int | None, str]) -> str | None:
    return steps.get(made.step, steps.get(None))


def _left_out(modules: dict[str, Any], patterns: tuple[str, ...]) -> list[str]:
    left = []
    for pattern in patterns:
        found = [name for name in modules if fnmatchcase(name, pattern)]
        if not found:
            raise ArgumentError("leave_out", pattern, f"modules of the model: {_some(modules)}")
        left += found
    return left


def _some(modules: dict[str, Any]) -> str:
    names = [name for name in modules if name]
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")


def _is_inside(name: str, other: str) -> bool:
    return not other or name == other or name.startswith(f"{other}.")


def _enter_at(module: Any, use: Use, made: Replacement) -> Callable[[], None]:
    """Let a module say that it runs, and return what ends that."""
    own = vars(module).get("forward")
    of_class = type(module).forward

    @wraps(own or of_class)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = here.use
        if made.active:
            here.use = use
        try:
            return own(*args, **kwargs) if own is not None else of_class(self, *args, **kwargs)
        finally:
            here.use = before

    forward._is_cuattns = True  # type: ignore[attr-defined]
    # Bound to the module, so that a copy of the module gets one of its own.
    bound = module.forward = MethodType(forward, module)

    def leave() -> None:
        # If somebody has wrapped it since, it stays, and does nothing.
        if vars(module).get("forward") is bound:
            if own is None:
                del module.forward
            else:
                module.forward = own

    return leave
