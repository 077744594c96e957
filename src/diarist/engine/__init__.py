"""Requests become batches: admission, scheduling across requests, the worker process. `engine.Engine` is the way in."""
