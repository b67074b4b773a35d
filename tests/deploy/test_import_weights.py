"""Weights from elsewhere, against networks written anew from the published layer table, named as their authors do."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from registry import registered
from safetensors.torch import save_file
from torch import Tensor, nn

from litheseg import cli
from litheseg.data.sources.public import CITYSCAPES_CLASSES, VOC_CLASSES
from litheseg.deploy.import_weights import import_weights, read_classes, read_normalisation
from litheseg.errors import BundleError, DataError, LithesegError, ModelError
from litheseg.masks.classes import Classes
from litheseg.models import SegmentationModel, build_model
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.runtime import Predictor

CLASSES = Classes.from_names(("road", "car", "sky", "tree", "void"))
K = len(CLASSES)
SIZE = (32, 64)
State = dict[str, Tensor]


# --- the oracle: ERFNet's layer table and the separable block, with names of its own ----------------------------------


class DownsamplerBlock(nn.Module):
    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, out - inp, 3, 2, 1)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(torch.cat([self.conv(x), F.max_pool2d(x, 2)], 1)).relu()


class NonBottleneck(nn.Module):
    def __init__(self, c: int, d: int) -> None:
        super().__init__()
        self.conv3x1_1 = nn.Conv2d(c, c, (3, 1), padding=(1, 0))
        self.conv1x3_1 = nn.Conv2d(c, c, (1, 3), padding=(0, 1))
        self.bn1 = nn.BatchNorm2d(c, eps=1e-3)
        self.conv3x1_2 = nn.Conv2d(c, c, (3, 1), padding=(d, 0), dilation=(d, 1))
        self.conv1x3_2 = nn.Conv2d(c, c, (1, 3), padding=(0, d), dilation=(1, d))
        self.bn2 = nn.BatchNorm2d(c, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1x3_1(self.conv3x1_1(x).relu())).relu()
        return (self.bn2(self.conv1x3_2(self.conv3x1_2(y).relu())) + x).relu()


class SeparableBlock(nn.Module):
    def __init__(self, c: int, d: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.depthwise_1 = nn.Conv2d(c, c, 3, padding=1, groups=c)
        self.bn1 = nn.BatchNorm2d(c, eps=1e-3)
        self.pointwise_1 = nn.Conv2d(c, c, 1, groups=groups)
        self.bn2 = nn.BatchNorm2d(c, eps=1e-3)
        self.depthwise_2 = nn.Conv2d(c, c, 3, padding=d, dilation=d, groups=c)
        self.bn3 = nn.BatchNorm2d(c, eps=1e-3)
        self.pointwise_2 = nn.Conv2d(c, c, 1, groups=groups)
        self.bn4 = nn.BatchNorm2d(c, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.pointwise_1(self.bn1(self.depthwise_1(x)).relu())).relu()
        # The shuffle by definition: channel k of group j goes to place k * groups + j.
        c = y.shape[1]
        order = [j * (c // self.groups) + k for k in range(c // self.groups) for j in range(self.groups)]
        y = self.bn4(self.pointwise_2(self.bn3(self.depthwise_2(y[:, order])).relu()))
        return (y + x).relu()


class UpsamplerBlock(nn.Module):
    def __init__(self, inp: int, out: int, light: bool) -> None:
        super().__init__()
        kernel, padding = (1, 0) if light else (3, 1)
        self.conv = nn.ConvTranspose2d(inp, out, kernel, 2, padding, output_padding=1)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


class Encoder(nn.Module):
    def __init__(self, classes: int, block: Callable[[int, int], nn.Module], head: bool) -> None:
        super().__init__()
        self.initial_block = DownsamplerBlock(3, 16)
        self.layers = nn.ModuleList(
            [
                DownsamplerBlock(16, 64),
                *(block(64, 1) for _ in range(5)),
                DownsamplerBlock(64, 128),
                *(block(128, d) for d in (2, 4, 8, 16, 2, 4, 8, 16)),
            ]
        )
        if head:
            self.output_conv = nn.Conv2d(128, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.Sequential(self.initial_block, *self.layers)(x)


class Decoder(nn.Module):
    def __init__(self, classes: int, block: Callable[[int, int], nn.Module], light: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                UpsamplerBlock(128, 64, light),
                *(block(64, 1) for _ in range(2)),
                UpsamplerBlock(64, 16, light),
                *(block(16, 1) for _ in range(2)),
            ]
        )
        self.output_conv = nn.ConvTranspose2d(16, classes, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_conv(nn.Sequential(*self.layers)(x))


class Net(nn.Module):
    def __init__(self, kind: str, classes: int = K, head: bool = True) -> None:
        super().__init__()
        groups = {"erfnet-dg2*": 2, "erfnet-dg4*": 4, "erfnet-dg8*": 8}.get(kind, 1)
        star = kind.endswith("*")
        encoder = NonBottleneck if kind == "erfnet" else lambda c, d: SeparableBlock(c, d, groups)
        self.encoder = Encoder(classes, encoder, head)
        self.decoder = Decoder(classes, (lambda c, d: SeparableBlock(c, d, 1)) if star else NonBottleneck, star)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class Small(nn.Module):
    """What is enough where the architecture does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, K, 1)
        self.last = nn.Conv2d(8, K, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.bn(self.first(x)).relu())
        return F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=False)


