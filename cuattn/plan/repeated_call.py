"""A kind of call that has been made before: where addresses go, and what is returned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeAlias

from ..arrays.caller import LEGACY_STREAM, numpy_dtype, stream_at
from ..arrays.pytorch import forward_mode, maker_of_tensors, note_write, stream_asked_of
from ..arrays.view import cupy_address, cupy_module
from ..compile.chain import Chain
from ..operands.block_mask import BlockMask
from ..operands.quantized import QuantizedTensor
from ..operands.score_arrays import MOD_NAMES
from ..operands.score_mod import MaskMod, ScoreMod
from .kinds import Kind, is_cupys, is_pytorchs, ordinal_of
from .operand_buffers import PARTS

__all__ = ["Planned", "RepeatedCall"]

# Shape and type of an array.
Form: TypeAlias = tuple[tuple[int, ...], str]

# Modes of PyTorch, such as with and without gradients, that a kind of call is recognized in.
_MODES = 4

# Makes an array on the GPU of another one and returns it with its address; None if it cannot.
Maker: TypeAlias = Callable[[Any], tuple[Any, int] | None]


class Planned(Protocol):
    """What all calls on arrays of the same kinds have in common, as `AttentionCall` has it.

    Its chain is one of addresses with the names of arguments, but "o" for the output.
    """

    @property
    def launches(self) -> Chain: ...  # noqa: D102
    @property
    def output(self) -> Form: ...  # noqa: D102
    @property
    def lse(self) -> Form | None: ...  # noqa: D102
    @property
    def extents(self) -> Mapping[str, tuple[int, int]]: ...  # noqa: D102


class RepeatedCall:
    """Everything of a call but its addresses and its stream.

    Parameters
    ----------
    form : tuple of object
        What a call of the kind has besides the values of arguments.
    plan : Planned
    constants : mapping of str to int
        Addresses that are the same in all calls of the kind, by their names in the chain.
    given : dict of str to object
        The arguments of one that has been made.
    """

    def __init__(
        self,
        form: tuple[Any, ...],
        plan: Planned,
        constants: Mapping[str, int],
        given: Mapping[str, Any],
    ) -> None:
        self.form = form
        self.kind: Kind | None = None
        self._tries = 0
        names, q = [*given], given["q"]
        arrays = [*_arrays(given.values())]
        tensors = [x for x in arrays if is_pytorchs(x)]
        self._ordinal = ordinal_of(q)
        self._ask = stream_asked_of(tensors[0]) if tensors else None
        self._forward_mode = forward_mode() if tensors else None
        # Else what is pending on the stream of the other library has to come first.
        self._one_stream = not is_pytorchs(q) or any(is_cupys(x) for x in arrays)
        labels = [label for label, _ in _labels(given)]
        places = [place for _, place in _labels(given)]
        orders = [i for i, label in enumerate(labels) if label in ("k order", "v order")]
        self._orders = orders if len(orders) == 2 else None
        self._q, self._out = names.index("q"), -1
        if given.get("out") is not None:
            self._out, self._out_at = names.index("out"), labels.index("out")
            self._out_span = plan.extents["out"]
            self._spans = [
                (i, *plan.extents[label])
                for i, label in enumerate(labels)
                if label in plan.extents and label != "out"
            ]
        make = maker_of_tensors if is_pytorchs(q) else _maker_of_cupys
        self._make = self._make_lse = None
        if self._out < 0:
            self._make = make(q, *plan.output)
            places.append("o")
        if plan.lse is not None:
            self._make_lse = make(q, *plan.lse)
            places.append("lse")
        self._launches = plan.launches.of(places, constants)

    def learn(self, values: tuple[Any, ...]) -> None:
        """Recognize the next calls at once, by the arguments of one that was found by its key.

        In another mode, PyTorch checks tensors for other things.
        """
        if self._tries < _MODES:
            self._tries += 1
            with suppress(LookupError):
                self.kind = Kind(values)

    def __call__(self, values: tuple[Any, ...], addresses: list[int]) -> Any:
        """Launch a call of the kind, and return what it returns.

        Parameters
        ----------
        values : tuple of object
            Its arguments.
        addresses : list of int
            Of its arrays; see `addresses_of`.

        Returns
        -------
        object
            None if it needs a closer look; then nothing has been launched.
        """
        cuda = cupy_module().cuda
        if cuda.runtime.getDevice() != self._ordinal:
            with cuda.Device(self._ordinal):
                return self(values, addresses)
        stream = cupys = cuda.get_current_stream().ptr
        if self._ask is not None:
            if getattr(self._forward_mode, "_current_level", 0) >= 0:  # there may be tangents
                return None
            stream = self._ask(self._ordinal)
            if stream == LEGACY_STREAM:
                stream = 0
            if self._one_stream and stream != cupys:
                return None
        if stream == cupys:
            return self._launch(values, addresses, stream)
        with stream_at(stream):
            return self._launch(values, addresses, stream)

    def _launch(self, values: tuple[Any, ...], addresses: list[int], stream: int) -> Any:
        orders = self._orders
        if orders is not None and addresses[orders[0]] != addresses[orders[1]]:
            return None
        if self._make is None:
            out = values[self._out]
            if not self._may_write(out, addresses):
                return None
            note_write(out)
        else:
            made = self._make(values[self._q])
            if made is None:
                return None
            out, address = made
            addresses.append(address)
        if self._make_lse is None:
            self._launches(addresses, stream)
            return out
        made = self._make_lse(values[self._q])
        if made is None:
            return None
        lse, address = made
        addresses.append(address)
        self._launches(addresses, stream)
        return out, lse

    def _may_write(self, out: Any, addresses: list[int]) -> bool:
        """Whether an output sees what is written, and spans no byte between those of an input."""
        if is_pytorchs(out) and out.requires_grad:
            return False
        low, high = self._out_span
        begin = addresses[self._out_at]
        begin, end = begin + low, begin + high
        for i, low, high in self._spans:
            if begin < addresses[i] + high and addresses[i] + low < end:
                return False
        return True


def _arrays(values: Iterable[Any]) -> Iterator[Any]:
    """Yield arguments, and the arrays of expressions among them."""
    for x in values:
        yield x
        if isinstance(x, (ScoreMod, MaskMod)):
            yield from x.arrays.values()


def _labels(given: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield what each address is in `Planned.extents`, and in its chain: None if nowhere."""
    score_mod = given.get("score_mod")
    before = {"mask_mod": len(score_mod.arrays) if isinstance(score_mod, ScoreMod) else 0}
    for name, x in given.items():
        if isinstance(x, QuantizedTensor):
            for part in PARTS:
                yield f"{name}{part} codes", name + part
            # K's is V's, too, if both have one.
            is_read = name == "k" or (name == "v" and not isinstance(given["k"], QuantizedTensor))
            yield f"{name} order", "order" if is_read else None
        elif isinstance(x, BlockMask):
            yield name, name
            yield "map", "mask_map"
        elif isinstance(x, (ScoreMod, MaskMod)):
            for i, array in enumerate(x.arrays, before.get(name, 0)):
                yield x.key.label(array), MOD_NAMES[i]
        elif is_pytorchs(x) or is_cupys(x):
            yield name, "o" if name == "out" else name


def _maker_of_cupys(like: Any, shape: tuple[int, ...], dtype: str) -> Maker:
    empty, of_dtype = cupy_module().ndarray, numpy_dtype(dtype)

    def make(like: Any) -> tuple[Any, int]:
        x = empty(shape, of_dtype)
        return x, cupy_address(x)

    return make
