"""Assistants for speculative decoding, distilled from a main model's own output on unlabelled recordings."""
