from __future__ import annotations

import gc
import time

import pytest
import torch
from torch import nn

from litheseg.cost.latency import Latency, measure_latency
from litheseg.errors import LithesegError


def test_percentiles_of_known_durations() -> None:
    latency = Latency.of([i * 1_000_000 for i in range(1, 101)])
    assert latency.p50 == pytest.approx(50.5)
    assert latency.p95 == pytest.approx(95.05)
    assert latency.mean == pytest.approx(50.5)
    assert latency.repeats == 100


def test_known_sleeps_are_told_apart() -> None:
    result = measure_latency(
        {"slow": lambda _: time.sleep(0.012), "fast": lambda _: time.sleep(0.002)}, (2, 2), repeats=5, warmup=1
    )
    assert list(result) == ["slow", "fast"]
    assert result["slow"].p50 >= 12 > result["fast"].p50 >= 2
    assert all(value.p50 <= value.p95 for value in result.values())


def test_candidates_take_turns_and_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    result = measure_latency(
        {"a": lambda _: calls.append("a"), "b": lambda _: calls.append("b")}, (2, 2), repeats=3, warmup=1
    )
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert result["a"].repeats == 3


def test_input_threads_grad_and_collector() -> None:
    seen: list[tuple[tuple[int, ...], bool, int, bool, bool]] = []

    def probe(image: torch.Tensor) -> None:
        seen.append(
            (
                tuple(image.shape),
                image.is_contiguous(memory_format=torch.channels_last),
                torch.get_num_threads(),
                torch.is_inference_mode_enabled(),
                gc.isenabled(),
            )
        )

    before = torch.get_num_threads()
    measure_latency({"probe": probe}, (4, 6), repeats=1, warmup=0, threads=before + 1, channels_last=True, batch=2)
    assert seen == [((2, 3, 4, 6), True, before + 1, True, False)]
    assert torch.get_num_threads() == before and gc.isenabled()


def test_everything_is_restored_after_a_failure() -> None:
    module = nn.Sequential(nn.BatchNorm2d(4))  # four channels do not fit the image
    module.train()
    module[0].eval()
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        measure_latency({"broken": module}, (4, 4), threads=before + 1)
    assert torch.get_num_threads() == before and gc.isenabled()
    assert module.training and not module[0].training


def test_measuring_leaves_the_module_and_the_random_state_alone() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    state, random = torch.get_rng_state(), module[1].running_mean.clone()
    measure_latency({"module": module}, (4, 4), repeats=2, warmup=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(module[1].running_mean, random) and module.training


def test_an_own_example_is_passed_through() -> None:
    seen: list[object] = []
    measure_latency({"session": seen.append}, repeats=1, warmup=0, example="any input")
    assert seen == ["any input"]


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": -1}, {"threads": 0}])
def test_numbers_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(LithesegError, match="latency needs"):
        measure_latency({"a": lambda _: None}, (2, 2), **wrong)
