"""The most that a GPU's tensor cores could do, to give a speed as a share of it."""

from __future__ import annotations

from cuattn.device import current_device, target
from cuattn.presets import resolve

# Dense INT8 operations per clock and SM, from NVIDIA's architecture white papers. FP16 with float32
# sums has half of it (on GeForce cards a quarter, whose share then reads low). FP8, where there is
# any, has all of it.
INT8_RATE = {"80": 4096, "86": 2048, "89": 2048, "90": 8192, "100": 16384, "120": 2048}


def peak_tops(scheme: str) -> float | None:
    """Return the peak of a scheme's two products at the highest clock; None if it is not known."""
    from cupy.cuda import runtime

    device = current_device()
    rate = INT8_RATE.get(device.compute_capability)
    if rate is None:
        return None
    khz = runtime.deviceGetAttribute(runtime.cudaDevAttrClockRate, device.ordinal)
    int8 = rate * device.num_sms * khz * 1e3 * 1e-12
    of_type = {"int8": int8, "int4": int8, "fp8": int8, "fp16": int8 / 2}
    how = resolve(scheme)
    qk, pv = of_type[how.qk], of_type[how.pv]
    if how.qk == "int4" and target(device.arch).native_s4:
        qk *= 2  # elsewhere, and in P V, 4-bit codes are INT8
    pv /= how.p_matrices
    # Each product is half of the operations.
    return 2 / (1 / qk + 1 / pv)
