"""From a checked call to its launches: which kernels, on what, in which order."""
