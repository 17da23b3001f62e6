"""Loops over sorted keys, which must not spill where there are registers enough."""

from itertools import product

import pytest
from helpers.compile_check import disassembler
from helpers.product_loops import local_accesses

from cuattn.arrays.device import target
from cuattn.compile.jit import compile_cubin
from cuattn.plan.kernels import attention_spec
from cuattn.presets import PRESETS
from cuattn.specs.attention import Type

pytest.importorskip("cupy")

pytestmark = pytest.mark.usefixtures("compiled_anew")

# Local accesses of the loop over blocks that all rows see, where there are any. With 32 and 64
# channels four warpgroups share the registers, which was the fastest all the same.
IN_LOOP = {("90a", 32): 4, ("90a", 64): 18, ("90a", 256): 1, ("80", 128): 1}
CASES = [
    *product(["90a"], [32, 64, 96, 128, 192, 256], [False, True]),
    *product(["80"], [32, 64, 96, 128], [False, True]),
]


@pytest.mark.parametrize(("arch", "head_dim", "is_causal"), CASES)
def test_loops_over_keys_do_not_spill(arch, head_dim, is_causal):
    if disassembler() is None:
        pytest.skip("needs nvdisasm")
    spec = attention_spec(PRESETS["int8"], head_dim, Type.fp16, is_causal, target(arch))
    image = compile_cubin(spec.source, spec, arch).image
    found = local_accesses(image)
    assert found is not None
    assert found <= IN_LOOP.get((arch, head_dim), 0)
