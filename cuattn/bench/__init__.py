"""What `cuattn bench` measures on this computer's GPU, and how."""
