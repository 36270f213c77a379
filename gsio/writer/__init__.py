"""Writers: they turn staged blocks into files, and know nothing of GPUs."""
