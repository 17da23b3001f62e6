"""Which kind of store a KV cache has, and one with the contents of a file."""

from __future__ import annotations

from os import PathLike

from .device import DeviceStore
from .files import read
from .geometry import KVGeometry
from .host import HostStore
from .options import check_choices
from .store import Store

__all__ = ["loaded_store", "new_store"]


def new_store(geometry: KVGeometry, smooth_k: bool, device: str | None) -> Store:
    """Return a store without tokens.

    Raises
    ------
    ArgumentError
        If an option is wrong.
    NoGPUError, UnsupportedError
        If there is no GPU that can be used.
    """
    check_choices(smooth_k, device)
    return (DeviceStore if device is None else HostStore)(geometry, smooth_k)


def loaded_store(path: str | PathLike[str], device: str | None) -> Store:
    """Return a store with the contents of a file.

    Raises
    ------
    ArgumentError, CuattnError, NoGPUError, UnsupportedError
        As `new_store` and `kv_files.read`.
    """
    saved = read(path)
    store = new_store(saved.geometry, saved.k_offset is not None, device)
    with store.call_on(None):
        store.enter(store.book.give_pages(saved.lengths))
        for b, units in enumerate(saved.units):
            store.write(b, 0, store.sent(units[None]))
        if saved.k_offset is not None:
            store.k_offset[...] = store.sent(saved.k_offset)
        store.set_lengths(saved.lengths)
        store.book.learn(saved.lengths)
    store.wait()
    return store