class Tiny(SegmentationModel):
    """The same as litheseg has it."""

    training_only = ("aux_head",)

    def __init__(self, num_classes: int, *, aux_head: bool = False, boundary_head: bool = False) -> None:
        super().__init__(num_classes)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.aux_head = nn.Conv2d(8, num_classes, 1) if aux_head else None
        self.classifier = nn.Conv2d(8, num_classes, 1)

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        features = self.stem(image)
        return {"logits": self.classifier(features), "features": features}


_registered = registered(tiny=Tiny)


def network(kind: str = "tiny", **options: Any) -> nn.Module:
    """With random weights and statistics, so that no two tensors are alike; its outputs stay of moderate size."""
    torch.manual_seed(3)
    net = Small() if kind == "tiny" else Net(kind, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.002, 1.0)  # small ones, too: eps must be right
    return net.eval()


def old(net: nn.Module) -> State:
    """As files of 2017 have it: from DataParallel, and before counters."""
    return OrderedDict(
        (f"module.{name}", value) for name, value in net.state_dict().items() if "num_batches" not in name
    )


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return network()


@pytest.fixture
def state(net: nn.Module) -> State:
    return old(net)


@pytest.fixture(scope="module")
def erfnet() -> State:
    return old(network("erfnet"))


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., Bundle]:
    """Save anything with torch.save and import it."""

    def run(content: Any, model: str = "tiny", *, zipped: bool = True, **options: Any) -> Bundle:
        path = tmp_path / "weights.pth"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        mean, std = read_normalisation("none")
        options = {"classes": CLASSES, "mean": mean, "std": std, "size": SIZE, **options}
        return import_weights(path, tmp_path / "out.safetensors", model=model, **options)

    return run


def assert_same(bundle: Bundle, net: nn.Module, size: tuple[int, int] = (64, 96)) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = net(image)
        assert expected.std() > 1e-3  # weights that matter
        torch.testing.assert_close(bundle.plain(1.0)(image), expected)


# --- what is accepted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "head"), [("erfnet", True), ("erfnet", False), ("erfnet-dg4*", True)])
def test_outputs_are_those_of_the_authors_network(kind: str, head: bool, imported: Callable[..., Bundle]) -> None:
    """With and without the classifier on the encoder, which is left out in any case."""
    net = network(kind, head=head)
    bundle = imported(old(net), kind)
    assert_same(bundle, net)
    assert not any("head" in name for name in bundle.state_dict)


