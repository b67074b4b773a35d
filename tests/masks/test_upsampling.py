"""Lazy upsampling, compiled and in NumPy, against the plain way in float64: interpolate everything, then argmax."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_upsampling import WAYS, assert_right, logits_of_every_kind, plain, use

from litheseg.errors import DataError, LithesegError
from litheseg.masks import upsampling as room
from litheseg.masks import upsampling_arrays
from litheseg.masks.axes import axis_of
from litheseg.masks.upsampling import upsample_labels


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(request.param, monkeypatch)
    return request.param


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_any_size_and_number_of_classes(way: str) -> None:
    for logits, size in logits_of_every_kind(150):
        assert_right(upsample_labels(logits.numpy(), size), logits, size)


@pytest.mark.parametrize(
    ("samples", "size"), [((45, 60), (360, 480)), ((23, 31), (181, 247)), ((40, 33), (13, 17)), ((64, 64), (32, 128))]
)
def test_sizes_of_segmentation(way: str, samples: tuple[int, int], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    logits = F.interpolate(torch.randn(2, 11, 6, 7), samples, mode="bicubic") + 0.05 * torch.randn(2, 11, *samples)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert_right(upsample_labels(logits.contiguous(memory_format=layout).numpy(), size), logits, size)


def test_both_ways_agree_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties that float32 decides included, and rounding where logits are nearly the same."""
    found: list[list[np.ndarray]] = []
    for name in WAYS:
        use(name, monkeypatch)
        given = [(logits.numpy(), size) for logits, size in logits_of_every_kind(100)]
        given += [((1000 + logits / 1000).astype(np.float32), size) for logits, size in given]
        found.append([upsample_labels(logits, size) for logits, size in given])
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


