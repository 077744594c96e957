"""Who speaks when: segmentation, speaker embeddings, clustering, turns. `stream.Diarizer` is the way in."""
