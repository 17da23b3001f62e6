"""What tests of the KV cache ask for by name."""

import pytest


@pytest.fixture(params=["cpu", None], ids=["host", "gpu"])
def device(request):
    """Return where a cache is: in host memory, or on a simulated GPU."""
    if request.param is None:
        request.getfixturevalue("gpu")
    return request.param
