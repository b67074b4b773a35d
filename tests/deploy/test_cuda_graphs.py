"""What is recorded and replayed, with a recorder that stands in for a GPU's: on a GPU itself this was not run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from litheseg.deploy.cuda_graphs import RecordedPasses
from litheseg.deploy.torch_engine import ModuleEngine
from litheseg.errors import LithesegError
from litheseg.masks.image_format import ImageFormat

CPU = torch.device("cpu")


class Tape:
    """Like a graph: what was recorded is computed again from the same input, into the same result."""

    def __init__(self, error: str = "") -> None:
        self.recordings, self.replays, self._error = 0, 0, error

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        self.recordings += 1
        if self._error:
            raise RuntimeError(self._error)
        result = function()

        def replay() -> None:
            self.replays += 1
            result.copy_(function())

        return replay, result


def twice(images: Tensor) -> Tensor:
    return 2.0 * images.float()


def images(seed: int, size: tuple[int, ...] = (2, 4, 6, 3)) -> Tensor:
    return torch.randint(0, 256, size, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_a_size_that_comes_again_is_recorded_and_results_stay_right() -> None:
    tape = Tape()
    passes = RecordedPasses(twice, CPU, tape)
    results = [passes(images(seed)) for seed in range(6)]
    assert (tape.recordings, tape.replays) == (1, 5), "one replay is the check"
    assert passes.recorded == ((2, 4, 6, 3),)
    assert all(torch.equal(result, twice(images(seed))) for seed, result in enumerate(results)), "each its own"


def test_sizes_have_graphs_of_their_own_and_there_are_not_too_many() -> None:
    tape = Tape()
    passes = RecordedPasses(twice, CPU, tape)
    for width in range(1, 30):
        for seed in range(4):
            assert torch.equal(passes(images(seed, (1, 2, width, 3))), twice(images(seed, (1, 2, width, 3))))
    assert tape.recordings == len(passes.recorded) == 16


def test_what_cannot_be_recorded_runs_without_and_is_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    tape = Tape("operation not permitted when stream is capturing\nmore")
    passes = RecordedPasses(twice, CPU, tape)
    for seed in range(6):
        assert torch.equal(passes(images(seed)), twice(images(seed)))
    assert tape.recordings == 1 and passes.recorded == ()
    assert "run without a CUDA graph: operation not permitted" in caplog.text


def test_a_replay_that_gives_something_else_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    def wrong(function: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        result = function()
        return (lambda: result.add_(100)), result

    passes = RecordedPasses(twice, CPU, wrong)
    assert all(torch.equal(passes(images(seed)), twice(images(seed))) for seed in range(6))
    assert passes.recorded == () and "not what the network gives" in caplog.text


def test_threads_do_not_overwrite_each_others_input() -> None:
    passes = RecordedPasses(twice, CPU, Tape())
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda seed: passes(images(seed)), range(64)))
    assert all(torch.equal(result, twice(images(seed))) for seed, result in enumerate(results))


def test_an_engine_gives_the_same_logits_recorded() -> None:
    torch.manual_seed(0)
    engine = ModuleEngine(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)), ImageFormat())
    photos = [images(seed, (8, 12, 3)).numpy() for seed in range(5)]
    expected = [engine(photo) for photo in photos]
    tape = Tape()
    engine._passes = RecordedPasses(engine._logits, CPU, tape)
    for _ in range(2):
        assert all((engine(photo) == logits).all() for photo, logits in zip(photos, expected, strict=True))
        for output, logits in zip(engine.run_batch(photos), expected, strict=True):
            torch.testing.assert_close(output, torch.from_numpy(logits))
    assert tape.replays > 0


def test_fp16_is_for_gpus() -> None:
    with pytest.raises(LithesegError, match="fp16 runs on a GPU, not on 'cpu'"):
        ModuleEngine(nn.Conv2d(3, 2, 1), ImageFormat(), precision="fp16")
