"""A few bytes that ask for a network of terabytes cost next to nothing; honest files lose nothing."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from registry import registered
from torch import Tensor, nn

from litheseg.errors import BundleError, ModelError
from litheseg.masks.classes import Classes
from litheseg.models import SegmentationModel, build_model
from litheseg.models.blueprint import build_within
from litheseg.models.bundle import Bundle, BundleHeader, load_bundle, save_bundle
from litheseg.nn import recalibrate, slim
from litheseg.nn.efficient import Efficient

CLASSES = Classes.from_names(["a", "b", "c"])
PLAIN = {"aux_head": False, "boundary_head": False}
ARCHITECTURES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("ddrnet", {"base": 8}, {}),
    ("ddrnet", {"base": 8, "rep_blocks": True}, {}),
    ("ddrnet", {"base": 16}, {"kind": "separable", "where": "3x3"}),
    ("ddrnet", {"base": 16}, {"kind": "grouped", "groups": 0, "where": "1x1|3x3"}),
    ("erfnet", {}, {}),
    ("deeplabv3plus", {"encoder": "mobilenetv3_small_100", "channels": 32}, {}),
    ("deeplabv3plus", {"encoder": "resnetblur18", "channels": 32}, {}),  # computes a buffer that is not stored
]


class _Filter(SegmentationModel):
    """A buffer that no file holds, and one parameter with two names."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("blur", torch.full((3, 1, 3, 3), 1 / 9), persistent=False)
        self.first = nn.Conv2d(3, num_classes, 1)
        self.second = nn.Conv2d(num_classes, num_classes, 1)
        self.third = nn.Conv2d(num_classes, num_classes, 1)
        self.third.weight = self.second.weight

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        blurred = nn.functional.conv2d(image, self.blur, padding=1, groups=3)
        features = self.second(self.first(blurred))
        return {"logits": self.third(features), "features": features}


_registered = registered(filter=lambda num_classes, **_: _Filter(num_classes))


def _bundle(
    name: str, args: dict[str, Any], efficient: dict[str, Any], widths: tuple[float, ...] = (1.0,)
) -> tuple[SegmentationModel, Bundle]:
    torch.manual_seed(0)
    model = build_model(name, 3, efficient=Efficient(**efficient), **args, **PLAIN).eval()
    if widths != (1.0,):
        slim(model, widths)
    architecture = {"name": name, "args": args, **({"efficient": efficient} if efficient else {})}
    return model, Bundle(BundleHeader(architecture, CLASSES, widths=widths), model.state_dict())


@pytest.mark.parametrize(("name", "args", "efficient"), ARCHITECTURES, ids=str)
def test_the_network_of_a_file_is_the_one_that_was_saved(
    name: str, args: dict[str, Any], efficient: dict[str, Any]
) -> None:
    model, bundle = _bundle(name, args, efficient)
    image = torch.rand(1, 3, 64, 64)
    loaded = bundle.model()
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image), model(image), rtol=0, atol=0)


def test_buffers_that_no_file_holds_and_shared_parameters() -> None:
    model, bundle = _bundle("filter", {}, {})
    loaded, image = bundle.model(), torch.rand(1, 3, 8, 8)
    assert torch.equal(loaded(image), model(image)) and loaded.second.weight is loaded.third.weight


def test_a_network_of_many_widths(tmp_path: Path) -> None:
    model = build_model("ddrnet", 3, base=8, **PLAIN)
    slim(model, [1.0, 0.5])
    extra = (0.6, 0.7, 0.8)
    recalibrate(model, [torch.rand(2, 3, 64, 64)], extra)
    header = BundleHeader({"name": "ddrnet", "args": {"base": 8}}, CLASSES, widths=model.width_dial.widths)
    header = dataclasses.replace(header, calibrated_widths=model.width_dial.calibrated)
    save_bundle(tmp_path / "model", model, header)
    assert load_bundle(tmp_path / "model.safetensors").plain(extra[-1]) is not None


@pytest.fixture(scope="module")
def small() -> Bundle:
    return _bundle("ddrnet", {"base": 8}, {}, (1.0, 0.5))[1]


@pytest.mark.parametrize(
    "change",
    [
        {"args": {"base": 4096}},
        {"args": {"base": 10**6}},
        {"args": {"base": 8, "head_channels": 10**6}},
        {"args": {"base": 8, "head_channels": 10**12}},
        {"args": {"base": 8, "blocks": 10**9}},
        {"args": {"base": 8, "head_channels": 10**5}, "efficient": {"kind": "grouped", "groups": 0, "where": "3x3"}},
        {"name": "deeplabv3plus", "args": {"encoder": "resnet101", "channels": 10**5}},
        {"num_classes": 254, "args": {"base": 64}},
    ],
    ids=str,
)
def test_arguments_that_ask_for_more_than_there_is(small: Bundle, change: dict[str, Any]) -> None:
    classes = Classes.from_names(f"c{i}" for i in range(change.pop("num_classes", 3)))
    header = dataclasses.replace(small.header, architecture={"name": "ddrnet", **change}, classes=classes)
    few = dict(itertools.islice(small.state_dict.items(), 50))  # what may be made is measured by what there is
    with _measured() as memory, pytest.raises(BundleError, match=r"cannot be built .*larger network than"):
        Bundle(header, few).model()
    assert memory.most < 50e6


@pytest.mark.parametrize("field", ["widths", "calibrated_widths"])
def test_widths_that_are_not_in_the_file(small: Bundle, field: str) -> None:
    many = tuple(0.51 + 0.48 * index / 500 for index in range(500))
    changed = {"widths": (1.0, *many, 0.5)} if field == "widths" else {"calibrated_widths": many}
    with pytest.raises(BundleError, match="larger network than"):
        Bundle(dataclasses.replace(small.header, **changed), small.state_dict).model()


def test_what_is_built_has_memory_and_costs_what_was_counted() -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))

    weights = {"weight": torch.zeros(200), **{str(index): torch.zeros(8) for index in range(11)}}
    assert build_within(weights, build, widths=4)(torch.rand(2, 3, 5, 5)).shape == (2, 8, 3, 3)
    with pytest.raises(ModelError, match="larger network than 288 numbers in 12 tensors can fill"):
        build_within(weights, build, widths=20)


def test_layers_that_are_made_later_are_left_alone() -> None:
    with pytest.raises(ModelError):
        build_within({}, lambda: nn.Linear(10**6, 10**6))
    assert not nn.Linear(2, 2).weight.is_meta


class _Memory:
    most = 0


class _measured:
    """What Python and NumPy allocate, and what PyTorch's CPU allocator hands out."""

    def __enter__(self) -> _Memory:
        self._memory = _Memory()
        self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        tracemalloc.start()
        self._profiler.__enter__()
        return self._memory

    def __exit__(self, *details: Any) -> None:
        self._profiler.__exit__(*details)
        made = sum(max(0, event.cpu_memory_usage) for event in self._profiler.events())
        self._memory.most = tracemalloc.get_traced_memory()[1] + made
        tracemalloc.stop()
