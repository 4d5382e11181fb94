"""Corpora, word errors, stages, and whole runs against a plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("jiwer")
pytest.importorskip("espeakng_loader")
soundfile = pytest.importorskip("soundfile")

from killed_runs import killed_and_resumed  # noqa: E402  # after the packages of the extra
from support_speech import CALIBRATED, SIZES, SMALL, build, experiment  # noqa: E402

from fedloom import api  # noqa: E402
from fedloom.core.errors import DataMissing  # noqa: E402
from fedloom.core.records import MODEL, Info, Job, Record  # noqa: E402
from fedloom.core.seeds import generator  # noqa: E402
from fedloom.testing.workload import WorkloadConformance  # noqa: E402
from fedloom.workloads.hubert_ee import espeak  # noqa: E402
from fedloom.workloads.hubert_ee.config import LibriSpeech, Synthetic  # noqa: E402
from fedloom.workloads.hubert_ee.corpus import checked, load_corpus  # noqa: E402
from fedloom.workloads.hubert_ee.exits import Rule  # noqa: E402
from fedloom.workloads.hubert_ee.losses import ctc  # noqa: E402
from fedloom.workloads.hubert_ee.net import EarlyExit, frame_counts  # noqa: E402
from fedloom.workloads.hubert_ee.reading import transcribe, word_errors  # noqa: E402
from fedloom.workloads.hubert_ee.vocabulary import decode  # noqa: E402


def test_the_corpus_is_speech_of_voices_that_the_splits_do_not_share() -> None:
    settings = Synthetic.model_validate(SMALL["speech"])
    corpus = load_corpus(settings)
    again = load_corpus(settings)
    assert np.array_equal(corpus.train.waves, again.train.waves) and corpus.sha256 == again.sha256
    assert len(corpus.train) == 24 and len(corpus.test) == 9 and corpus.info["kind"] == "synthetic"
    seconds = corpus.train.lengths / 16_000
    assert seconds.min() > 0.1 and seconds.max() < 3.0
    texts = {decode(row[1 : row[0] + 1]) for row in corpus.train.targets.tolist()}
    assert {word for text in texts for word in text.split()} <= {"the", "of", "and", "to", "in"}
    for row, count in enumerate(corpus.train.lengths):
        assert np.abs(corpus.train.waves[row, :count]).max() > 1000 and not corpus.train.waves[row, count:].any()
    other = load_corpus(Synthetic.model_validate({**SMALL["speech"], "seed": 2}))
    assert other.sha256 != corpus.sha256


def test_a_voice_that_does_not_exist_is_refused() -> None:
    assert espeak.speak(espeak.Line("water house", "en+f3", 180, 60)).dtype == np.float32
    with pytest.raises(DataMissing, match=r"no voice 'xx\+m1'"):
        espeak.speak(espeak.Line("the", "xx+m1", 150, 40))


def test_word_errors_by_hand() -> None:
    # one substitution, one deletion, one insertion
    assert word_errors("go to the old house", "go too the house now") == 3
    assert word_errors("go", "go") == 0 and word_errors("go home", "") == 2
    # of the corpus: 3 errors in 7 words, not the mean of 3/5 and 0/2
    assert (3 + word_errors("we can", "we can")) / 7 == pytest.approx(0.4286, abs=1e-4)


def test_folders_of_librispeech(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    for side, speakers in (("train", ("19", "26")), ("test", ("84",))):
        for speaker in speakers:
            folder = tmp_path / side / speaker / "7"
            folder.mkdir(parents=True)
            lines = []
            for number in range(2):
                name = f"{speaker}-7-{number:04d}"
                soundfile.write(folder / f"{name}.flac", 0.1 * rng.normal(size=8000 + number), 16_000)
                lines.append(f"{name} HE SAID {['ONE', 'TWO'][number]}")
            (folder / f"{speaker}-7.trans.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = LibriSpeech(train_folder=str(tmp_path / "train"), test_folder=str(tmp_path / "test"))
    corpus = load_corpus(settings)
    assert len(corpus.train) == 4 and len(corpus.test) == 2 and corpus.info["kind"] == "real"
    assert corpus.train.speakers.tolist() == [0, 0, 1, 1] and corpus.train.lengths.tolist() == [8000, 8001] * 2
    assert decode(corpus.test.targets[1][1 : corpus.test.targets[1][0] + 1].tolist()) == "he said two"
    assert corpus.dev is None
    short = settings.model_copy(update={"max_seconds": 0.5})
    assert len(load_corpus(short).train) == 2
    soundfile.write(tmp_path / "test" / "84" / "7" / "84-7-0001.flac", rng.normal(size=8000), 8_000)
    with pytest.raises(DataMissing, match=r"84-7-0001.flac: has 8000 samples per second, expected 16000"):
        load_corpus(settings.model_copy(update={"max_seconds": 9.0}))
    (tmp_path / "test" / "84" / "7" / "84-7-0000.flac").write_bytes(b"no audio")
    with pytest.raises(DataMissing, match=r"84-7-0000.flac: cannot be read as audio"):
        load_corpus(settings.model_copy(update={"max_seconds": 8.0}))
    with pytest.raises(DataMissing, match=r"has no \*.trans.txt"):
        load_corpus(LibriSpeech(train_folder=str(tmp_path / "none"), test_folder=str(tmp_path / "test")))


@pytest.mark.parametrize(
    ("samples", "rate", "said"),
    [
        (np.ones(9000, np.float32), 8000, "8000 samples per second, expected 16000"),
        (np.zeros(16000, np.float32), 16000, "silent"),
        (np.full(16000, np.nan, np.float32), 16000, "not finite"),
        (np.ones(10, np.float32), 16000, "expected at least 0.1 s"),
        (np.zeros(0, np.float32), 16000, "0.000 s of audio"),
    ],
)
def test_audio_that_is_no_speech_is_refused(samples: Any, rate: int, said: str) -> None:
    with pytest.raises(DataMissing, match=f"x.wav.*{said}"):
        checked(samples, rate, "x.wav")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in the order that one thread adds them up in, as in a run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_one_client_through_the_server_is_a_plain_loop_bit_for_bit() -> None:
    made = experiment({"weight": 0.5})
    workload, sizes = build(made), made.workload
    torch.manual_seed(int(generator(1, "init", 0, 0, 0).integers(2**63)))
    net = EarlyExit(sizes.net, (1, 3), "attention").train()  # type: ignore[attr-defined]
    data, rows = workload.data.train, workload.shard(0).rows
    for number in (1, 2):
        optimizer = torch.optim.SGD(list(net.parameters()), lr=0.05, momentum=0.9)
        rng = generator(1, "train", number, 0, 0)
        torch.manual_seed(int(rng.integers(2**63)))
        for batch in torch.split(torch.from_numpy(rows[rng.permutation(len(rows))]), 8):
            (waves, lengths), targets = data.batch(batch)
            exits = net(waves[:, : int(lengths.max())].float() / 32768.0, lengths)
            first, second, final = (ctc(each, frame_counts(lengths), targets) for each in exits)
            optimizer.zero_grad()
            (final + 0.5 * ((first + second) / 2)).backward()
            optimizer.step()
    found = api.run(made, keep=False).arrays
    expected = {name: each.detach() for name, each in net.state_dict().items()}
    for name, array in found.items():
        assert np.array_equal(array, expected[name].numpy()), name
    assert expected.keys() - found.keys() <= {"hubert.masked_spec_embed"}


def test_the_second_stage_sends_branches_alone_and_leaves_the_rest(tmp_path: Path) -> None:
    first = experiment({"stage": "final"}, rounds=1)
    api.run(first, out=tmp_path / "first")
    second = experiment({"stage": "branches", "start": str(tmp_path / "first")}, clients=2)
    workload = build(second)
    before = {name: p.clone() for name, p in workload.network.named_parameters()}
    result = api.run(second, keep=False)
    assert result.arrays and all(name.startswith("branches.") for name in result.arrays)
    model = Record({MODEL: workload.init(generator(1, "init")).groups[MODEL]})
    update = workload.train(Job(round=1, client=0), {MODEL: model}, workload.shard(0), None, generator(1, "train"))
    assert update.groups[MODEL].keys() == result.arrays.keys()
    for name, p in workload.network.named_parameters():
        if not name.startswith("branches."):
            assert torch.equal(p, before[name]) and p.grad is None, name
    # other branches on the same encoder: theirs are new, the encoder is the run's
    other = build(experiment({"stage": "branches", "start": str(tmp_path / "first"), "exits": [2], "branch": "linear"}))
    own = dict(other.network.named_parameters())
    assert torch.equal(own["final.weight"], before["final.weight"]) and "branches.2.linear.weight" in own
    with pytest.raises(DataMissing, match="holds another network"):
        build(experiment({"stage": "branches", "start": str(tmp_path / "first"), "net": {**SIZES, "width": 20}}))


def test_two_stages_in_one_run_freeze_what_is_not_their_own() -> None:
    settings: dict[str, Any] = {"training": {**SMALL["training"], "optimizer": "adamw", "momentum": 0.0}}
    first = api.run(experiment({**settings, "stage": "final"}, rounds=1), keep=False).arrays
    two = experiment({**settings, "stage": "two_stage", "first_rounds": 1})
    initial = build(two).init(generator(1, "init", 0, 0, 0)).groups[MODEL]
    one, both = (api.run(two.override([f"rounds={count}"]), keep=False).arrays for count in (1, 2))
    for name, array in both.items():
        if name.startswith("branches."):
            assert np.array_equal(one[name], initial[name]), name
        else:
            assert np.array_equal(one[name], first[name]) and np.array_equal(array, first[name]), name
    assert any(not np.array_equal(both[name], one[name]) for name in both)


def test_thresholds_of_an_evaluation() -> None:
    made = experiment(rounds=1)
    model = {MODEL: Record({MODEL: build(made).init(generator(1, "init")).groups[MODEL]})}

    def evaluated(threshold: float) -> dict[str, float]:
        workload = build(experiment({"criterion": {"threshold": threshold}}))
        return {name: mean.value for name, mean in workload.evaluate(model, workload.held_out(0, 1)).items()}

    none, all_at_once = evaluated(0.0), evaluated(1.0)
    assert none["wer"] == none["wer_full_depth"] and none["mean_exit_layer"] == 4.0 and none["left_at_4"] == 1.0
    assert all_at_once["wer"] == all_at_once["wer_exit_1"] and all_at_once["mean_exit_layer"] == 1.0
    assert sum(all_at_once[f"left_at_{layer}"] for layer in (1, 3, 4)) == 1.0


def test_a_transcript_at_batch_one_is_that_of_the_evaluation() -> None:
    workload = build(experiment(CALIBRATED))
    inputs = {MODEL: Record({MODEL: workload.init(generator(1, "init")).groups[MODEL]})}
    (waves, lengths), _ = workload.data.test.batch(torch.arange(9))
    with workload.evaluating(inputs):
        read = workload._read(workload.held_out(0, 1))
        middle = float(np.median(read.table.scores[:, :, 0]))
        rule = Rule("entropy", middle)
        exits = rule.exits(read.table)
        assert len(set(exits.tolist())) > 1
        for row in range(9):
            text, layer = transcribe(workload.network, waves[row, : int(lengths[row])], rule)
            assert layer == (1, 3, 4)[exits[row]] and text == read.texts[row][exits[row]]


@pytest.mark.parametrize(
    "runtime",
    [
        pytest.param({"name": "process", "workers": 2}, marks=pytest.mark.slow),
        pytest.param({"name": "ray", "workers": 2}, marks=pytest.mark.slow),
    ],
)
def test_runtimes_have_equal_bits(runtime: dict[str, Any]) -> None:
    common: dict[str, Any] = {"clients": 3}
    natural = {"partition": {"scheme": "natural"}}
    inline = api.run(experiment(natural, **common), keep=False)
    other = api.run(experiment(natural, **common, runtime=runtime), keep=False)
    assert inline.summary.model_sha256 == other.summary.model_sha256
    assert [record.evaluation for record in inline.history] == [record.evaluation for record in other.history]


@pytest.mark.slow
def test_a_run_killed_inside_a_round_and_resumed_has_the_same_bits(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"clients": 3, "checkpoint": {"every": 1}, "runtime": {"name": "process", "workers": 2}}
    made = experiment(CALIBRATED, rounds=6, **settings)
    whole = api.run(made, out=tmp_path / "whole")
    assert killed_and_resumed(made, tmp_path, after=2) == whole.summary.model_sha256


WITH_CALIBRATION: Info = {**SMALL, **CALIBRATED}
PRETRAINING: Info = {**SMALL, "stage": "pretrain", "pretraining": {"clusters": 6}}


class TestConformance(WorkloadConformance):
    name = "hubert_ee"
    settings: Info = WITH_CALIBRATION


class TestPretrainingConformance(WorkloadConformance):
    name = "hubert_ee"
    settings: Info = PRETRAINING
