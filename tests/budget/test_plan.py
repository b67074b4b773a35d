from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from litheseg.budget.plan import Geometry, Plan, Spot, geometries, load_plan, measure_layers
from litheseg.errors import LithesegError
from litheseg.masks.classes import Classes
from litheseg.models import build_model
from litheseg.models.bundle import Bundle, BundleHeader
from litheseg.nn import extract, slim
from litheseg.nn.efficient import Efficient
from litheseg.nn.surgery import grouped_layers

SPOT = Spot(1.0, (32, 48), "torch", 1)


def network(width: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    model = build_model("ddrnet", num_classes=5, base=8, efficient=Efficient(groups=2, where="encoder,3x3"))
    return extract(slim(model, (1.0, 0.5)), width)


def test_geometries_are_those_that_run() -> None:
    module = network()
    seen: dict[str, tuple[int, ...]] = {}
    for name, layer in grouped_layers(module).items():
        layer.register_forward_hook(lambda _, args, out, name=name: seen.update({name: tuple(args[0].shape[-2:])}))
    found = geometries(module, (32, 48))
    module(torch.randn(1, 3, 32, 48))
    assert {name: geometry.size for name, geometry in found.items()} == seen and seen
    for name, geometry in found.items():
        layer = module.get_submodule(name)
        assert (geometry.in_channels, geometry.groups, geometry.padding) == (layer.in_channels, 2, (1, 1))


def known(cost: Callable[[nn.Conv2d, Geometry], float]) -> Any:
    """`opened` of `measure_layers` with a clock of its own: a call returns the milliseconds that it pretends."""
    return lambda layer, geometry, runtime, threads: lambda: cost(layer, geometry)


FAKE: dict[str, Any] = {"timed": lambda call: call(), "warmup": 0, "repeats": 3}


def test_layers_whose_grouped_kernel_is_slower_stay_dense(tmp_path: Path) -> None:
    module, plan = network(), Plan("digest")
    heights = sorted({geometry.size[0] for geometry in geometries(module, SPOT.size).values()})
    opened = known(lambda layer, g: 3.0 if layer.groups == 1 else (2.0 if g.size[0] == heights[-1] else 5.0))
    plan.measure(module, SPOT, opened=opened, **FAKE)
    dense = plan.dense(SPOT)
    expected = [name for name, g in geometries(module, SPOT.size).items() if g.size[0] != heights[-1]]
    assert list(dense) == expected and dense
    assert plan.dense(SPOT._replace(threads=2)) == ()
    plan.save(tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json", "digest")
    assert again.entries == plan.entries and again.dense(SPOT) == dense and again.host == plan.host


def test_a_known_spot_is_not_measured_again() -> None:
    module, plan = network(), Plan()
    plan.measure(module, SPOT, opened=known(lambda layer, _: float(layer.groups)), **FAKE)
    plan.measure(module, SPOT, opened=known(lambda *_: 1 / 0), **FAKE)
    assert set(plan.dense(SPOT)) == set(grouped_layers(module))


def test_a_hair_does_not_make_a_layer_dense() -> None:
    geometry = Geometry(8, 8, (3, 3), (1, 1), (1, 1), (1, 1), 2, (8, 8))
    for cost, dense in ((9.8, False), (9.5, True)):
        [times] = measure_layers(
            [geometry], "torch", 1, opened=known(lambda layer, _, c=cost: c if layer.groups == 1 else 10.0), **FAKE
        ).values()
        assert times.dense == dense


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_every_runtime_times_a_layer(runtime: str) -> None:
    pytest.importorskip(runtime)
    if runtime != "torch":
        pytest.importorskip("onnx")
    geometry = Geometry(8, 12, (3, 1), (1, 2), (1, 0), (1, 1), 4, (9, 10))
    [times] = measure_layers([geometry], runtime, 1, repeats=2, warmup=1).values()
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
        load_plan(tmp_path / "plan.json", "digest")
    with pytest.raises(LithesegError, match="no plan"):
        load_plan(tmp_path / "nothing.json", "digest")


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
