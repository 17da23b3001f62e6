"""Print the extra of cuattn that suits this computer's driver: cuda12 or cuda13.

The driver is asked through its library, then through nvidia-smi. With neither, the answer is
cuda12: it compiles kernels without a GPU. A driver newer than CUDA 13 also runs what CUDA 13
builds.
"""

import ctypes
import os
import re
import subprocess
import sys


def version_from_library():
    try:
        library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    # Answers before cuInit, also where the driver is there and no device is.
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return None
    return version.value // 1000


def version_from_nvidia_smi():
    try:
        answer = subprocess.run(
            ["nvidia-smi"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"CUDA (?:UMD )?Version:\s*(\d+)", answer)
    return int(found.group(1)) if found else None


def main():
    version = version_from_library() or version_from_nvidia_smi()
    if version is None:
        chosen, reason = "cuda12", "no NVIDIA driver found; cuda12 compiles without one"
    elif version < 12:
        chosen, reason = "cuda12", f"the driver is for CUDA {version}: too old to run kernels"
    else:
        chosen, reason = f"cuda{min(version, 13)}", f"the driver is for CUDA {version}"
    print(f"choose_cuda: {chosen} ({reason})", file=sys.stderr)
    print(chosen)


if __name__ == "__main__":
    main()
