"""Which tests run where: of the GPU where there is one; slow ones and all products on request."""

import os
import zlib
from importlib.util import find_spec

import hypothesis
import numpy as np
import pytest
from helpers.covering import surplus
from helpers.package_index import why_no_index

from cuattn.arrays.device import gpu_status
from cuattn.compile import nvrtc as compiler

# Derandomized: a run says the same thing twice. HYPOTHESIS_PROFILE=explore looks for new examples.
hypothesis.settings.register_profile(
    "repeat", deadline=None, derandomize=True, max_examples=50, print_blob=True
)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))

NOT_RUN = pytest.StashKey[dict[str, int]]()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    config.stash[NOT_RUN] = {}


def pytest_collection_modifyitems(config, items):
    answer, detail = gpu_status()
    gone = {}
    for item in items:
        if answer != "ok" and item.get_closest_marker("gpu"):
            reason = f"gpu tests not run: no GPU here ({answer}: {_first_line(detail)})"
        elif not config.getoption("--slow") and item.get_closest_marker("slow"):
            reason = "slow tests not run: slow, run with --slow"
        elif item.get_closest_marker("index") and (why := why_no_index()):
            reason = f"index tests not run: {why[:200]}"
        elif missing := _missing(item):
            reason = f"tests of frameworks not run: no {missing} here, see make test FRAMEWORKS=1"
        else:
            continue
        gone.setdefault(reason, []).append(item)
    if not config.getoption("--slow"):
        dropped = {item for some in gone.values() for item in some}
        kept = [item for item in items if item not in dropped]
        if left := surplus(kept):
            gone["combinations not run: every pair is in others, all run with --slow"] = left
    for reason, dropped in gone.items():
        config.hook.pytest_deselected(items=dropped)
        config.stash[NOT_RUN][reason] = len(dropped)
    not_run = {item for dropped in gone.values() for item in dropped}
    items[:] = [item for item in items if item not in not_run]


def _missing(item):
    """Return the first module that a test needs and that is not installed."""
    names = (name for marker in item.iter_markers("needs") for name in marker.args)
    return next((name for name in names if find_spec(name) is None), None)


def pytest_sessionfinish(session):
    """Tell the process that shows the results, where tests run in several processes."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["not_run"] = session.config.stash[NOT_RUN]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    # Each process has left out the same tests.
    node.config.stash[NOT_RUN] = getattr(node, "workeroutput", {}).get("not_run", {})


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Processes of ``-n auto``: one for each core, or with a GPU this process alone.

    Each would take some of the GPU's memory, and a few tests need most of it. With enough,
    ``-n 16`` works, as benchmarks/gpu_check.py has it, which runs those apart.
    """
    return 0 if gpu_status()[0] == "ok" else os.cpu_count() or 1


def pytest_terminal_summary(terminalreporter, config):
    for what, count in config.stash[NOT_RUN].items():
        terminalreporter.write_line(f"{count} {what}", yellow=True)


@pytest.fixture
def rng(request):
    """Random numbers of this test's own, the same in every run and whatever folder it is in."""
    own_id = request.node.nodeid.rpartition("/")[2]
    return np.random.default_rng(zlib.crc32(f"tests/{own_id}".encode()))


def _first_line(text):
    return str(text).strip().splitlines()[0] if str(text).strip() else ""


@pytest.fixture
def compiled_anew(monkeypatch):
    """Have NVRTC compile everything: where there is a driver it remembers binaries, without a log.

    `jit` never looks at the log of a good kernel, so only these tests need it.
    """
    if compiler.nvrtc_version() >= (12, 9):  # older ones remember nothing
        monkeypatch.setattr(compiler, "_OPTIONS", (*compiler._OPTIONS, "-no-cache"))


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


@pytest.fixture
def gpu(monkeypatch):
    """Return a simulated GPU, which is the one that there is."""
    pytest.importorskip("cupy")
    from simulated_gpu import SimulatedGPU

    return SimulatedGPU(monkeypatch)


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    return torch


@pytest.fixture
def jax(monkeypatch):
    # Leaves memory to CuPy; has an effect only if no test before has started JAX.
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = pytest.importorskip("jax")
    cupy = pytest.importorskip("cupy")
    current = cupy.cuda.Device()
    try:
        jax.devices("cuda")
    except RuntimeError as error:
        pytest.skip(f"this JAX has no CUDA: {error}")
    # Of several GPUs it leaves the last one the current one.
    current.use()
    return jax
