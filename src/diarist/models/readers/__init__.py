"""One reader per layout of weight files, and one module per network that puts their tensors under our names.

This package is the only place where files become tensors. Readers take bytes as hostile: sizes are checked before they
are used, pickles are only ever read with `weights_only=True`, and what cannot be read is a `ModelFormatError` naming
the file.
"""
