"""What every registered architecture must do. `models/test_contract.py` runs it for all entries of `MODELS`.

A check takes a `Case` and asserts; `CHECKS` lists them. Sizes are tiny: a check costs well under a second.

Usage:
    >>> extract_equals_slice(Case("erfnet"))
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from litheseg.cost import counting
from litheseg.models import SegmentationModel, build_model
from litheseg.nn import available_widths, extract, get_width, set_width, slim
from litheseg.nn.efficient import Efficient, make_efficient
from litheseg.nn.grouping import GradualConv2d, convert, densify, fade, gradual_layers

CLASSES = 5
SIZE = (64, 96)
ODD_SIZE = (65, 97)
WIDTHS = (1.0, 0.5, 0.25)

# Operators of convolutions and linear layers; the products within attention are no layer's.
_OF_LAYERS = (torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm)

_ELASTIC: dict[str, SegmentationModel] = {}


@dataclass(frozen=True)
class Case:
    """An architecture at a size that a test can afford.

    Attributes:
        name: its entry in `MODELS`.
        arguments: for its factory, beside the number of classes and the two heads.
        divisor: of the channel counts; small where the network is.
        widths: that it is slimmed to, each half of the one before, at most; (1.0,) where groups allow no other.
        efficient: what it is made for the check of grouping; without change where it is grouped by itself.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    divisor: int = 8
    widths: tuple[float, ...] = WIDTHS
    efficient: Efficient = field(default_factory=lambda: Efficient(groups=2))

    @property
    def middle(self) -> float:
        """One width, for checks that need no more: 0.5 of (1, 0.5, 0.25)."""
        return self.widths[len(self.widths) // 2]

    def plain(self, heads: bool = True, seed: int = 0) -> SegmentationModel:
        """The model in eval mode, with norms that are not the identity."""
        torch.manual_seed(seed)
        model = build_model(self.name, CLASSES, aux_head=heads, boundary_head=heads, **self.arguments)
        return shake(model).eval()

    def elastic(self) -> SegmentationModel:
        """The slimmed model in eval mode; every width has norms of its own. Made once: checks leave it as it was."""
        key = repr(self)
        if key not in _ELASTIC:
            _ELASTIC[key] = shake(slim(self.plain(), self.widths, divisor=self.divisor)).eval()
        set_width(_ELASTIC[key], 1.0)
        return _ELASTIC[key]


def shake(model: nn.Module) -> nn.Module:
    """Give batch norms, and what scales or shifts channels, values that a mix-up would show."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) or not hasattr(module, "weight"):
            for value in module.parameters(recurse=False):  # a layer scale of 1e-5 would silence its branch
                value.data.uniform_(0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d):
            for low, values in ((0.5, (module.weight, module.running_var)), (-0.2, (module.bias, module.running_mean))):
                for value in values:
                    value.data.uniform_(low, low + 1 if low > 0 else -low)
    return model


def image(size: tuple[int, int] = SIZE, batch: int = 2) -> Tensor:
    """Reproducible noise, N x 3 x H x W."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def same(actual: Tensor, expected: Tensor) -> None:
    """Equal up to float32 rounding of a deep network."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def no_grad() -> AbstractContextManager[None]:
    return torch.no_grad()


class Used(TorchFunctionMode):
    """Counts what a forward pass really touches: elements of weights, and multiply-accumulates from their shapes.

    It looks at the operands that reach the operators and so owes nothing to the code that slices them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parameters = self.macs = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.conv2d, torch.conv_transpose2d, nn.functional.linear):
            pixels = args[0] if func is torch.conv_transpose2d else result
            channels = pixels.shape[-1 if func is nn.functional.linear else 1]
            self.macs += args[1].numel() * pixels.numel() // channels
            bias = args[2] if len(args) > 2 else None
            self.parameters += args[1].numel() + (0 if bias is None else bias.numel())
        if func is nn.functional.batch_norm:  # scale and shift
            self.parameters += 2 * args[0].shape[1]
        if func is nn.functional.layer_norm:
            self.parameters += 2 * args[0].shape[-1]
        return result


