"""What a recipe's objects are made like, where a run would not show it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from litheseg.errors import DataError
from litheseg.training import load_recipe
from litheseg.training.build import build_data, build_task


def test_the_limit_on_pixels_reaches_the_data(tmp_path: Path) -> None:
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
        Image.new("RGB" if folder == "train" else "L", (8, 8)).save(tmp_path / folder / "a.png")
    recipe = load_recipe("supervised", [f"--data.root={tmp_path}", "--data.max_pixels=63"])
    source = build_data(recipe).source
    with pytest.raises(DataError, match=r"8 x 8 pixels, and at most 63.*--data\.max_pixels"):
        source.read_image(source.samples("train")[0])


@pytest.mark.parametrize(
    ("overrides", "suits"),
    [
        (["--model.name=ddrnet", "--model.args={base: 8}"], True),
        (["--model.name=ddrnet", "--model.args={base: 4}"], False),  # a strided 1x1 shortcut reads 4 channels
        (
            ["--model.name=ddrnet", "--model.args={base: 8}", "--widths=[1,.5]", "--model.divisor=4"],
            False,
        ),  # at width .5
        (["--model.name=ddrnet", "--model.args={base: 8}", "--trainer.channels_last=false"], False),
    ],
)
def test_channels_last_only_where_kernels_are_sound(overrides: list[str], suits: bool) -> None:
    """The gradient of strided 1x1 convolutions of few channels corrupts memory in that format on some CPUs."""
    data = ["--data.source=streets", "--data.options={train: 2, val: 1, size: [32, 32]}", "--data.batch_size=2"]
    recipe = load_recipe("supervised", [*data, *overrides])
    model = build_task(recipe, build_data(recipe)).model
    weights = [value for value in model.parameters() if value.ndim == 4 and min(value.shape) > 1]
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in weights) is suits
