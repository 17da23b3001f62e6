"""Kernels that look at masks, compiled: all of them, for every target; nothing spilled."""

from dataclasses import replace

import pytest
from helpers.compile_check import complaints

from cuattn.arrays.device import TARGETS
from cuattn.plan.listing import mask_map_specs

pytest.importorskip("cupy")

pytestmark = pytest.mark.usefixtures("compiled_anew")


def bounds(spec):
    """Return what to require: rows at multiples of 16 bytes are read by so many."""
    return {} if spec.last else {"require": ("LDG.E.*128*",)}


@pytest.mark.parametrize("arch", TARGETS)
def test_kernels(arch):
    specs = mask_map_specs()
    of_last = [replace(spec, last=True) for spec in specs]  # those of caches
    assert complaints([*specs, *of_last], arch, bounds) == ""
