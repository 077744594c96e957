"""One file per peer: what it needs, how the weights become its own, and the process that does its work.

A peer more is one file with `PEERS` in it, and one line here.
"""

from compare.peer import Peer
from compare.peers import diarist, faster_whisper, openvino, original, pyannote, sherpa_onnx, whisper_cpp, whisperx

TABLE: tuple[Peer, ...] = (
    *diarist.PEERS,
    *original.PEERS,
    *faster_whisper.PEERS,
    *openvino.PEERS,
    *whisper_cpp.PEERS,
    *whisperx.PEERS,
    *sherpa_onnx.PEERS,
    *pyannote.PEERS,
)
ONLY_IF_NAMED = ("pyannote", "pyannote-vbx")
"""The original's row measures pyannote.audio already, as a part; it takes most of the time of the whole comparison."""