def plain_forward_and_backward(case: Case) -> None:
    """All outputs have the promised shapes, and every parameter learns."""
    model = case.plain().train()
    outputs = model.outputs(image())
    assert set(outputs) == {"logits", "features", "aux", "boundary"}
    assert outputs["logits"].shape[:2] == outputs["aux"].shape[:2] == (2, CLASSES)
    assert outputs["boundary"].shape[:2] == (2, 1)
    assert outputs["features"].shape[0] == 2
    assert model(image()).shape == (2, CLASSES, *SIZE)
    sum(outputs[name].square().mean() for name in ("logits", "aux", "boundary")).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []
    assert all(bool(value.grad.isfinite().all()) for value in model.parameters())


def heads_are_for_training(case: Case) -> None:
    """In eval mode and without heads there are logits and features, and `training_only` names the heads."""
    model = case.plain()
    assert set(model.outputs(image())) == {"logits", "features"}
    without = case.plain(heads=False)
    assert set(without.train().outputs(image())) == {"logits", "features"}
    children = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert children - {name.split(".")[0] for name, _ in without.named_parameters()} == set(model.training_only)


def every_width_learns(case: Case) -> None:
    """Each width trains; only features shrink; the other widths' norms do not move."""
    model = copy.deepcopy(case.elastic()).train()
    assert available_widths(model) == case.widths
    depths, moved = [], []
    for width in case.widths:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        set_width(model, width)
        assert get_width(model) == width
        outputs = model.outputs(image())
        assert outputs["logits"].shape[:2] == outputs["aux"].shape[:2] == (2, CLASSES)
        depths.append(outputs["features"].shape[1])
        sum(outputs[name].square().mean() for name in ("logits", "aux", "boundary")).backward()
        assert any(bool(value.grad.any()) for value in model.parameters() if value.grad is not None)
        model.zero_grad(set_to_none=True)
        moved.append({name for name, value in model.state_dict().items() if not torch.equal(value, before[name])})
    assert all(moved) and len(set().union(*moved)) == sum(map(len, moved))
    assert depths == sorted(depths, reverse=True)
    assert len(set(depths)) > 1 or len(depths) == 1


def full_width_equals_the_plain_model(case: Case) -> None:
    """Slimming changes nothing at width 1, whether weights are loaded before or after; all widths' weights load too."""
    plain, state, other = case.plain(), case.plain(seed=7).state_dict(), case.elastic()
    elastic = slim(copy.deepcopy(plain), case.widths, divisor=case.divisor).eval()
    with no_grad():
        assert torch.equal(elastic(image()), plain(image()))
        plain.load_state_dict(state)
        elastic.load_state_dict(state)
        assert torch.equal(elastic(image()), plain(image()))
        elastic.load_state_dict(other.state_dict())
        for width in case.widths:
            set_width(elastic, width)
            set_width(other, width)
            assert torch.equal(elastic(image()), other(image()))


def extract_equals_slice(case: Case) -> None:
    """The stand-alone network of a width computes what the elastic one does, also at sizes that no stride divides."""
    model = case.elastic()
    with no_grad():
        for width in case.widths:
            set_width(model, width)
            small = extract(model, width)
            assert not small.training
            assert not any(hasattr(module, "dial") for module in small.modules())
            assert not [name for name in small.state_dict() if name.startswith(model.training_only)]
            for size in (SIZE, ODD_SIZE, (63, 95)):
                expected = model(image(size, 1))
                assert expected.shape == (1, CLASSES, *size)
                same(small(image(size, 1)), expected)


