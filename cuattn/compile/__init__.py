"""From a spec to a kernel that can be launched: sources, NVRTC, the cache on disk, arguments."""
