"""Whisper-family speech recognition."""