@pytest.mark.parametrize("kind", ["erfnet-d", "erfnet-d*", "erfnet-dg2*", "erfnet-dg8*"])
def test_so_are_those_of_the_rest_of_the_family(kind: str, imported: Callable[..., Bundle]) -> None:
    net = network(kind)
    assert_same(imported(old(net), kind), net)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net.state_dict(),  # with counters
        lambda net: {"epoch": 3, "arch": "tiny", "state_dict": old(net), "optimizer": {"lr": 0.1}},
        lambda net: {"model": net.state_dict()},
        lambda net: {"model": {"state_dict": old(net)}},
        lambda net: {f"{index}": value for index, value in enumerate(old(net).values())},  # any names
        lambda net: {name: value.double() for name, value in old(net).items()},
        lambda net: {name: nn.Parameter(value) for name, value in old(net).items()},
    ],
)
def test_the_usual_wrappings(wrap: Callable[[nn.Module], Any], net: nn.Module, imported: Callable[..., Bundle]) -> None:
    assert_same(imported(wrap(net)), net)


def test_a_file_from_before_zip_archives(net: nn.Module, state: State, imported: Callable[..., Bundle]) -> None:
    assert_same(imported(state, zipped=False), net)


def test_own_names_go_before_order(net: nn.Module, tmp_path: Path, imported: Callable[..., Bundle]) -> None:
    """A state dict of litheseg's, sorted by name, and as safetensors, which keep no order at all."""
    model = build_model("tiny", K, aux_head=True)
    names = [name for name in model.state_dict() if "num_batches" not in name]
    own = dict(sorted(zip(names, old(net).values(), strict=True)))
    assert_same(imported(own), net)
    path = tmp_path / "own.safetensors"
    save_file({f"module.{name}": value.clone() for name, value in own.items()}, path)
    mean, std = read_normalisation("none")
    bundle = import_weights(path, tmp_path / "b", model="tiny", classes=CLASSES, mean=mean, std=std, size=SIZE)
    assert bundle.path == tmp_path / "b.safetensors"
    assert_same(bundle, net)


def test_arguments_of_the_architecture(imported: Callable[..., Bundle]) -> None:
    """Light upsampling (transposed) does not pass for bilinear (a convolution): their weights have other shapes."""
    with pytest.raises(BundleError, match=r"128x64x1x1 in the file, 'decoder.0.conv.weight' 64x128x1x1 in the model"):
        imported(old(network("erfnet-d*")), "erfnet-d*", args={"up": "bilinear"})
    model = build_model("erfnet-d*", K, up="bilinear").eval()
    assert_same(imported(old(model), "erfnet-d*", args={"up": "bilinear"}), model)


def test_the_header_says_what_the_weights_are(state: State, tmp_path: Path, imported: Callable[..., Bundle]) -> None:
    imported(state, source_note="example.org, 2019", licence="CC-BY-4.0", args={"aux_head": True})
    header = load_bundle(tmp_path / "out.safetensors").header
    assert (header.mean, header.std, header.size, header.resizes) == ((0, 0, 0), (1, 1, 1), SIZE, True)
    assert header.architecture["name"] == "tiny" and not header.architecture["args"]["aux_head"]
    assert header.classes == CLASSES and header.available_widths == (1.0,)
    facts = header.provenance
    assert facts["weights"] == "imported" and facts["weights_file"] == "weights.pth"
    assert facts["weights_sha256"] == hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    assert (facts["source_note"], facts["weights_licence"]) == ("example.org, 2019", "CC-BY-4.0")


def test_metrics_hold_the_published_costs_and_no_scores(tmp_path: Path) -> None:
    torch.save(old(network("erfnet", classes=20)), tmp_path / "w.pth")
    mean, std = read_normalisation("imagenet")
    classes = read_classes("cityscapes", ["void"])
    bundle = import_weights(
        tmp_path / "w.pth", tmp_path / "b.safetensors", model="erfnet", classes=classes, mean=mean, std=std
    )
    assert bundle.header.metrics == {"1": {"params": 2_064_256, "macs": 26_612_727_808}}
    assert bundle.header.mean == (0.485, 0.456, 0.406)


