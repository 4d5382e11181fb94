"""Runs: a plain loop's bits, conformance, runtimes, kill and resume, the monitor and its report, bad photographs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support_llic import TINY, album, build, experiment, picture

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, DataMissing, FedloomError, Interrupted
from fedloom.core.records import MODEL, Info
from fedloom.core.seeds import generator
from fedloom.reporting.plugins import contributions
from fedloom.reporting.report import render_report
from fedloom.reporting.run_folder import RunFolder
from fedloom.testing.workload import WorkloadConformance
from fedloom.workloads.llic.bitstream import ImageCodec, as_images
from fedloom.workloads.llic.net import Codec
from fedloom.workloads.llic.pixels import Pixels

BRIEF = {"optimizer": "adamw", "learning_rate": 1e-3, "max_steps": 1}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return album(tmp_path_factory.mktemp("album") / "photographs", size=(128, 192))


class TestConformance(WorkloadConformance):
    name = "llic"

    @pytest.fixture(autouse=True)
    def _settings(self, data: dict[str, Any]) -> None:
        training = {"optimizer": "adamw", "learning_rate": 1e-3, "max_steps": 2, "batch_size": 2}
        self.settings: Info = {**TINY, "data": data, "training": training}


def loop(made: Experiment) -> dict[str, torch.Tensor]:
    """The same training in plain PyTorch."""
    workload = build(made)
    codec = Codec(workload.config)
    first = workload.init(generator(made.seed, "init", 0, 0, 0)).groups[MODEL]
    codec.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in first.items()})
    quantiles = codec.entropy.prior.quantiles
    others = [p for p in codec.parameters() if p is not quantiles]
    rows = workload.shard(0).rows
    for round_number in range(1, (made.max_rounds or 0) + 1):
        rng = generator(made.seed, "train", round_number, 0, 0)
        torch.manual_seed(int(rng.integers(2**63)))
        main = torch.optim.AdamW(others, lr=1e-3, weight_decay=0.0)
        side = torch.optim.AdamW([quantiles], lr=1e-3, weight_decay=0.0)
        codec.train()
        for batch in torch.split(torch.from_numpy(rows[rng.permutation(len(rows))]), 4)[:3]:
            x = workload.crops.drawn(batch, 64)
            loss, _, _ = codec(x)
            loss = loss + codec.entropy.prior.quantile_loss()
            main.zero_grad()
            side.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(others, 1.0)
            main.step()
            side.step()
    return {name: each.detach() for name, each in codec.state_dict().items()}


def test_one_client_through_the_server_is_a_plain_loop_bit_for_bit(data: dict[str, Any]) -> None:
    made = experiment(data, evaluation={"parts": 1, "every": 2})
    result, expected = api.run(made, keep=False), loop(made)
    assert result.arrays.keys() == expected.keys()
    for name, each in expected.items():
        assert np.array_equal(result.arrays[name], each.numpy()), name
    codec = Codec(build(made).config)
    codec.load_state_dict(expected)
    image, evaluation = ImageCodec(codec), result.history[-1].evaluation or {}
    rates, qualities = [], []
    for name in ("a", "b"):
        rgb = np.asarray(Image.open(Path(data["test_folder"]) / f"{name}.png"))
        container = image.encode(Pixels(rgb))
        error = float(((image.decode(container).rgb.astype(np.float64) - rgb) ** 2).mean())
        rates.append(8 * len(container.pack()) / (rgb.shape[0] * rgb.shape[1]))
        qualities.append(10 * np.log10(255**2 / error))
    assert evaluation["bits_per_pixel"] == pytest.approx(np.mean(rates), rel=1e-12)
    assert evaluation["psnr"] == pytest.approx(np.mean(qualities), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", [{"name": "process", "workers": 2}, {"name": "ray", "workers": 2}])
def test_runtimes_have_equal_bits(data: dict[str, Any], runtime: dict[str, Any]) -> None:
    inline = api.run(experiment(data, {"training": BRIEF}, rounds=1, clients=2), keep=False)
    other = api.run(experiment(data, {"training": BRIEF}, rounds=1, clients=2, runtime=runtime), keep=False)
    assert inline.summary.model_sha256 == other.summary.model_sha256
    assert [record.evaluation for record in inline.history] == [record.evaluation for record in other.history]


@pytest.mark.parametrize(("moment", "personal"), [("RoundFinished", "nothing"), ("ClientsDone", "entropy")])
def test_a_resumed_run_has_the_same_bits(tmp_path: Path, data: dict[str, Any], moment: str, personal: str) -> None:
    settings: dict[str, Any] = {"checkpoint": {"every": 1}, "round": {"group_size": 1}, "evaluation": {"every": 0}}
    made = experiment(data, {"personal": personal, "training": BRIEF}, rounds=3, clients=2, **settings)
    whole = api.run(made, keep=False)

    class Stop:
        seen = 0

        def write(self, event: Any) -> None:
            if type(event).__name__ != moment:
                return
            self.seen += 1
            if self.seen == (2 if moment == "RoundFinished" else 3):
                raise KeyboardInterrupt

        def close(self) -> None: ...

    with pytest.raises((Interrupted, KeyboardInterrupt)):
        api.run(made, out=tmp_path / "cut", sinks=[Stop()])
    assert api.resume(tmp_path / "cut").summary.model_sha256 == whole.summary.model_sha256


def test_the_monitor_and_the_report_show_what_was_measured(tmp_path: Path, data: dict[str, Any]) -> None:
    monitor = {"name": "llic", "pictures": 1, "rivals": ["jpeg", "webp"]}
    result = api.run(experiment(data, {"training": BRIEF}, rounds=1, monitor=monitor), out=tmp_path / "run")
    info, evaluation = result.history[-1].monitor or {}, result.history[-1].evaluation or {}
    lines = info["photographs"]
    assert [line["name"] for line in lines] == ["a.png", "b.png"]
    assert np.mean([line["bits_per_pixel"] for line in lines]) == pytest.approx(evaluation["bits_per_pixel"], rel=1e-12)
    assert lines[0]["ms_ssim"] is not None and lines[1]["ms_ssim"] is not None
    assert info["pictures"][0]["shown"][2]["title"].startswith("JPEG (4:2:0), ")
    areas = info["fields"]["direct"]["areas"]
    assert areas == sorted(areas) and areas[0] > 0 and areas[-1] <= 1
    assert info["adaptivity"]["kernel_spread"] > 0 and info["adaptivity"]["swapped_loss"] > 0
    folder = RunFolder.read(tmp_path / "run")
    numbers = {name: value for part in contributions(folder) for name, value in part.numbers.items()}
    assert numbers["bits_per_pixel"] == evaluation["bits_per_pixel"] and numbers["field_direct_99"] == areas[-1]
    page = render_report(folder)
    assert "data:image/png;base64," in page and "VTM, the paper&#x27;s anchor, is not available here" in page
    json.dumps(info, allow_nan=False)


def test_training_lowers_the_loss(data: dict[str, Any]) -> None:
    training = {"optimizer": "adamw", "learning_rate": 1e-3, "batch_size": 4, "steps": 8, "clip_norm": 1.0}
    result = api.run(experiment(data, {"training": training}, evaluation={"every": 0}), keep=False)
    losses = [record.metrics["loss"] for record in result.history]
    assert losses[1] < losses[0]
    last = result.history[-1].metrics
    assert last["loss"] == pytest.approx(last["rate"] + 0.013 * last["distortion"], rel=1e-6)


def test_crops_lie_inside_photographs_and_grow_when_the_settings_say(data: dict[str, Any]) -> None:
    made = build(experiment(data, {"crop": {"size": 64, "last": 128, "change": 0.5}}, rounds=4))
    assert [made.config.crop.size_in(number, 4) for number in (1, 2, 3, 4)] == [64, 64, 128, 128]
    assert made.config.rounds_needed_by() == "workload.crop.change = 0.5"
    assert len(made.crops) == 4 * 2 * 3
    (tiles,), kinds = made.crops.batch(torch.arange(6))
    rgb = np.asarray(Image.open(Path(data["train_folder"]) / "kind0" / "0.png"))
    assert torch.equal(tiles[1], as_images(rgb[:64, 64:128])[0]) and kinds.tolist() == [0] * 6
    torch.manual_seed(1)
    drawn = made.crops.drawn(torch.arange(24), 128)
    assert drawn.shape == (24, 3, 128, 128) and drawn.is_contiguous()
    with pytest.raises(ConfigError, match=r"rounds.*workload.crop.change"):
        build(experiment(data, {"crop": {"size": 64, "last": 128, "change": 0.5}}, rounds="open"))


def test_the_bundled_photographs_are_read_without_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "skimage"]:  # of tests before this one
        monkeypatch.delitem(sys.modules, name)
    made = build(experiment({"source": "photographs", "wallpapers": False}))
    assert [each.name for each in made.photographs.photographs] == ["astronaut", "chelsea", "coffee", "rocket", "china"]
    assert made.data.label_names == ("nature", "scenes", "science", "textures")
    assert "skimage" not in sys.modules


def _bad(folder: Path, what: str) -> None:
    folder.mkdir()
    image = picture(64, 64)
    if what == "damaged":
        (folder / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    elif what == "empty":
        (folder / "x.png").write_bytes(b"")
    elif what == "16 bit":
        Image.fromarray(image[:, :, 0].astype(np.uint16) * 200).save(folder / "x.png")
    elif what == "tiny":
        Image.fromarray(image[:1, :1]).save(folder / "x.png")
    if what != "nothing":
        Image.fromarray(image).save(folder / "y.png")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", "has no photograph; expected files with the endings .png"),
        ("damaged", r"x.png: cannot be read as an image"),
        ("empty", r"x.png: cannot be read as an image"),
        ("16 bit", r"x.png: expected 8 bits per channel, got 16 or more"),
        ("tiny", r"x.png: expected sides of at least 16 pixels for training, got 1 x 1"),
        ("one", "expected at least two photographs"),
    ],
)
def test_photographs_that_cannot_be_used_are_named(tmp_path: Path, what: str, message: str) -> None:
    _bad(tmp_path / "p", what)
    source = {"source": "folders", "train_folder": str(tmp_path / "p")}
    if what in ("damaged", "empty", "16 bit", "tiny"):
        (tmp_path / "test").mkdir()
        Image.fromarray(picture(64, 64)).save(tmp_path / "test" / "z.png")
        source["test_folder"] = str(tmp_path / "test")
    with pytest.raises(DataMissing, match=message):
        build(experiment(source))


def test_a_missing_folder_and_a_missing_format_are_refused(tmp_path: Path, data: dict[str, Any]) -> None:
    with pytest.raises(DataMissing, match=r"workload.data.train_folder: expected a folder"):
        build(experiment({"source": "folders", "train_folder": str(tmp_path / "none")}))
    with pytest.raises(FedloomError, match="rivals"):
        experiment(data, {"rivals": ["bmp"]})


def test_settings_monitor_and_report_import_no_torch() -> None:
    modules = (
        "config", "container", "photographs", "pixels", "rate", "rivals", "report", "study", "monitor.config",
        "monitor.monitor", "monitor.watch", "monitor.report", "commands.codec",
    )  # fmt: skip
    names = ", ".join(f"fedloom.workloads.llic.{module}" for module in modules)
    code = f"import sys, {names}; sys.exit('torch' in sys.modules or 'constriction' in sys.modules)"
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0
