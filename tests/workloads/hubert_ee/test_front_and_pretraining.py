"""The log-mel front against numpy, and masked-cluster prediction: masks, clusters, loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support_speech import net, waves

from fedloom.workloads.hubert_ee.config import PretrainingSettings
from fedloom.workloads.hubert_ee.front import BANDS, LogMel, masked, mel_bank, mel_warp
from fedloom.workloads.hubert_ee.pretraining import ClusterHead, Targets, cluster_centres, masked_loss, paired, spans


def test_log_mel_bands_are_those_of_numpy() -> None:
    front, (wave, lengths) = LogMel(4).eval(), waves(3000)
    x = wave[0].double().numpy()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([x[start : start + 400] * window for start in range(0, 3000 - 399, 160)])
    logs = np.log((np.abs(np.fft.rfft(frames, 512)) ** 2) @ mel_bank().double().numpy() + 1e-6)
    expected = (logs - logs.mean(0)) / (logs.std(0) + 1e-3)
    assert np.allclose(front.bands(wave, lengths)[0].numpy(), expected, atol=1e-3)


def test_filters_cover_the_frequencies_and_a_warp_moves_them() -> None:
    bank = mel_bank()
    assert bank.shape == (257, BANDS) and bool((bank.sum(0) > 0).all()) and bool((bank >= 0).all())
    centres = bank.argmax(0)
    assert bool((centres[1:] >= centres[:-1]).all())
    assert torch.allclose(mel_warp(1.0), torch.eye(BANDS), atol=1e-5)
    place = torch.arange(BANDS, dtype=torch.float32)
    read = place @ mel_warp(1.1)
    assert bool((read[5:-5] > place[5:-5]).all()) and bool((place @ mel_warp(0.9) < place + 1e-4).all())
    assert torch.allclose(mel_warp(1.1).sum(0), torch.ones(BANDS))


def test_masks_hide_runs_of_bands_and_frames() -> None:
    torch.manual_seed(1)
    kept = masked(torch.ones(40, 60, BANDS))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    bands, frames = (kept.amax(1) == 0).sum(1), (kept.amax(2) == 0).sum(1)
    assert 0 < int(bands.max()) <= 6 and 0 < int(frames.max()) <= 6


@pytest.mark.parametrize("samples", [720, 881, 16000, 22050])
def test_frames_are_counted(samples: int) -> None:
    model, (wave, lengths) = net(front="log_mel"), waves(samples)
    with torch.no_grad():
        assert int(model.counts(lengths)) == model.features(wave, lengths)[0].shape[1]


def test_training_augments_and_evaluation_does_not() -> None:
    front, (wave, lengths) = LogMel(4, augments=True), waves(9000, 8000)
    torch.manual_seed(1)
    one, other = front(wave, lengths), front(wave, lengths)
    assert not torch.equal(one, other)
    front.eval()
    assert torch.equal(front(wave, lengths), front(wave, lengths))


def test_masked_spans() -> None:
    padding = torch.arange(50)[None] >= torch.tensor([50, 20, 1])[:, None]
    settings = PretrainingSettings(share=0.05, span=7)
    torch.manual_seed(2)
    mask = spans(padding, settings)
    assert mask.any(1).all() and not (mask & padding).any()
    for row in mask[:1].tolist():
        runs = "".join("x" if value else " " for value in row).split()
        assert all(len(run) >= 7 for run in runs[:-1])  # the last one may be cut by the end
    # an utterance's mask does not depend on its minibatch when it is seeded
    together = spans(padding, settings, [5, 6, 7])
    alone = spans(padding[1:2, :20], settings, [6])
    assert torch.equal(together[1, :20], alone[0])


def test_clusters_are_k_means_and_targets_the_nearest() -> None:
    front = LogMel(1).eval()
    rng = np.random.Generator(np.random.PCG64(3))
    loud = np.rint(np.sin(np.arange(8000) * 0.2) * 9000)
    sounds = np.stack([loud, rng.normal(0, 4000, 8000)]).astype(np.int16)
    centres = cluster_centres(front, sounds, np.array([8000, 8000]), 2, np.random.Generator(np.random.PCG64(1)))
    assert centres.shape == (2, 2 * BANDS) and centres.dtype == np.float32
    bands = front.bands(torch.from_numpy(sounds.astype(np.float32) / 32768), torch.tensor([8000, 8000]))
    pairs = paired(bands, 20).numpy()
    nearest = np.square(pairs[:, :, None] - centres).sum(-1).argmin(-1)
    assert np.array_equal(Targets(centres).of(bands, 20).numpy(), nearest)
    again = cluster_centres(front, sounds, np.array([8000, 8000]), 2, np.random.Generator(np.random.PCG64(1)))
    assert np.array_equal(centres, again)


def test_the_loss_is_that_of_masked_frames_alone() -> None:
    torch.manual_seed(4)
    logits, clusters = torch.randn(2, 5, 3), torch.randint(3, (2, 5))
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = True
    p = logits.softmax(-1)
    expected = -(torch.log(p[0, 1, clusters[0, 1]]) + torch.log(p[1, 3, clusters[1, 3]])) / 2
    loss, right = masked_loss(logits, clusters, mask)
    assert torch.allclose(loss, expected)
    assert int(right) == sum(int(logits[r, t].argmax() == clusters[r, t]) for r, t in ((0, 1), (1, 3)))
    head = ClusterHead(6, 3, 0.1)
    assert float(head(torch.randn(1, 4, 6)).detach().abs().max()) <= 10.0 + 1e-4  # cosines over tau