def test_a_predictor_runs_it(net: nn.Module, state: State, imported: Callable[..., Bundle]) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    with torch.no_grad():
        expected = net(torch.from_numpy(photo / np.float32(255)).permute(2, 0, 1)[None])[0].argmax(0)
    mask = Predictor(imported(state))(photo)
    assert (mask == expected.numpy()).mean() > 0.999
    assert len(np.unique(mask)) > 1


# --- what is refused -------------------------------------------------------------------------------------------------


def swapped(state: State, first: str, second: str) -> State:
    """Two entries with their names at each other's place."""
    other = {f"module.{first}": f"module.{second}", f"module.{second}": f"module.{first}"}
    return {other.get(name, name): state[other.get(name, name)] for name in state}


def without(state: State, name: str) -> State:
    return {key: value for key, value in state.items() if key != f"module.{name}"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        # another order: of shapes, and of kinds among equal shapes
        (
            lambda s: swapped(s, "encoder.initial_block.conv.weight", "encoder.initial_block.conv.bias"),
            r"number 1: 'encoder.initial_block.conv.bias' 13 in the file, 'encoder.0.conv.weight' 13x3x3x3 in the",
        ),
        (
            lambda s: swapped(s, "encoder.initial_block.bn.weight", "encoder.initial_block.bn.bias"),
            r"number 3: 'encoder.initial_block.bn.bias' 16 in the file, 'encoder.0.norm.weight' 16 in the model",
        ),
        # the last one missing, one in the middle missing, one more
        (
            lambda s: without(s, "decoder.output_conv.bias"),
            r"holds 305 tensors, 'erfnet' with 5 classes 306 .* number 306: nothing in the file, 'classifier.bias' 5",
        ),
        (
            lambda s: without(s, "encoder.layers.3.bn1.bias"),
            r"305 tensors.* number \d+: 'encoder.layers.3.bn1.running_mean' 64 in the file, 'encoder.4.norm1.bias'",
        ),
        (
            lambda s: {**s, "module.extra.weight": torch.ones(2, 3)},
            r"holds 307 tensors, .* 306 .* number 307: 'extra.weight' 2x3 in the file, nothing in the model",
        ),
        # shape, type, values
        (
            lambda s: {**s, "module.decoder.layers.0.conv.weight": torch.ones(128, 64, 1, 1)},
            r"'decoder.layers.0.conv.weight' 128x64x1x1 in the file, 'decoder.0.conv.weight' 128x64x3x3 in the model",
        ),
        (
            lambda s: {**s, "module.decoder.output_conv.bias": torch.ones(K, dtype=torch.int64)},
            r"number 306: 'decoder.output_conv.bias' 5 int64 in the file, 'classifier.bias' 5 in the model",
        ),
        (
            lambda s: {**s, "module.decoder.output_conv.bias": torch.full((K,), torch.nan)},
            r"'decoder.output_conv.bias' holds infinite or undefined numbers",
        ),
        (
            lambda s: {
                f"{i}": v
                for i, v in enumerate(
                    swapped(s, *(f"encoder.initial_block.bn.running_{k}" for k in ("mean", "var"))).values()
                )
            },
            r"'5' is negative where 'encoder.0.norm.running_var' of the model, a variance, is expected",
        ),
        # no state dict of dense tensors
        (lambda s: {**s, "epoch": 3}, r"holds 'epoch' \(int\), which is no tensor; .*state_dict\(\)"),
        (lambda s: [*s.values()], r"holds no tensors by name, but list"),
        (lambda s: {}, r"holds no tensors by name"),
        (lambda s: {"w": torch.ones(3, device="meta")}, r"'w' is sparse, quantised or without data"),
    ],
)
def test_whatever_does_not_fit_is_refused_whole(
    spoil: Callable[[State], Any], message: str, erfnet: State, tmp_path: Path, imported: Callable[..., Bundle]
) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        imported(spoil(erfnet), "erfnet")
    assert str(tmp_path / "weights.pth") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


