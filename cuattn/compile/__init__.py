"""From a spec to a kernel that can be launched: sources, NVRTC, cubins on disk, argument structs.

May import `errors`, `common` and `arrays`.
"""
