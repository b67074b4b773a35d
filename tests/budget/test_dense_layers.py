from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from litheseg.budget import dense_layers as room
from litheseg.budget.candidates import Candidate, Variant
from litheseg.budget.dense_layers import DensePlan, grouped_inputs, time_layer, timed_layers
from litheseg.errors import LithesegError
from litheseg.masks.classes import Classes
from litheseg.models import build_model
from litheseg.models.bundle import Bundle, BundleHeader
from litheseg.nn import extract, slim
from litheseg.nn.efficient import Efficient
from litheseg.nn.surgery import grouped_layers

HERE = Candidate(Variant(1.0, (32, 48), "fp32"), "onnxruntime", 1)


def network(width: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    model = build_model("ddrnet", num_classes=5, base=8, efficient=Efficient(groups=2, where="encoder,3x3"))
    return extract(slim(model, (1.0, 0.5)), width)


def test_inputs_are_those_that_run() -> None:
    module = network()
    seen: dict[str, tuple[int, ...]] = {}
    for name, layer in grouped_layers(module).items():
        layer.register_forward_hook(lambda _, args, out, name=name: seen.update({name: tuple(args[0].shape[-2:])}))
    found = grouped_inputs(module, (32, 48))
    module(torch.randn(1, 3, 32, 48))
    assert {name: size for name, (_, size) in found.items()} == seen and seen
    assert all(layer is module.get_submodule(name) and layer.groups == 2 for name, (layer, _) in found.items())


def test_depthwise_kernels_are_not_timed() -> None:
    kinds = {"wide": (8, 3), "grouped": (2, 3), "dense": (1, 3), "scales": (8, 1)}
    layers = {name: nn.Conv2d(8, 8, size, padding=size // 2, groups=groups) for name, (groups, size) in kinds.items()}
    assert list(timed_layers(nn.ModuleDict(layers))) == ["grouped", "scales"]


FAKE: dict[str, Any] = {"timed": lambda call: call(), "warmup": 0, "repeats": 3}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[nn.Conv2d, tuple[int, int]], float]], None]:
    """Sets what a layer takes in place of real passes: a pass returns the milliseconds that it pretends."""

    def takes(cost: Callable[[nn.Conv2d, tuple[int, int]], float]) -> None:
        monkeypatch.setattr(room, "open_layer", lambda layer, size, runtime, threads: lambda: cost(layer, size))

    return takes


def test_layers_whose_grouped_kernel_is_slower_stay_dense(tmp_path: Path, clock: Any) -> None:
    module, plan = network(), DensePlan("digest")
    sizes = {name: size for name, (_, size) in grouped_inputs(module, HERE.network.size).items()}
    highest = max(size[0] for size in sizes.values())
    clock(lambda layer, size: 3.0 if layer.groups == 1 else (2.0 if size[0] == highest else 5.0))
    plan.measure(module, HERE, **FAKE)
    dense = plan.dense(HERE)
    assert list(dense) == [name for name, size in sizes.items() if size[0] != highest] and dense
    assert plan.dense(replace(HERE, threads=2)) == ()
    assert plan.dense(replace(HERE, network=HERE.network._replace(precision="int8"))) == dense
    plan.save(tmp_path / "plan.json")
    again = DensePlan.load(tmp_path / "plan.json", "digest")
    assert again.entries == plan.entries and again.dense(HERE) == dense and again.host == plan.host


def test_a_known_candidate_is_not_measured_again(clock: Any) -> None:
    module, plan = network(), DensePlan()
    clock(lambda layer, _: float(layer.groups))
    plan.measure(module, HERE, **FAKE)
    clock(lambda *_: 1 / 0)
    plan.measure(module, HERE, **FAKE)
    assert set(plan.dense(HERE)) == set(grouped_layers(module))


def test_what_was_measured_is_saved_at_once(tmp_path: Path, clock: Any) -> None:
    module, plan = network(), DensePlan("digest", file=tmp_path / "plan.json")
    clock(lambda layer, _: float(layer.groups))
    plan.measure(module, HERE, **FAKE)
    assert DensePlan.load(tmp_path / "plan.json", "digest").entries == plan.entries


def test_a_hair_does_not_make_a_layer_dense(clock: Any) -> None:
    for cost, dense in ((9.8, False), (9.5, True)):
        clock(lambda layer, _, cost=cost: cost if layer.groups == 1 else 10.0)
        assert time_layer(nn.Conv2d(8, 8, 3, groups=2), (8, 8), "onnxruntime", 1, **FAKE).dense == dense


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_every_runtime_times_a_layer(runtime: str) -> None:
    pytest.importorskip(runtime)
    pytest.importorskip("onnx")
    layer = nn.Conv2d(8, 12, (3, 1), (1, 2), (1, 0), groups=4)
    times = time_layer(layer, (9, 10), runtime, 1, repeats=2, warmup=1)
    assert times.grouped_ms > 0 and times.dense_ms > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "no plan"),
        ("[]", "no plan"),
        (json.dumps({"litheseg": "kit", "version": 1}), "no plan"),
        (json.dumps({"litheseg": "plan", "version": 99}), "version 99"),
        (json.dumps({"litheseg": "plan", "version": 1, "model": "other", "host": {}, "entries": []}), "another model"),
    ],
)
def test_plans_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(LithesegError, match=message):
        DensePlan.load(tmp_path / "plan.json", "digest")
    with pytest.raises(LithesegError, match="no plan"):
        DensePlan.load(tmp_path / "nothing.json", "digest")


def test_a_bundle_gives_its_layers_dense_where_it_is_told_to() -> None:
    efficient = Efficient(groups=2, where="encoder,3x3")
    heads = {"aux_head": False, "boundary_head": False}
    model = slim(build_model("ddrnet", 5, base=8, efficient=efficient, **heads), (1.0, 0.5))
    architecture = {"name": "ddrnet", "args": {"base": 8}, "efficient": vars(efficient)}
    classes = Classes(tuple("abcde"), tuple((i, i, i) for i in range(5)))
    bundle = Bundle(BundleHeader(architecture, classes, widths=(1.0, 0.5)), model.state_dict())
    names = tuple(grouped_layers(bundle.plain(0.5)))
    plain, dense = bundle.plain(0.5), replace(bundle, dense=names[:2]).plain(0.5)
    assert set(grouped_layers(plain)) - set(grouped_layers(dense)) == set(names[:2])
    image = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(dense(image), plain(image))
