"""What grouping saves in time: single layers, and the whole ERFNet family, dense and grouped in the same run.

Layers: 1x1 and 3x3 convolutions at the sizes that strides 4 to 32 leave of the image, dense, with 2, 4 and 8 groups,
depthwise, and as networks use them (grouped and shuffled, depthwise and 1x1). Family: ERFNet's variants, without their
shuffles, and D* with groups in other places, in PyTorch and, where it is installed, in ONNX Runtime.

How: what is compared takes turns, round after round, in rotating order, so that load from other programs and a clock
that changes fall on all alike; medians are kept, and the spread (quartiles apart, over the median) says what a
difference is worth. With one thread the clock is this process's processor time, which leaves other programs' share out;
with more it is wall-clock time. Short passes are timed several at a time. PyTorch runs in either memory format, and the
better one counts; it runs eagerly and packs weights at each call, ONNX Runtime once.

    python benchmarks/measure grouped_latency --output benchmarks/results/grouped_latency.jsonl
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from pages.latency import family_table, layers_table
from records import save
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor, nn

from litheseg.cost import count
from litheseg.models import build_model
from litheseg.nn import extract
from litheseg.nn.efficient import Efficient
from litheseg.nn.grouping import ChannelShuffle
from measure.common import arguments

CLASSES = 11
COUNTED_SIZE, COUNTED_CLASSES = (512, 1024), 20  # where the paper counts
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SHORTEST = 2e6  # nanoseconds of one timing: passes that take less are repeated within it
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime")
NO_ONNX = "ONNX Runtime was left out: "


@dataclass(frozen=True)
class Network:
    """A row of the family: a registered model, and what is laid over it."""

    label: str
    name: str
    efficient: Efficient | None = None


def _light(label: str, groups: int, where: str = "encoder,1x1", shuffle: bool = True) -> Network:
    return Network(label, "erfnet-d*", Efficient(groups=groups, where=where, shuffle=shuffle))


FAMILY = (
    *(Network(name, name) for name in ("erfnet", "erfnet-d", "erfnet-d*")),
    *(Network(f"erfnet-dg{groups}*", f"erfnet-dg{groups}*") for groups in (2, 4, 8)),
    *(_light(f"dg{groups}* without shuffle", groups, shuffle=False) for groups in (2, 4, 8)),
    *(_light(f"d*, {groups} groups in the 128-channel stage only", groups, "stage3,1x1") for groups in (4, 8)),
    _light("d*, 4 groups in encoder and decoder", 4, "1x1"),
    Network("erfnet, 4 groups in the encoder's 3x1 and 1x3", "erfnet", Efficient(groups=4, where="encoder")),
)
QUICK = ("erfnet-d*", "erfnet-dg4*")


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of a pass, and how far the quartiles lie apart, over the median."""

    ms: float
    spread: float

    @classmethod
    def of(cls, nanoseconds: list[float]) -> Timing:
        """Summarise the measured durations of single passes."""
        middle = median(nanoseconds)
        first, _, third = quantiles(nanoseconds, n=4) if len(nanoseconds) > 1 else (middle,) * 3
        return cls(ms=middle / 1e6, spread=(third - first) / middle)


def main() -> None:
    """Parse, measure, print the tables, write JSON."""
    options = parse()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        layers = measure_layers(options)
    family, notes = measure_family(options)
    clock = "processor time" if options.threads == 1 else "wall-clock time"
    report = {"layers": layers, "family": family, "notes": notes}
    for table in (layers_table(report), family_table(report)):
        Console(width=200).print(Markdown(table))
    save(options, report, *LIBRARIES, clock=clock)


def parse() -> argparse.Namespace:
    parser = arguments(__doc__, size=(360, 480), threads=1)
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128, 256], help="of the single layers")
    parser.add_argument("--strides", type=int, nargs="+", default=[4, 8, 16, 32], help="of the single layers' input")
    parser.add_argument("--networks", nargs="+", default=[network.label for network in FAMILY], metavar="LABEL")
    parser.add_argument("--seconds", type=float, default=3.0, help="per kind and size of layer, at least 5 rounds")
    parser.add_argument("--rounds", type=int, default=11, help="of the family")
    parser.add_argument("--no-onnx", dest="onnx", action="store_false", help="leave ONNX Runtime out")
    parser.add_argument("--quick", action="store_true", help="little of everything, to see whether it runs")
    options = parser.parse_args()
    if options.quick:
        quick = {"size": (36, 48), "channels": [64], "strides": [8], "networks": list(QUICK), "onnx": False}
        vars(options).update(quick, seconds=0.0, rounds=2)
    return options


# --- single layers ---------------------------------------------------------------------------------------------------


