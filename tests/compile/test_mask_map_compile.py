"""Kernels that look at masks, compiled: all of them, for every target; nothing spilled."""

import pytest
from helpers.compile_check import complaints

from cuattn.arrays.device import TARGETS
from cuattn.plan.listing import mask_map_specs

pytest.importorskip("cupy")

pytestmark = pytest.mark.usefixtures("compiled_anew")


def bounds(spec):
    """Return what to require: rows at multiples of 16 bytes are read by so many."""
    return {"require": ("LDG.E.*128*",)}


@pytest.mark.parametrize("arch", TARGETS)
def test_kernels(arch):
    assert complaints(mask_map_specs(), arch, bounds) == ""
