"""The encoder stops where it is told to, branches see nothing of later layers, and the criteria are their formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support_speech import net, waves
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2Model

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, DataMissing
from fedloom.workloads.hubert_ee.config import NetSettings
from fedloom.workloads.hubert_ee.criteria import Criterion, confidence, entropy, greedy, uniform_entropy
from fedloom.workloads.hubert_ee.exits import Rule
from fedloom.workloads.hubert_ee.losses import ctc, total
from fedloom.workloads.hubert_ee.net import EarlyExit, frame_counts
from fedloom.workloads.hubert_ee.vocabulary import SIZE, collapse, decode, encode

KINDS: list[dict[str, Any]] = [{}, {"norm": "pre"}, {"front": "log_mel"}, {"front": "log_mel", "norm": "pre"}]


@pytest.mark.parametrize("sizes", KINDS)
@pytest.mark.parametrize("kind", ["attention", "linear"])
def test_a_branch_sees_nothing_of_the_layers_above_it(kind: str, sizes: dict[str, Any]) -> None:
    model, (wave, lengths) = net(kind, **sizes), waves(6000, 5000)
    with torch.no_grad():
        before = model(wave, lengths)
        for layer in list(model.hubert.encoder.layers)[3:]:
            for p in layer.parameters():
                p.add_(1.0)
        after = model(wave, lengths)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert not torch.equal(before[2], after[2])


@pytest.mark.parametrize(("wanted", "ran"), [(1, 1), (3, 3), (4, 4)])
def test_layers_above_the_exit_never_run(wanted: int, ran: int) -> None:
    model, (wave, lengths) = net(), waves(6000)
    calls = [0] * 4
    for place, layer in enumerate(model.hubert.encoder.layers):
        layer.register_forward_hook(lambda *_, place=place: calls.__setitem__(place, calls[place] + 1))
    with torch.no_grad():
        whole = model(wave, lengths)
        calls[:] = [0] * 4
        found = next(z for number, z in model.outputs(model.frames(wave, lengths)) if number == wanted)
    assert calls == [1] * ran + [0] * (4 - ran)
    assert torch.equal(found, whole[[1, 3, 4].index(wanted)])


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_loop_over_layers_is_the_librarys_forward_pass(norm: str) -> None:
    model, (wave, lengths) = net(norm=norm), waves(6000)
    with torch.no_grad():
        hidden = model.hubert(wave).last_hidden_state
        assert torch.allclose(model(wave, lengths)[-1], model.final(hidden), atol=1e-5)
        assert torch.equal(model.last(model.frames(wave, lengths)), model(wave, lengths)[-1])


@pytest.mark.parametrize("sizes", KINDS)
def test_padding_changes_neither_logits_nor_entropy(sizes: dict[str, Any]) -> None:
    model = net(**sizes)
    wave, lengths = waves(4000, 9000)
    counts = model.counts(lengths)
    with torch.no_grad():
        together = model(wave, lengths)
        alone = model(wave[:1, :4000], lengths[:1])
    for padded, plain in zip(together, alone, strict=True):
        cut = padded[0, : int(counts[0])]
        assert cut.shape == plain[0].shape and torch.allclose(cut, plain[0], atol=1e-5)
        assert entropy(cut) == pytest.approx(entropy(plain[0]), abs=1e-6)


@pytest.mark.parametrize("samples", [400, 719, 720, 16000, 22050])
def test_frames_are_those_of_the_convolutions(samples: int) -> None:
    model, (wave, _) = net(), waves(samples)
    with torch.no_grad():
        assert int(frame_counts(torch.tensor([samples]))) == model.hubert.feature_extractor(wave).shape[2]
    assert int(frame_counts(torch.tensor([16000]))) == 49


def test_entropy_and_confidence_at_their_ends() -> None:
    uniform, certain = torch.zeros(7, SIZE), 1e4 * torch.eye(SIZE)[:7]
    assert entropy(uniform) == pytest.approx(math.log(SIZE) / SIZE, abs=1e-9)
    assert uniform_entropy(SIZE) == pytest.approx(math.log(29) / 29)
    assert entropy(certain) == 0.0 and confidence(certain) == 1.0
    assert confidence(uniform) == pytest.approx(1 / SIZE)


def exit_of(found: list[Tensor], rule: Rule) -> int:
    """Place of the first branch an utterance leaves at."""
    criterion = Criterion(rule)
    return next((place for place, logits in enumerate(found) if criterion.leaves(logits)), len(found))


def branches() -> list[Tensor]:
    """Logits of three branches, each surer than the one before."""
    generator = torch.Generator().manual_seed(1)
    return [scale * torch.randn(20, SIZE, generator=generator) for scale in (1.0, 3.0, 9.0)]


def test_a_threshold_of_zero_runs_to_the_end_and_a_large_one_leaves_at_once() -> None:
    assert exit_of(branches(), Rule("entropy", 0.0)) == 3
    assert exit_of(branches(), Rule("entropy", uniform_entropy(SIZE) + 1e-6)) == 0
    places = [exit_of(branches(), Rule("entropy", s)) for s in (0.0, 0.01, 0.03, 0.06, 0.09, 0.12)]
    assert places == sorted(places, reverse=True) and len(set(places)) > 2
    sure = Rule("confidence", 0.6)
    assert exit_of(branches(), sure) == next(i for i, z in enumerate(branches()) if confidence(z) > 0.6)


def test_patience_waits_for_branches_that_agree() -> None:
    one, other = 9 * torch.eye(SIZE)[[5, 0, 6]], 9 * torch.eye(SIZE)[[5, 0, 7]]
    patient = Rule("patience", 2)
    assert exit_of([one, other, other], patient) == 2
    assert exit_of([one, one, other], patient) == 1
    assert exit_of([one, other, one], patient) == 3


def test_greedy_decoding_merges_repeats_and_drops_blanks() -> None:
    a, b = encode("a", "x")[0], encode("b", "x")[0]
    assert collapse([0, a, a, 0, a, b, b, 0]) == "aab"
    assert collapse([1, a, 1, 1, b, 1]) == "a b"
    assert greedy(torch.eye(SIZE)[[a, a, 0, a]]) == "aa" and decode(encode("don't go", "x")) == "don't go"
    with pytest.raises(DataMissing, match=r"line 3: .*characters \['5', 'ü'\]"):
        encode("für 5", "line 3")
    with pytest.raises(DataMissing, match="no character"):
        encode("  ", "line 3")


def test_ctc_is_the_sum_over_paths() -> None:
    # two frames, text "a": paths aa, a-, -a
    logits = torch.randn(1, 2, SIZE, generator=torch.Generator().manual_seed(2))
    p, a = logits[0].softmax(-1), encode("a", "x")[0]
    expected = -torch.log(p[0, a] * p[1, a] + p[0, a] * p[1, 0] + p[0, 0] * p[1, a])
    assert torch.allclose(ctc(logits, torch.tensor([2]), torch.tensor([[1, a]])), expected)


def test_losses_of_the_stages() -> None:
    exits = [torch.tensor(2.0), torch.tensor(4.0), torch.tensor(1.0)]
    assert total(exits, 2, 0.5) == 1.0 + 0.5 * 3.0
    assert total(exits, 2, 0.0) == 1.0
    assert total(exits, 2, None) == total(exits[:2], 2, None) == 3.0
    # clients with fewer layers: their losses are parts of the whole one, and add up to it
    assert total(exits[:1], 2, 0.5) == 0.5 * 2.0 / 2 and total(exits[:2], 2, 0.5) == 0.5 * 3.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"exits": [2, 6]}, "no branch after layer 6 of 6; expected 1 to 5"),
        ({"exits": [4, 2]}, "rising layers"),
        ({"net": {"heads": 5}}, "5 heads do not divide"),
        ({"stage": "branches"}, "workload.start: required"),
        (
            {"depths": [3]},
            r"depths: 3 is neither a layer with a branch nor the last; expected values of \[0, 2, 4, 6\]",
        ),
        ({"depths": [2], "stage": "final"}, "depths: only for stage 'joint'"),
        ({"augment": True}, "augment: only for workload.net.front 'log_mel'"),
        (
            {"speech": {"source": "librispeech", "train_folder": "a", "test_folder": "b"}},
            "dev_folder: required by workload.criterion",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Experiment.parse({"rounds": 1, "strategy": "fedavg", "workload": {"name": "hubert_ee", **settings}})


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    settings = NetSettings(checkpoint=str(tmp_path))
    with pytest.raises(DataMissing, match=r"has no config.json"):
        EarlyExit(settings, (1,), "linear")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(DataMissing, match=r"holds a model of type 'bert'"):
        EarlyExit(settings, (1,), "linear")


def test_a_wav2vec2_encoder_is_read_and_one_below_another_head_is_refused(tmp_path: Path) -> None:
    made = net().hubert
    sizes = {**made.config.to_dict(), "model_type": "wav2vec2"}
    Wav2Vec2Model(Wav2Vec2Config.from_dict(sizes)).save_pretrained(tmp_path / "bare")
    bare = EarlyExit(NetSettings(checkpoint=str(tmp_path / "bare")), (1, 3), "linear")
    assert bare.num_layers == 4
    Wav2Vec2ForCTC(Wav2Vec2Config.from_dict(sizes)).save_pretrained(tmp_path / "ctc")
    with pytest.raises(DataMissing, match=r"lacks \d+ arrays of the encoder"):
        EarlyExit(NetSettings(checkpoint=str(tmp_path / "ctc")), (1, 3), "linear")


def test_a_saved_encoder_is_read_back(tmp_path: Path) -> None:
    first = net()
    first.hubert.save_pretrained(str(tmp_path))
    again = EarlyExit(NetSettings(checkpoint=str(tmp_path)), (1, 3), "attention").eval()
    wave, _ = waves(5000)
    with torch.no_grad():
        assert torch.allclose(first.hubert(wave).last_hidden_state, again.hubert(wave).last_hidden_state, atol=1e-6)
    with pytest.raises(DataMissing, match="no branch after layer 4; the checkpoint has 4"):
        EarlyExit(NetSettings(checkpoint=str(tmp_path)), (4,), "attention")
    assert isinstance(again, nn.Module)
