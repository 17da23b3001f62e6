"""What the tests of examples/ share: how the examples are imported, and arrays to give them."""

from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import cuattn

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextmanager
def examples(*names):
    """Import modules of examples/, which find each other while this lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        # JAX leaves memory to the others; has an effect only if no test before has started it.
        patch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        found = [import_module(name) for name in names]
        yield found[0] if len(found) == 1 else found


def example(name):
    """Return a fixture: a module of examples/ while the tests of a module run."""

    @pytest.fixture(scope="module")
    def module():
        with examples(name) as found:
            yield found

    return module


def on_gpu():
    return cuattn.gpu_available()


def normal(rng, heads=2, tokens=40, head_dim=32, batch=1):
    return rng.standard_normal((batch, heads, tokens, head_dim), np.float32)


def relative_l1(found, exact):
    return float(abs(found - exact).sum() / abs(exact).sum())