def test_another_architecture_is_refused(erfnet: State, imported: Callable[..., Bundle]) -> None:
    with pytest.raises(
        BundleError, match=r"'encoder.layers.1.conv3x1_1.weight' 64x64x3x1 in the file, 'encoder.2.conv1"
    ):
        imported(erfnet, "erfnet-dg4*")
    with pytest.raises(
        BundleError, match=r"'encoder.layers.1.pointwise_1.weight' 64x32x1x1 in the file, .* 64x16x1x1 in"
    ):
        imported(old(network("erfnet-dg2*")), "erfnet-dg4*")
    with pytest.raises(ModelError, match="Did you mean 'erfnet-d"):
        imported(erfnet, "erfnet-dd")


@pytest.mark.parametrize("head", [True, False])
def test_the_number_of_classes_must_be_the_files(head: bool, imported: Callable[..., Bundle]) -> None:
    state = old(network("erfnet", classes=20, head=head))
    for classes, message in (
        (
            CITYSCAPES_CLASSES,
            r"has 20 outputs, but 19 classes are given; .*the one output more with --extra-class NAME",
        ),
        (CLASSES, r"has 20 outputs, but 5 classes are given; .*each of the 15 others with --extra-class"),
        (VOC_CLASSES, r"has 20 outputs, but 21 classes are given; give the classes that it was trained with$"),
    ):
        with pytest.raises(BundleError, match=message):
            imported(state, "erfnet", classes=classes)


class Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_the_file_is_run(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imported: Callable[..., Bundle]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=r"weights.pth would run 'posix.mkdir' when it is read, which is refused"):
        imported({"state_dict": {"a": Command()}}, zipped=zipped)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(BundleError, match=r"would run '.*UpsamplerBlock'.*save its state_dict\(\) alone"):
        imported(UpsamplerBlock(3, 4, True), zipped=zipped)  # a whole module is code, too


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files(zipped: bool, state: State, tmp_path: Path, imported: Callable[..., Bundle]) -> None:
    imported(state, zipped=zipped)
    content = (tmp_path / "weights.pth").read_bytes()
    path = tmp_path / "damaged.pth"
    mean, std = read_normalisation("none")
    for damaged in (content[:-40], content[:300], content[:9], b"", b"<html>not found</html>"):
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=r"damaged\.pth") as caught:
            import_weights(path, tmp_path / "x", model="tiny", classes=CLASSES, mean=mean, std=std)
        assert "\n" not in str(caught.value) and "damaged" in str(caught.value).replace("damaged.pth", "")
    with pytest.raises(BundleError, match=r"cannot read .*nothing\.pth: No such file"):
        import_weights(tmp_path / "nothing.pth", tmp_path / "x", model="tiny", classes=CLASSES, mean=mean, std=std)


def test_safetensors_without_the_models_names(net: nn.Module, tmp_path: Path) -> None:
    mean, std = read_normalisation("none")
    path = tmp_path / "w.safetensors"
    state = {name: value.clone() for name, value in net.state_dict().items()}
    for content, message in (
        (state, r"has '.*', unlike 'tiny': a \.safetensors file keeps no order"),
        ({"stem.0.bias": torch.ones(8)}, r"lacks 'stem\.0\.weight', unlike 'tiny'"),
    ):
        save_file(content, path)
        with pytest.raises(BundleError, match=message):
            import_weights(path, tmp_path / "x", model="tiny", classes=CLASSES, mean=mean, std=std)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BundleError, match="corrupted or truncated"):
        import_weights(path, tmp_path / "x", model="tiny", classes=CLASSES, mean=mean, std=std)


