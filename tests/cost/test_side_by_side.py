"""A network beside its dense copy: one built by hand, the paper's table, and what the command line prints."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from litheseg import cli
from litheseg.cost import compare_dense, count, layer_pairs, layer_table
from litheseg.cost.side_by_side import dense_copy
from litheseg.errors import LithesegError, ModelError, WidthError
from litheseg.masks.classes import Classes
from litheseg.models import MODELS, SegmentationModel, build_model
from litheseg.models.bundle import BundleHeader, save_bundle
from litheseg.nn import extract, slim
from litheseg.nn.grouping import ChannelShuffle
from litheseg.report.terminal import dense_table
from litheseg.tables import terminal_table

PAPER_SIZE, PAPER_OUTPUTS = (512, 1024), 20


class _Toy(nn.Module):
    """A separable block and a grouped, shuffled pair; `groups=None` has all of it dense, as written by hand."""

    def __init__(self, grouped: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8 if grouped else 1, bias=False)
        self.first = nn.Conv2d(8, 12, 1, groups=4 if grouped else 1)
        self.shuffle = ChannelShuffle(4) if grouped else nn.Identity()
        self.second = nn.Conv2d(12, 6, (3, 1), padding=(1, 0), groups=2 if grouped else 1)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.relu(self.stem(x))))
        return self.head(self.second(self.shuffle(F.relu(self.first(x)))))


def test_the_dense_copy_is_the_one_built_by_hand() -> None:
    grouped = _Toy(grouped=True).eval()
    dense, by_hand = dense_copy(grouped), _Toy(grouped=False).eval()
    assert layer_table(dense, (9, 13)) == layer_table(by_hand, (9, 13))
    assert count(dense, (9, 13)) == count(by_hand, (9, 13))
    by_hand.load_state_dict(dense.state_dict())
    image = torch.rand(1, 3, 9, 13)
    assert torch.equal(dense(image), by_hand(image)) and dense(image).isfinite().all()


def test_what_is_not_grouped_stays_and_the_model_is_left_alone() -> None:
    grouped = _Toy(grouped=True)
    before, random = {name: value.clone() for name, value in grouped.state_dict().items()}, torch.get_rng_state()
    dense = dense_copy(grouped)
    assert torch.equal(dense.stem.weight, grouped.stem.weight) and torch.equal(dense.first.bias, grouped.first.bias)
    assert grouped.depthwise.groups == 8 and isinstance(grouped.shuffle, ChannelShuffle)
    assert all(torch.equal(before[name], value) for name, value in grouped.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_other_kinds_of_convolution_and_shared_ones() -> None:
    class Padded(nn.Conv2d):
        """Pads by itself, as some encoders' convolutions do."""

        def forward(self, input: Tensor) -> Tensor:
            return self._conv_forward(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias)

    layer = Padded(4, 4, 3, groups=2)
    dense = dense_copy(nn.Sequential(nn.Conv2d(3, 4, 1), layer, layer))
    assert isinstance(dense[1], Padded) and dense[1] is dense[2]
    cost = count(dense, (5, 6))
    assert cost.params == (3 * 4 + 4) + (4 * 4 * 9 + 4) and cost.macs == 30 * (3 * 4 + 2 * 4 * 4 * 9)


# Parameters and MACs of the layers that are grouped in D*, DG2* and DG4*, from the block's formula: a block of C
# channels has two 3x3 (9 C, dense 9 C^2) and two 1x1 (C^2 / g, dense C^2); five of 64, eight of 128 in the encoder,
# two of 64 and two of 16, always with dense 1x1s, in the decoder.
BLOCKS = {64: (5, 2, 128 * 256), 128: (8, 0, 64 * 128), 16: (0, 2, 256 * 512)}


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [  # the paper's own table
        ("erfnet-d*", 421_056, 5_494_407_168),
        ("erfnet-dg4*", 193_728, 2_877_161_472),
    ],
)
def test_the_family_beside_its_dense_copy(name: str, params: int, macs: int) -> None:
    [pair] = compare_dense(build_model(name, PAPER_OUTPUTS), size=PAPER_SIZE, latency=False)
    assert (pair.grouped["params"], pair.grouped["macs"]) == (params, macs)
    # All of them have the same dense copy: D* with dense 3x3s in the place of the depthwise ones.
    added = {channels: 2 * 9 * (channels * channels - channels) for channels in BLOCKS}
    assert pair.dense["params"] == 421_056 + sum(added[c] * (e + d) for c, (e, d, _) in BLOCKS.items())
    assert pair.dense["macs"] == 5_494_407_168 + sum(
        added[c] * (e + d) * pixels for c, (e, d, pixels) in BLOCKS.items()
    )
    assert pair.ratio["macs"] == pair.dense["macs"] / macs and "p50_ms" not in pair.ratio


