"""The same calls on arrays in host memory, by `cuattn.reference`."""
