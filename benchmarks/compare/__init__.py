"""diarist beside its peers: the same weights, recordings and threads, in turns. `scripts/compare` runs it."""