def test_layers_side_by_side() -> None:
    model = build_model("erfnet-dg4*", 20)
    pairs = {pair.grouped.name: pair for pair in layer_pairs(model, PAPER_SIZE)}
    for name, channels, pixels in (("encoder.2", 64, 128 * 256), ("encoder.8", 128, 64 * 128)):
        block = {key.rsplit(".", 1)[-1]: pair for key, pair in pairs.items() if key.startswith(f"{name}.conv")}
        convolutions = {key: pair for key, pair in pairs.items() if key.startswith(f"{name}.conv")}
        assert len(block) >= 2 and sum(pair.grouped.macs for pair in convolutions.values()) == pixels * (
            2 * 9 * channels + 2 * channels * channels // 4
        )
        assert sum(pair.dense.macs for pair in convolutions.values()) == pixels * 20 * channels * channels
        assert sum(pair.dense.params for pair in convolutions.values()) == 20 * channels * channels + 4 * channels
    assert sum(pair.grouped.macs for pair in pairs.values()) == 2_877_161_472
    dense = pairs["decoder.1.conv2"]  # a dense 1x1
    assert (dense.dense.params, dense.dense.macs) == (dense.grouped.params, dense.grouped.macs)


def test_every_width_is_measured_beside_its_dense_copy() -> None:
    class Elastic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
            self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
            self.head = nn.Conv2d(32, 5, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.depthwise(self.stem(x)))

    model = slim(Elastic(), (1.0, 0.5))
    pairs = compare_dense(model, size=(6, 8), repeats=2, threads=1)
    assert [(pair.dense["width"], pair.grouped["width"]) for pair in pairs] == [(1.0, 1.0), (0.5, 0.5)]
    for pair, channels in zip(pairs, (32, 16), strict=True):
        assert pair.grouped["params"] == 27 * channels + 9 * channels + 5 * channels
        assert pair.dense["params"] == 27 * channels + 9 * channels * channels + 5 * channels
        assert pair.dense["macs"] == 48 * pair.dense["params"] and pair.grouped["macs"] == 48 * pair.grouped["params"]
        dense, grouped = pair.dense, pair.grouped
        assert dense["p50_ms"] > 0 and grouped["p95_ms"] >= grouped["p50_ms"] > 0
        assert pair.ratio["p50_ms"] == pytest.approx(dense["p50_ms"] / grouped["p50_ms"])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(dense_table(pairs), "toy"))
    lines = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
    ratio = f"{pairs[1].ratio['params']:.2f}x"
    assert "0.5 params 0.003 M 0.001 M " + ratio in lines and sum("p95 ms" in line for line in lines) == 2
    assert count(extract(model, 0.5), (6, 8)).params == pairs[1].grouped["params"]  # the elastic one is as it was


def test_nothing_grouped_and_wrong_numbers() -> None:
    with pytest.raises(ModelError, match=r"no grouped convolutions.*erfnet-dg4\*.*--model.efficient.groups 4"):
        compare_dense(build_model("erfnet", 3), size=(16, 16), latency=False)
    with pytest.raises(WidthError, match="plain model"):
        compare_dense(_Toy(grouped=True), [0.5], size=(8, 8))
    with pytest.raises(LithesegError, match="not positive"):
        compare_dense(_Toy(grouped=True), size=(0, 8))


# --- the command line ------------------------------------------------------------------------------------------------


class _Bundled(SegmentationModel):
    def __init__(self, num_classes: int, groups: int) -> None:
        super().__init__(num_classes)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        self.classifier = nn.Conv2d(8, num_classes, 1)

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        features = self.inner(self.stem(image))
        return {"logits": self.classifier(features), "features": features}


def _bundled(num_classes: int, *, groups: int = 1, aux_head: bool = False, boundary_head: bool = False) -> _Bundled:
    return _Bundled(num_classes, groups)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Bundles of a dense and of a grouped network."""
    monkeypatch.setitem(MODELS, "bundled", _bundled)
    for name, groups in (("plain", 1), ("grouped", 4)):
        architecture = {"name": "bundled", "args": {"groups": groups}}
        header = BundleHeader(architecture, Classes.from_names(["a", "b", "c"]), widths=(1.0,), size=(16, 24))
        save_bundle(tmp_path / f"{name}.safetensors", slim(_bundled(3, groups=groups), (1.0,)), header)
    return tmp_path


def test_profile_dense(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["profile", str(folder / "grouped.safetensors"), "--dense", "--layers", "--repeats", "1", "--threads", "1"]
    assert cli.main([*line, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    [row] = result["widths"]
    assert row["dense"]["params"] - row["params"] == 8 * 8 * 9 - 8 * 2 * 9
    assert row["dense"]["macs"] / row["macs"] == row["ratio"]["macs"] > 1 and row["dense"]["p50_ms"] > 0
    assert sum(layer["macs"] for layer in result["layers"]) == row["macs"]
    assert sum(layer["dense"]["macs"] for layer in result["layers"]) == row["dense"]["macs"]
    assert sum(layer["dense"]["params"] for layer in result["layers"]) == row["dense"]["params"]
    assert cli.main(line) == 0
    text = capsys.readouterr().out
    assert "dense / grouped" in text and f"{row['ratio']['macs']:.2f}x" in text and "4.00x" in text


def test_profile_dense_of_a_dense_bundle(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profile", str(folder / "plain.safetensors"), "--dense"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "plain.safetensors has no grouped convolutions" in line and "erfnet-dg4*" in line
