"""What the benchmarks share: a cold L2 cache, and the GPU's name beside every figure."""

import pytest

from cuattn.arrays.device import current_device, gpu_status


@pytest.fixture(scope="session")
def cold_l2():
    """Empty the L2 cache of anything useful, without waiting for it."""
    from cuattn.choice.timing import ColdL2

    return ColdL2()


@pytest.fixture(scope="session")
def clean_l2():
    """Do so with lines that were read, as weights are between two decoding steps."""
    from cuattn.choice.timing import CleanL2

    return CleanL2()


@pytest.fixture(scope="session")
def ceilings():
    """Return what this GPU can do at most, measured once."""
    from cuattn.bench import ceilings

    return ceilings.measure()


@pytest.hookimpl
def pytest_benchmark_update_machine_info(config, machine_info):
    del config
    if gpu_status()[0] == "ok":
        from cupy.cuda import nvrtc, runtime

        machine_info["gpu"] = current_device().name
        machine_info["driver_cuda"] = runtime.driverGetVersion()
        machine_info["nvrtc"] = ".".join(str(part) for part in nvrtc.getVersion())
