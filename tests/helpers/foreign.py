"""Arrays as other libraries hand them over."""


class Foreign:
    """An array of a library that has nothing but DLPack."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class OnGPU:
    """An array that claims to be on a GPU, as those of a library whose own CUDA works."""

    shape, dtype = (1, 1, 8, 8), "float16"

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **options):
        raise AssertionError("was asked for its memory")