def test_the_first_of_equal_classes_wins(way: str) -> None:
    """Whole numbers and a scale of 2, whose weights are quarters: everything is exact in float32, ties included."""
    for seed in range(40):
        torch.manual_seed(seed)
        logits = torch.randint(0, 3, (1, 6, 7, 9)).float()
        for size in ((14, 18), (28, 36), (7, 18), (7, 9)):
            assert np.array_equal(upsample_labels(logits.numpy(), size), plain(logits, size).argmax(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_spread_as_in_pytorch(way: str, value: float) -> None:
    for seed in range(30):
        torch.manual_seed(seed)
        logits = torch.randn(2, 1 + seed % 5, 6, 9)
        logits[torch.rand_like(logits) < 0.03] = value
        # PyTorch's coordinates are exact at these scales; at a third, pixels meet samples: a weight is 0.
        for size in ((12, 18), (6, 18), (24, 9), (2, 3), (2, 36), (3, 9), (6, 9)):
            expected = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            expected = logits if size == (6, 9) else expected
            assert np.array_equal(upsample_labels(logits.numpy(), size), expected.argmax(1))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4", ">f8"])
def test_other_types_are_interpolated_in_float32(way: str, dtype: str) -> None:
    logits = noise(1, 5, 9, 8).astype(dtype)
    assert_right(upsample_labels(logits, (50, 41)), logits.astype(np.float32), (50, 41))


def test_any_strides(way: str) -> None:
    large = noise(3, 9, 20, 18)
    frozen = large.copy()
    frozen.flags.writeable = False
    unaligned = np.frombuffer(b"\0" + large.tobytes(), np.uint8)[1:].view(np.float32).reshape(large.shape)
    views = [
        large[::2, 1::2, 3:11, 2:15:3],
        large.swapaxes(2, 3),
        np.broadcast_to(large[:1], large.shape),
        large[:, :, ::-1],
        large[::-1, ::-1, ::2, ::-3],
        frozen,
        unaligned,
    ]
    for view in views:
        assert_right(upsample_labels(view, (37, 29)), view.copy(), (37, 29))


def test_one_image_without_n_and_none_at_all(way: str) -> None:
    logits = noise(4, 6, 5)
    assert np.array_equal(upsample_labels(logits, (17, 13)), upsample_labels(logits[None], (17, 13))[0])
    assert upsample_labels(np.empty((0, 4, 6, 5), np.float32), (17, 13)).shape == (0, 17, 13)


def test_255_classes(way: str) -> None:
    logits = noise(1, 255, 3, 4)
    assert_right(upsample_labels(logits, (19, 22)), logits, (19, 22))


def test_bounded_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    use("arrays", monkeypatch)
    logits = noise(2, 5, 6, 7)
    expected = upsample_labels(logits, (31, 45))
    for bound in (1, 100, 5_000):
        monkeypatch.setattr(upsampling_arrays, "_MAX_VALUES", bound)
        assert np.array_equal(upsample_labels(logits, (31, 45)), expected)


def test_threads_share_the_rows(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_SHARE", 1)
    logits = noise(3, 5, 11, 7)
    expected = upsample_labels(logits, (50, 41), threads=1)
    for threads in (2, 3, 50, None):
        assert np.array_equal(upsample_labels(logits, (50, 41), threads=threads), expected)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say")
def test_threads_are_the_cores_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """One core, though the machine may have many: no thread is asked to help."""
    monkeypatch.setattr(room, "_SHARE", 1)
    asked: list[int] = []
    pool = room._threads.pool
    monkeypatch.setattr(room._threads, "pool", lambda: asked.append(1) or pool())
    for cores in (1, 3):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: set(range(cores)))
        asked.clear()
        upsample_labels(noise(1, 2, 30, 4), (80, 80))
        assert len(asked) == cores - 1


def test_a_small_image_stays_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room._threads, "pool", lambda: pytest.fail("a thread was asked to help"))
    upsample_labels(noise(1, 2, 45, 60), (360, 480), threads=8)


def test_many_callers_at_once(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_SHARE", 1)
    inputs = [noise(1, 5, 11, 7, seed=seed) for seed in range(8)]
    expected = [upsample_labels(logits, (80, 61), threads=1) for logits in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            found = list(pool.map(lambda logits: upsample_labels(logits, (80, 61), threads=2), inputs))
            assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_SHARE", 1)
    array = noise(3, 8, 9)
    expected = upsample_labels(array, (40, 50), threads=2)  # the parent's threads exist
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(upsample_labels(array, (40, 50), threads=2)))
    child.start()
    child.join(30)
    assert child.exitcode == 0 and np.array_equal(queue.get(), expected)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: upsample_labels(np.zeros((2, 3)), (4, 4)), DataError, "give floating point"),
        (lambda: upsample_labels(np.zeros((1, 2, 3, 3), int), (4, 4)), DataError, "int64 of shape"),
        (lambda: upsample_labels(np.zeros((1, 256, 3, 3)), (4, 4)), DataError, "1 to 255 classes"),
        (lambda: upsample_labels(np.zeros((1, 2, 0, 3)), (4, 4)), DataError, "at least one sample"),
        (lambda: upsample_labels(np.zeros((1, 2, 3, 3)), (0, 4)), LithesegError, "size"),
        (lambda: upsample_labels(np.zeros((1, 2, 3, 3)), (4.0, 4)), LithesegError, "size"),  # type: ignore[arg-type]
    ],
)
def test_bad_input(act: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        act()


def test_without_pytorch_and_without_a_compiler() -> None:
    """NumPy alone gives the same labels: neither PyTorch, Numba nor the extension can be imported."""
    script = """
import sys
for name in ("torch", "numba", "litheseg.masks._upsampling"):
    sys.modules[name] = None
import numpy as np
from litheseg.masks.upsampling import upsample_labels
logits = np.random.default_rng(0).normal(size=(5, 9, 8)).astype(np.float32)
sys.stdout.buffer.write(upsample_labels(logits, (70, 61)).tobytes())
"""
    labels = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout
    assert labels == upsample_labels(noise(5, 9, 8), (70, 61)).tobytes()


@pytest.mark.parametrize("compiler", ["false", None])
def test_the_package_builds_with_and_without_a_compiler(compiler: str | None, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    if compiler is None and not shutil.which("cc"):
        pytest.skip("no compiler")
    words = ["-q", "build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    environment = os.environ | ({"CC": compiler} if compiler else {})
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "setup.py", *words], check=True, capture_output=True, cwd=root, env=environment)
    assert bool(list(tmp_path.glob("lib/litheseg/masks/_upsampling.*"))) == (compiler is None)


# The extension reads memory: what does not fit together is refused.


def fitting() -> dict[str, object]:
    """Arguments of the extension that fit together, in its order."""
    rows, columns = axis_of(3, 20), axis_of(4, 30)
    return {
        "logits": noise(2, 5, 3, 4),
        "labels": np.full((2, 20, 30), 77, np.uint8),
        "rows": rows,
        "columns": columns,
        "first": 0,
        "last": 6,
    }


def changed(table: np.ndarray, place: int, value: int) -> np.ndarray:
    table = table.copy()
    table[place] = value
    return table


ROWS, COLUMNS = axis_of(3, 20), axis_of(4, 30)
MISFITS: dict[str, dict[str, object]] = {
    "no buffer": {"logits": [1.0]},
    "float64": {"logits": np.zeros((2, 5, 3, 4))},
    "other byte order": {"logits": np.zeros((2, 5, 3, 4), ">f4")},
    "bytes as logits": {"logits": b"12345678"},
    "three dimensions": {"logits": noise(5, 3, 4)},
    "no dimensions": {"logits": np.float32(1)},
    "no classes": {"logits": noise(2, 0, 3, 4)},
    "256 classes": {"logits": noise(2, 256, 3, 4)},
    "no samples": {"logits": noise(2, 5, 0, 4)},
    "fewer rows": {"logits": noise(2, 5, 2, 4)},
    "fewer columns": {"logits": noise(2, 5, 3, 3)},
    "fewer images": {"logits": noise(1, 5, 3, 4)},
    "labels of floats": {"labels": np.zeros((2, 20, 30), np.float32)},
    "labels of one image": {"labels": np.zeros((20, 30), np.uint8)},
    "fewer labels": {"labels": np.zeros((2, 20, 29), np.uint8)},
    "strided labels": {"labels": np.zeros((2, 20, 60), np.uint8)[:, :, ::2]},
    "frozen labels": {"labels": np.broadcast_to(np.uint8(0), (2, 20, 30))},
    "short weights": {"rows": ROWS._replace(low=ROWS.low[:-1])},
    "weights of float64": {"rows": ROWS._replace(low=ROWS.low.astype(np.float64))},
    "short starts": {"rows": ROWS._replace(starts=ROWS.starts[:-1])},
    "starts of int32": {"columns": COLUMNS._replace(starts=COLUMNS.starts.astype(np.int32))},
    "starts beyond": {"columns": COLUMNS._replace(starts=changed(COLUMNS.starts, 2, 31))},
    "starts before": {"columns": COLUMNS._replace(starts=changed(COLUMNS.starts, 0, -1))},
    "falling starts": {"columns": COLUMNS._replace(starts=changed(COLUMNS.starts, 2, 0))},
    "an end that is too far": {"rows": ROWS._replace(starts=changed(ROWS.starts, -1, 21))},
    "steps of two": {"rows": ROWS._replace(step=2)},
    "copied though longer": {"rows": ROWS._replace(step=0)},
    "half an axis": {"rows": tuple(ROWS)[:3]},
    "negative first": {"first": -1},
    "last beyond": {"last": 7},
    "last before first": {"first": 3, "last": 2},
}


@pytest.mark.parametrize("name", MISFITS)
def test_the_extension_refuses_what_does_not_fit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_labels = use("compiled", monkeypatch)
    arguments = fitting() | MISFITS[name]
    before = np.array(arguments["labels"])
    with pytest.raises((ValueError, TypeError, BufferError)):
        fill_labels(*arguments.values())
    assert np.array_equal(arguments["labels"], before)


def test_the_extension_takes_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = fitting()
    use("compiled", monkeypatch)(*arguments.values())
    assert_right(arguments["labels"], arguments["logits"], (20, 30))  # type: ignore[arg-type]


def test_the_extension_writes_only_the_rows_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = fitting() | {"first": 4, "last": 5}
    use("compiled", monkeypatch)(*arguments.values())
    labels = np.asarray(arguments["labels"])
    begin, end = ROWS.starts[1:3]
    assert (labels[0] == 77).all() and (labels[1, :begin] == 77).all() and (labels[1, end:] == 77).all()
    assert (labels[1, begin:end] < 5).all()
