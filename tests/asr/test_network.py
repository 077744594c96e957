import pytest
import torch
from whisper_oracle import oracle_features, oracle_model

from diarist.asr.network import Decoder, DecoderCache, Encoder
from diarist.compute import choose

EXACT = choose("cpu", "float32")


@torch.inference_mode()
def test_encoder_and_decoder_states_equal_transformers(checkpoint, random):
    oracle = oracle_model(checkpoint)
    features = torch.cat([oracle_features(random.normal(0, 0.1, n).astype("float32"), 80) for n in (90_000, 400_000)])
    states = Encoder(checkpoint.dims, checkpoint.tensors, EXACT)(features)
    torch.testing.assert_close(states, oracle.model.encoder(features).last_hidden_state, atol=1e-3, rtol=0)

    tokens = torch.randint(0, 50_000, (2, 12))
    cache = DecoderCache(checkpoint.dims, 2, 0, EXACT)
    decoder = Decoder(checkpoint.dims, checkpoint.tensors, EXACT)
    decoder.fill_cross_attention(states, cache, 0)
    hidden = decoder(tokens, torch.zeros(2, dtype=torch.int64), cache, slice(0, 2))
    expected = oracle.model.decoder(input_ids=tokens, encoder_hidden_states=states).last_hidden_state
    torch.testing.assert_close(hidden, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("heard", [(1500, 1500, 1500), (400, 1500, 600)])
@torch.inference_mode()
def test_rows_at_different_positions_do_not_disturb_each_other(checkpoint, heard):
    """Ragged rows, read in pieces, of windows of any length, equal each row read whole and alone."""
    decoder = Decoder(checkpoint.dims, checkpoint.tensors, EXACT)
    states = [torch.randn(1, positions, checkpoint.dims.n_audio_state) for positions in heard]
    lengths, tokens = (3, 9, 6), torch.randint(0, 50_000, (3, 12))

    def alone(row: int) -> torch.Tensor:
        cache = DecoderCache(checkpoint.dims, 1, 0, EXACT)
        decoder.fill_cross_attention(states[row], cache, 0)
        length = lengths[row] + 2
        return decoder(tokens[row : row + 1, :length], torch.zeros(1, dtype=torch.int64), cache, slice(0, 1))[0, -2:]

    cache = DecoderCache(checkpoint.dims, 4, 0, EXACT)
    for row, length in enumerate(lengths):
        decoder.fill_cross_attention(states[row], cache, row + 1)
        decoder(tokens[row : row + 1, :length], torch.zeros(1, dtype=torch.int64), cache, slice(row + 1, row + 2))
    cache.move_row(1, 0, lengths[0])
    cache.move_row(3, 1, lengths[2])  # rows now: 0, 2, 1
    order = [0, 2, 1]
    starts = torch.tensor([lengths[row] for row in order])
    following = torch.stack([tokens[row, lengths[row] : lengths[row] + 2] for row in order])
    hidden = decoder(following, starts, cache, slice(0, 3))
    for place, row in enumerate(order):
        torch.testing.assert_close(hidden[place], alone(row), atol=2e-3, rtol=1e-3)
