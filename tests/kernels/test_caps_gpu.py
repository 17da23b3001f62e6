"""Softcaps on a GPU: of logits that a polynomial serves, that it does not, and of both."""

import numpy as np
import pytest
from helpers.gpu_cases import check, make, on_gpu, run, runs_here

from cuattn.presets import PRESETS

pytestmark = pytest.mark.gpu

NAMES = ("int8-block", "int8", "int8-fast", "int-flash", "sage2-8", "twin", "int8-token", "fp16")
SCHEMES = {name: PRESETS[name] for name in NAMES if runs_here(PRESETS[name])}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
HEAD_DIMS = (128, 64, 192)


def inputs(rng, scheme, logits):
    head_dim = HEAD_DIMS[NAMES.index(scheme) % 3]
    q, k, v = make(rng, batch=1, heads=(4, 2), seqlens=(200, 700), head_dim=head_dim)
    if logits == "large":
        q *= 12
    elif logits == "large in some rows":
        q[:, :, ::37] *= 15
    elif logits == "of a common mean":
        k += 3 * rng.standard_normal((1, 2, 1, head_dim), dtype=np.float32)
    elif logits == "negative":
        # What keys have in common is against the queries: the largest logits are below 0.
        common = rng.standard_normal(head_dim, dtype=np.float32)
        q, k = q * 0.1 + common, k * 0.1 - common
    return [on_gpu(x, "float16") for x in (q, k, v)]


@every_scheme
@pytest.mark.parametrize(
    "logits", ["small", "large", "large in some rows", "of a common mean", "negative"]
)
@pytest.mark.parametrize("cap", [50.0, 20.0])
def test_kernels_match_the_emulation(rng, scheme, logits, cap):
    arrays = inputs(rng, scheme, logits)
    options = {"softcap": cap, "is_causal": logits != "small"}
    result = run(arrays, SCHEMES[scheme], **options)
    check(result, arrays, SCHEMES[scheme], **options)