def extraction_stands_alone(case: Case) -> None:
    """`torch.export` takes it, backward reaches all of it, and training it leaves the elastic model alone."""
    model = case.elastic()
    before = copy.deepcopy(model.state_dict())
    small = extract(model, case.middle)
    assert get_width(model) == 1.0
    program = torch.export.export(small, (image(batch=1),))
    with no_grad():
        same(program.module()(image(batch=1)), small(image(batch=1)))
    small.train()(image()).square().mean().backward()
    assert [name for name, value in small.named_parameters() if value.grad is None] == []
    for value in small.state_dict().values():
        value.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def costs_equal_what_is_used(case: Case) -> None:
    """Parameters and MACs of each extraction are those that the elastic model touches, by three counters."""
    model = case.elastic()
    folds = any(hasattr(module, name) for module in model.modules() for name in ("fold", "fuse", "reparameterize"))
    macs = []
    for width in case.widths:
        set_width(model, width)
        small = extract(model, width)
        with no_grad(), Used() as used:
            (small if folds else model)(image(batch=1))  # where blocks fold, the elastic model touches more
        with no_grad(), FlopCounterMode(display=False) as flops:  # it does not take parameters as a module's input
            small.requires_grad_(False)(image(batch=1))
        cost = counting.count(small, SIZE)
        assert sum(parameter.numel() for parameter in small.parameters()) == cost.params
        assert cost.params == used.parameters + _bare_parameters(small)
        counted = sum(flops.get_flop_counts()["Global"].get(operator, 0) for operator in _OF_LAYERS)
        assert counted == 2 * used.macs == 2 * cost.macs
        macs.append(used.macs)
    assert all(wide > 2 * narrow for wide, narrow in pairwise(macs))


def _bare_parameters(model: nn.Module) -> int:
    """Those outside of layers: layer scales, tokens, embeddings."""
    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)
    owners = [module for module in model.modules() if not isinstance(module, layers)]
    return sum(value.numel() for module in owners for value in module.parameters(recurse=False))


def grouping_equals_its_conversion(case: Case) -> None:
    """A network that fades to groups ends as the grouped network, and computes what its masked weights do."""
    target = make_efficient(case.plain(heads=False), case.efficient).double().eval()
    model = copy.deepcopy(target)
    grouped = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    chosen = {name for name in grouped if (layer := model.get_submodule(name)).groups < layer.in_channels}
    densify(model, sorted(chosen))
    assert set(gradual_layers(model)) == chosen
    x = image(batch=1).double()
    with no_grad():
        fade(model, 0, 0.0)
        before, masked = model(x), _masked(model)(x)
        converted = convert(model)(x)
        target.load_state_dict(model.state_dict())
        assert torch.equal(converted, before)
        assert torch.equal(target(x), before)
        torch.testing.assert_close(masked, before, rtol=1e-10, atol=1e-10 * float(before.abs().max()))
    assert [type(layer) for layer in model.modules()] == [type(layer) for layer in target.modules()]
    assert counting.count(model.float(), SIZE) == counting.count(target.float(), SIZE)


def _masked(model: nn.Module) -> nn.Module:
    """A copy whose layers are dense, with zeros where the target has no weights."""
    model = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, GradualConv2d):
            groups, (rows, columns) = layer.grouping.groups, layer.weight.shape[:2]
            ones = torch.ones(rows // groups, columns // groups, dtype=layer.weight.dtype)
            layer.weight.data *= torch.block_diag(*[ones] * groups)[:, :, None, None]
            layer.grouping.fade(0, 1.0)
            assert layer.to_plain().groups == 1, name
    return model


def compiles(case: Case) -> None:
    """`torch.compile` takes the extraction and, at each width, the elastic model, whole (slow)."""
    torch._dynamo.reset()  # else models of earlier cases use up the recompilations and the rest runs uncompiled
    model = case.elastic()
    with no_grad():
        small = extract(model, case.middle)
        same(torch.compile(small, fullgraph=True)(image(batch=1)), small(image(batch=1)))
        # Capturing is what widths could break; the kernels of a width are those of its extraction.
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for width in case.widths:
            set_width(model, width)
            same(compiled(image(batch=1)), model(image(batch=1)))


CHECKS: tuple[Callable[[Case], None], ...] = (
    plain_forward_and_backward,
    heads_are_for_training,
    every_width_learns,
    full_width_equals_the_plain_model,
    extract_equals_slice,
    extraction_stands_alone,
    costs_equal_what_is_used,
    grouping_equals_its_conversion,
)
SLOW_CHECKS: tuple[Callable[[Case], None], ...] = (compiles,)
