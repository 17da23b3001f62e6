"""What `cuattn bench` measures: the GPU, our calls and those of other libraries."""
