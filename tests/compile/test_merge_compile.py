"""Kernels that merge states, compiled: all of them, for every target; nothing spilled."""

import pytest
from helpers.arrays_in_memory import DTYPES
from helpers.compile_check import complaints

from cuattn.arrays.device import TARGETS
from cuattn.plan.listing import merge_specs

pytest.importorskip("cupy")

pytestmark = pytest.mark.usefixtures("compiled_anew")


def bounds(spec):
    """Return what to require: rows in whole vectors are read and written as such."""
    vectors = ("LDG.E.*128*", "STG.E.*128*")
    of_parts = vectors[:1] if spec.aligned else ()
    of_output = vectors[1:] if spec.aligned or spec.out is not spec.input else ()
    return {"require": (*of_parts, *of_output)}


@pytest.mark.parametrize("arch", TARGETS)
def test_kernels(arch):
    assert complaints(merge_specs(DTYPES), arch, bounds) == ""