def measure_layers(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per kernel, channels and stride, with every variant's MACs and milliseconds."""
    cells = [(k, c, s) for k in (1, 3) for c in options.channels for s in options.strides]
    return [measure_layer(*cell, options) for cell in cells]


def measure_layer(kernel: int, channels: int, stride: int, options: argparse.Namespace) -> dict[str, Any]:
    """Every variant of one convolution, in both memory formats, interleaved."""
    height, width = (math.ceil(extent / stride) for extent in options.size)
    modules = {name: module.eval() for name, module in variants(kernel, channels).items()}
    image = torch.randn(1, channels, height, width)
    timings = interleave(in_formats(modules, image), options.threads, seconds=options.seconds)
    macs = {name: count(module, (height, width), channels=channels).macs for name, module in modules.items()}
    measured = {name: {"macs": macs[name], **better(timings, name)} for name in modules}
    row = {"kernel": f"{kernel}x{kernel}", "channels": channels, "stride": stride, "size": [height, width]}
    return {**row, "variants": measured}


def variants(kernel: int, channels: int) -> dict[str, nn.Module]:
    """One layer of as many inputs as outputs, dense and cheaper."""
    conv = partial(nn.Conv2d, channels, channels, kernel, padding=kernel // 2)
    result: dict[str, nn.Module] = {"dense": conv()}
    result |= {f"{groups} groups": conv(groups=groups) for groups in (2, 4, 8)}
    result["depthwise"] = conv(groups=channels)
    if kernel == 1:
        result["4 groups, shuffled"] = nn.Sequential(conv(groups=4), ChannelShuffle(4))
    else:
        result["depthwise, 1x1"] = nn.Sequential(conv(groups=channels), nn.Conv2d(channels, channels, 1))
    return result


# --- the family ------------------------------------------------------------------------------------------------------


def measure_family(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """One row per network, and what is to be said about them."""
    networks = [network for network in FAMILY if network.label in options.networks]
    image = torch.randn(1, 3, *options.size)
    modules = {network.label: built(network, CLASSES) for network in networks}
    candidates = in_formats(modules, image)
    sessions, notes = in_onnx_runtime(modules, image, options)
    with torch.inference_mode():
        timings = interleave(candidates | sessions, options.threads, rounds=options.rounds)
    rows = []
    for network in networks:
        cost = count(built(network, COUNTED_CLASSES), COUNTED_SIZE)
        row = {"network": network.label, "params": cost.params, "macs": cost.macs}
        row["torch"] = better(timings, network.label)
        onnx = timings.get(f"{network.label} onnx")
        row["onnx"] = {"ms": onnx.ms, "spread": onnx.spread} if onnx else None
        rows.append(row)
    return rows, notes


def built(network: Network, classes: int) -> nn.Module:
    """As deployed: plain, without training heads, in eval mode."""
    return extract(build_model(network.name, classes, efficient=network.efficient))


def in_onnx_runtime(
    modules: Mapping[str, nn.Module], image: Tensor, options: argparse.Namespace
) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """A callable per network, and why there is none."""
    if not options.onnx:
        return {}, [f"{NO_ONNX}--no-onnx"]
    try:
        import onnx  # noqa: F401  # the exporter needs these two
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        return {}, [f"{NO_ONNX}{error}; pip install onnx onnxscript onnxruntime"]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
    sessions: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, module) in enumerate(modules.items()):
            path = f"{folder}/{index}.onnx"
            torch.onnx.export(module, (image,), dynamo=True, verbose=False).save(path)
            session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
            sessions[f"{name} onnx"] = partial(session.run, None, {session.get_inputs()[0].name: image.numpy()})
    return sessions, []


# --- measuring -------------------------------------------------------------------------------------------------------


def in_formats(modules: Mapping[str, nn.Module], image: Tensor) -> dict[str, Callable[[], Any]]:
    """Every module in both memory formats, called on the image in the same one."""
    result = {}
    for format_name, memory_format in FORMATS.items():
        own = image.contiguous(memory_format=memory_format)
        for name, module in modules.items():
            placed = copy.deepcopy(module).to(memory_format=memory_format)  # type: ignore[call-overload]
            result[f"{name} {format_name}"] = partial(placed, own)
    return result


def better(timings: Mapping[str, Timing], name: str) -> dict[str, Any]:
    """The faster of the two memory formats."""
    format_name = min(FORMATS, key=lambda candidate: timings[f"{name} {candidate}"].ms)
    best = timings[f"{name} {format_name}"]
    return {"ms": best.ms, "spread": best.spread, "format": format_name}


def interleave(
    calls: Mapping[str, Callable[[], Any]], threads: int, *, seconds: float = 0.0, rounds: int = 5
) -> dict[str, Timing]:
    """Time each in turn: `rounds` times, or more if `seconds` allow (at most 200)."""
    clock = time.process_time_ns if threads == 1 else time.perf_counter_ns
    passes = {name: max(1, round(SHORTEST / warm(call, clock))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, turn, started = list(calls), 0, clock()
    while turn < rounds or (turn < 200 and clock() - started < 1e9 * seconds):
        for position in range(len(names)):
            name = names[(position + turn) % len(names)]  # rotated: nobody always has the same neighbour
            times[name].append(timed(calls[name], passes[name], clock))
        turn += 1
    return {name: Timing.of(values) for name, values in times.items()}


def warm(call: Callable[[], Any], clock: Callable[[], int]) -> float:
    """Nanoseconds of the third pass, at least one."""
    call(), call()
    return max(1.0, timed(call, 1, clock))


def timed(call: Callable[[], Any], passes: int, clock: Callable[[], int]) -> float:
    """Nanoseconds of one pass, the mean of several in a row."""
    started = clock()
    for _ in range(passes):
        call()
    return (clock() - started) / passes
