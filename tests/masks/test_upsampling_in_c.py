"""`litheseg/masks/upsampling.c` in a program without Python gives the labels of litheseg, bit by bit."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tiny_upsampling import logits_of_every_kind

from litheseg.masks.axes import axis_of
from litheseg.masks.upsampling_arrays import fill_labels

SOURCE = Path(__file__).parents[2] / "litheseg" / "masks" / "upsampling.c"
COMPILER = shutil.which("cc") or shutil.which("gcc")
MAIN = """
#include "upsampling.h"
#include <cstdio>

int main()
{
    const float logits[2 * 1 * 2] = {1, 0, 0, 1};
    unsigned char labels[6];
    if (litheseg_upsample_labels(logits, 2, 1, 2, 2, labels, 1, 6))
        return 1;
    for (int x = 0; x < 6; x++)
        std::printf("%d", labels[x]);
}
"""

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """As a program has it: nothing of Python is on the compiler's path."""
    path = tmp_path_factory.mktemp("c") / "upsampling.so"
    flags = ("-std=c11", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
    subprocess.run([str(COMPILER), *flags, "-o", str(path), str(SOURCE), "-lm"], check=True)
    return ctypes.CDLL(str(path))


def in_c(library: ctypes.CDLL, logits: np.ndarray, size: tuple[int, int], gap: int = 0) -> np.ndarray:
    classes, height, width = logits.shape
    padded = np.full((classes, height * width + gap), np.inf, np.float32)
    padded[:, : height * width] = logits.reshape(classes, -1)
    labels, stride = np.full(size, 255, np.uint8), ctypes.c_size_t(padded.shape[1])
    places = [array.ctypes.data_as(ctypes.c_void_p) for array in (padded, labels)]
    assert library.litheseg_upsample_labels(places[0], classes, height, width, stride, places[1], *size) == 0
    return labels


def test_every_bit_is_that_of_numpy(library: ctypes.CDLL) -> None:
    for index, (logits, size) in enumerate(logits_of_every_kind(120)):
        image = logits[0].numpy().copy()
        if index % 7 == 0:
            image.flat[:: image.size // 3 + 1] = (np.nan, np.inf, -np.inf)[index % 3]
        expected = np.empty((1, *size), np.uint8)
        axes = [axis_of(*ends) for ends in zip(image.shape[1:], size, strict=True)]
        fill_labels(image[None], expected, axes[0], axes[1], 0, image.shape[1])
        assert np.array_equal(in_c(library, image, size, gap=index % 4), expected[0])


def test_numbers_out_of_range_are_refused(library: ctypes.CDLL) -> None:
    for numbers in ((0, 2, 2), (256, 2, 2), (3, 0, 2), (3, 2, -1)):
        assert library.litheseg_upsample_labels(None, *numbers, ctypes.c_size_t(4), None, 2, 2) == -1


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_program_in_cpp_links_it(tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text(MAIN)
    compile_c = [str(COMPILER), "-O1", "-ffp-contract=off", "-c", str(SOURCE), "-o", str(tmp_path / "upsampling.o")]
    subprocess.run(compile_c, check=True)
    link = ["c++", f"-I{SOURCE.parent}", "main.cpp", "upsampling.o", "-o", "main"]
    subprocess.run(link, check=True, cwd=tmp_path)
    assert subprocess.run(["./main"], check=True, cwd=tmp_path, capture_output=True, text=True).stdout == "000111"
