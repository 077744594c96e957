"""The time grid of the segmentation network: windows of 10 s, and frames of about 17 ms inside them.

Frame f of a recording stands for the instant `frame_time(f)`, the middle of what the network's convolutions see.
Windows begin every whole hop and their frames count for the nearest of the grid, as in the reference: aligning them with
the grid moves them by up to 8 ms, and the network's decisions in doubtful places turn on less.
"""

SAMPLE_RATE = 16_000
WINDOW_SAMPLES = 160_000  # the network was trained on 10 s
FRAME_SAMPLES = 270  # from one frame to the next: strides 10 * 3 * 3 * 3
FRAMES = 589  # in a window
SPAN_SAMPLES = 991  # that one frame sees
WINDOW_S = WINDOW_SAMPLES / SAMPLE_RATE
FRAME_S = FRAME_SAMPLES / SAMPLE_RATE


def frame_time(frame: int) -> float:
    """The instant that a frame stands for, in seconds.

    >>> frame_time(0), frame_time(1000)
    (0.03096875, 16.90596875)
    """
    return (frame * FRAME_SAMPLES + SPAN_SAMPLES / 2) / SAMPLE_RATE


def window_start(window: int, hop_s: float) -> int:
    """First sample of a window."""
    return window * round(hop_s * SAMPLE_RATE)


def window_frame(window: int, hop_s: float) -> int:
    """First frame of a window on the recording's grid: the nearest to its start."""
    return round(window * hop_s * SAMPLE_RATE / FRAME_SAMPLES)


def window_count(samples: int, hop_s: float) -> int:
    """Windows that it takes to cover a recording; the last may reach past its end.

    >>> window_count(160_000, 1.0), window_count(160_001, 1.0), window_count(1, 1.0), window_count(0, 1.0)
    (1, 2, 1, 0)
    """
    if samples == 0:
        return 0
    hop = round(hop_s * SAMPLE_RATE)
    return 1 + max(0, -(-(samples - WINDOW_SAMPLES) // hop))
