"""Use cuattn as it is installed, away from any checkout: `make dist` runs this, with python -I."""

import sys
from importlib import metadata
from pathlib import Path

import numpy as np

import cuattn
from cuattn.compile.sources import sources
from cuattn.records.record import records
from cuattn.reference import exact, metrics

# 8 bits of Q, K, V and P on normal numbers: about 0.01.
MAX_RELATIVE_L1 = 0.03


def main():
    package = Path(cuattn.__file__).parent
    assert package.is_relative_to(sys.prefix), f"{package} is not the installed one"
    assert metadata.version("cuattn") == cuattn.__version__
    assert (package / "py.typed").is_file()
    assert "attention_sm80.cu" in sources()
    assert records()
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 4, 40, 64), np.float32)
    k, v = (rng.standard_normal((1, 2, 40, 64), np.float32) for _ in range(2))
    expected, _ = exact.attention(q, k, v, is_causal=True)
    cache = cuattn.KVCache(1, 2, 64, capacity=64, device="cpu")
    cache.append(k, v)
    results = {
        "attention": cuattn.attention(q, k, v, is_causal=True),
        "KVCache": cache.attend(q),
    }
    for name, o in results.items():
        error = metrics.relative_l1(o, expected)
        assert error < MAX_RELATIVE_L1, (name, error)
        print(f"{name}: relative L1 error {error:.1e}")


if __name__ == "__main__":
    main()
