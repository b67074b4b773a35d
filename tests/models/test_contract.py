"""Every registered architecture keeps the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
from contract import (
    CHECKS,
    SLOW_CHECKS,
    Case,
    costs_equal_what_is_used,
    every_width_learns,
    extract_equals_slice,
    extraction_stands_alone,
    full_width_equals_the_plain_model,
    grouping_equals_its_conversion,
)
from torch import nn

from litheseg.errors import ModelError
from litheseg.models import MODELS, build_model
from litheseg.nn.efficient import Efficient

# Smaller than their defaults, so that the whole file takes seconds; others run as they are.
SMALL = {
    "ddrnet": Case("ddrnet", {"base": 16, "head_channels": 32}, divisor=4),
    "deeplabv3plus": Case("deeplabv3plus", {"encoder": "mobilenetv3_small_100", "channels": 32}),
    "segmenter": Case("segmenter", {"encoder": "mobilenetv4_conv_small", "channels": 32, "pretrained": "none"}),
    "erfnet-d": Case("erfnet-d", widths=(1.0, 0.5)),
    "erfnet-d*": Case("erfnet-d*", widths=(1.0, 0.5)),
    # Grouped by themselves, on concatenations: there is no narrower network of the same kind.
    **{
        name: Case(name, widths=(1.0,), efficient=Efficient()) for name in ("erfnet-dg2*", "erfnet-dg4*", "erfnet-dg8*")
    },
}
# Other tests register small models of their own.
CASES = [SMALL.get(name, Case(name)) for name, build in MODELS.items() if build.__module__.startswith("litheseg.")]
CASES.append(Case("ddrnet", {"base": 16, "head_channels": 32, "rep_blocks": True}, divisor=4))
CASES.append(Case("deeplabv3plus", {"encoder": "resnet18", "channels": 32, "output_stride": 8}))
# Put together of the parts of those that keep the whole contract.
RELATIVES = ("erfnet-d", "erfnet-d*", "erfnet-dg2*", "erfnet-dg8*")
FEW_CHECKS = (extract_equals_slice, costs_equal_what_is_used, grouping_equals_its_conversion)


def _tiny(architecture: str, decoder: str = "lraspp", **sizes: Any) -> Case:
    """A timm network that is small enough for a test, with every part of the large one."""

    def build(**options: Any) -> nn.Module:
        return timm.create_model(architecture, **sizes, **options)

    build.__name__, build.__module__ = f"tiny_{architecture}", __name__
    timm.models.register_model(build)
    arguments = {"encoder": build.__name__, "decoder": decoder, "channels": 32, "pretrained": "none"}
    return Case("segmenter", arguments, divisor=4)


# All that CNNs do not have: layer scale, layer norm, packed attention of three kinds, chunks, tokens, blocks that fold.
NETWORKS = [
    _tiny("convnext_atto", dims=(16, 16, 32, 32), depths=(1, 1, 1, 1)),
    _tiny("edgenext_x_small", dims=(16, 32, 48, 64), depths=(1, 1, 1, 1), heads=(4, 4, 4, 4), d2_scales=(2, 2, 3, 4)),
    _tiny("efficientvit_b0", widths=(8, 16, 32, 64, 64), depths=(1, 1, 1, 1, 1), head_dim=8),
    _tiny("fastvit_t8", embed_dims=(16, 16, 32, 32), layers=(1, 1, 1, 1)),
    _tiny("pvt_v2_b0", embed_dims=(16, 32, 64, 64), num_heads=(1, 2, 4, 4), depths=(1, 1, 1, 1)),
    _tiny("vit_small_patch14_dinov2", "swiftnet", embed_dim=64, num_heads=4, depth=3, img_size=56),
]
ELASTIC_CHECKS = (extract_equals_slice, costs_equal_what_is_used, extraction_stands_alone)
# Of the two that are least like a CNN.
MORE_CHECKS = (
    every_width_learns,
    full_width_equals_the_plain_model,
)
PAIRS = [(case, check) for case in CASES for check in (FEW_CHECKS if case.name in RELATIVES else CHECKS)]
PAIRS += [(case, check) for case in NETWORKS for check in ELASTIC_CHECKS]
PAIRS += [(case, check) for case in (NETWORKS[1], NETWORKS[-1]) for check in MORE_CHECKS]


def _id(value: object) -> str:
    if isinstance(value, Case):
        return "-".join([value.name, *(f"{key}={option}" for key, option in value.arguments.items())])
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("case", "check"), PAIRS, ids=_id)
def test_contract(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("check", SLOW_CHECKS, ids=_id)
@pytest.mark.parametrize("case", [*CASES, *NETWORKS], ids=_id)
def test_slow_contract(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


def test_unknown_names_and_arguments_are_refused() -> None:
    with pytest.raises(ModelError, match="Did you mean 'erfnet'"):
        build_model("erfnett", 5)
    for name in MODELS:
        with pytest.raises(ModelError, match="no_such_option"):
            build_model(name, 5, no_such_option=1)