def test_an_existing_output_is_kept_unless_forced(
    net: nn.Module, state: State, tmp_path: Path, imported: Callable[..., Bundle]
) -> None:
    (tmp_path / "out.safetensors").write_text("precious")
    with pytest.raises(LithesegError, match=r"out\.safetensors exists; .*--force"):
        imported(state)
    with pytest.raises(BundleError):
        imported(without(state, "last.bias"), force=True)
    assert (tmp_path / "out.safetensors").read_text() == "precious"
    assert_same(imported(state, force=True), net)


# --- classes and normalisation ---------------------------------------------------------------------------------------


def test_classes_from_everywhere(tmp_path: Path) -> None:
    assert read_classes("voc") == VOC_CLASSES
    assert read_classes("road, car,sky").names == ("road", "car", "sky")
    (tmp_path / "names.txt").write_text("road\n\ncar\n")
    assert read_classes(str(tmp_path / "names.txt")).names == ("road", "car")
    (tmp_path / "names.json").write_text(json.dumps(["road", {"name": "car", "color": [1, 2, 3]}]))
    assert read_classes(str(tmp_path / "names.json")).colors[1] == (1, 2, 3)
    (tmp_path / "names.yaml").write_text('classes: [{name: road, color: "#0a0b0c"}, car]')
    assert read_classes(str(tmp_path / "names.yaml")).colors[0] == (10, 11, 12)
    twenty = read_classes("cityscapes", ["void"])
    assert twenty.names[-2:] == ("bicycle", "void") and twenty.colors[-1] == (0, 0, 0)
    with pytest.raises(DataError, match="Did you mean 'cityscapes'"):
        read_classes("cityscape")
    with pytest.raises(DataError, match="'car' occurs twice"):
        read_classes("road,car", ["car"])


def test_normalisation_is_never_guessed() -> None:
    assert read_normalisation(None, (0.5, 0.5, 0.5), (1, 1, 1)) == ((0.5, 0.5, 0.5), (1, 1, 1))
    for given in ((), (None, (0, 0, 0)), ("none", (0, 0, 0), (1, 1, 1))):
        with pytest.raises(LithesegError, match="--normalisation"):
            read_normalisation(*given)
    with pytest.raises(LithesegError, match="Did you mean 'imagenet'"):
        read_normalisation("imagenets")


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(state, tmp_path / "erfnet.pth")
    output = tmp_path / "erfnet.safetensors"
    command = ["import-weights", str(tmp_path / "erfnet.pth"), "--model", "tiny", "--output", str(output)]
    classes = ["--classes", "road,car,sky,tree", "--extra-class", "void", "--size", "32x64"]
    assert cli.main([*command, *classes, "--mean", ".5,.4,.3", "--std=1,1,2", "--source-note", "a friend"]) == 0
    text = capsys.readouterr().out
    assert "5 classes (road ... void)" in text
    header = load_bundle(output).header
    assert (header.mean, header.std, header.size) == ((0.5, 0.4, 0.3), (1, 1, 2), SIZE)
    assert header.provenance["source_note"] == "a friend"
    for options, message in (
        ([*classes, "--normalisation", "none"], "--force"),
        ([*classes, "--force"], "--normalisation imagenet"),
        (["--classes", "road,car", "--normalisation", "none", "--force"], "5 outputs"),
        ([*classes, "--normalisation", "none", "--mean", "0,0,0", "--force"], "either --normalisation"),
        ([*classes, "--mean", "0,0", "--std", "1,1", "--force"], "3 values"),
        ([*classes, "--normalisation", "none", "--args", "up", "--force"], "is no mapping"),
        ([*classes, "--normalisation", "none", "--args", "{up: light}", "--force"], "litheseg models tiny"),
    ):
        assert cli.main([*command, *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert load_bundle(output).header == header


def test_help_teaches_the_star(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import-weights", "--help"]) == 0
    text = capsys.readouterr().out
    assert '--model "erfnet-d*"' in text and "--extra-class void" in text and "examples:" in text
