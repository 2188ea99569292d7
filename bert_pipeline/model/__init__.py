"""Models: architectures, the unpadded encoder, heads, attention, kernels and initialization."""
