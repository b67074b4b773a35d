"""Prediction by one pass or many, and evaluation at every width."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from litheseg.errors import DataError, LithesegError, ModelError, WidthError
from litheseg.evaluation import evaluate, predict_logits
from litheseg.nn import get_width, set_width, slim


def pointwise(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, classes, 1)).eval()


class Recorder(nn.Module):
    """A pointwise model that remembers which sizes it was given."""

    def __init__(self):
        super().__init__()
        self.inner, self.sizes = pointwise(), []

    def forward(self, image):
        self.sizes.append(tuple(image.shape[-2:]))
        return self.inner(image)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 16), (17, 33), (40, 9)])
@pytest.mark.parametrize("stride", [1.0, 2 / 3, 0.1])
def test_sliding_equals_whole_for_a_pointwise_model(size, stride):
    model, image = pointwise(), torch.rand(2, 3, *size)
    sliding = predict_logits(model, image, mode="sliding", window=(16, 12), stride=stride)
    assert torch.allclose(sliding, predict_logits(model, image), atol=1e-6)


@torch.no_grad()
def test_windows_cover_the_edge_and_are_all_of_one_size():
    model = Recorder()
    predict_logits(model, torch.rand(1, 3, 20, 31), mode="sliding", window=(12, 12), stride=2 / 3)
    # rows start at 0 and 8; columns at 0, 8, 16 and, so that the edge is reached, 19
    assert model.sizes == [(12, 12)] * 8


@torch.no_grad()
def test_overlaps_are_averaged():
    class Position(nn.Module):
        def forward(self, image):
            return torch.arange(float(image.shape[-1])).expand(len(image), 1, image.shape[-2], -1)

    result = predict_logits(Position(), torch.rand(1, 3, 1, 6), mode="sliding", window=(1, 4), stride=0.5)
    assert result.flatten().tolist() == [0, 1, (2 + 0) / 2, (3 + 1) / 2, 2, 3]


@torch.no_grad()
def test_flip_averages_probabilities():
    torch.manual_seed(0)
    model, image = nn.Conv2d(3, 4, 3, padding=1), torch.rand(2, 3, 6, 7)
    views = [model(image), model(image.flip(-1)).flip(-1)]
    expected = sum(view.softmax(1) for view in views) / 2
    assert torch.allclose(predict_logits(model, image, flip=True).exp(), expected, atol=1e-6)


@torch.no_grad()
def test_flip_of_a_pointwise_model_changes_nothing():
    model, image = pointwise(), torch.rand(1, 3, 6, 7)
    both = predict_logits(model, image, flip=True)
    assert torch.allclose(both, predict_logits(model, image).log_softmax(1), atol=1e-5)


@torch.no_grad()
def test_scales_resize_the_image_and_come_back():
    model, image = Recorder(), torch.rand(1, 3, 10, 20)
    result = predict_logits(model, image, flip=True, scales=(0.5, 1.0, 1.75))
    assert model.sizes == [(5, 10)] * 2 + [(10, 20)] * 2 + [(18, 35)] * 2
    assert result.shape == (1, 3, 10, 20)
    assert torch.allclose(result.exp().sum(1), torch.ones(1, 10, 20), atol=1e-5)


@torch.no_grad()
def test_scales_of_a_constant_image_change_nothing():
    model, image = pointwise(), torch.full((1, 3, 8, 8), 0.3)
    several = predict_logits(model, image, scales=(0.5, 1.5), mode="sliding", window=(6, 6))
    assert torch.allclose(several, predict_logits(model, image).log_softmax(1), atol=1e-4)


@torch.no_grad()
def test_one_pixel_image_in_every_way():
    for options in ({}, {"mode": "sliding", "window": (8, 8)}, {"flip": True, "scales": (0.5, 2.0)}):
        assert predict_logits(pointwise(), torch.rand(1, 3, 1, 1), **options).shape == (1, 3, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "slding"}, "Did you mean 'sliding'"),
        ({"mode": "sliding"}, "needs a window"),
        ({"stride": 0.0}, "fraction of the window"),
        ({"scales": ()}, "above 0"),
        ({"scales": (0.0,)}, "above 0"),
    ],
)
def test_bad_views(options, message):
    with pytest.raises(LithesegError, match=message):
        predict_logits(pointwise(), torch.rand(1, 3, 4, 4), **options)


def batch(size=(8, 10), mask_size=None, classes=3, seed=0, n=2):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, classes, (n, *(mask_size or size)), generator=generator)
    return {"image": torch.randn(n, 3, *size, generator=generator), "mask": mask}


def test_labels_are_scored_at_their_own_resolution():
    model, data = pointwise(), batch((8, 10), (19, 33))
    up = nn.functional.interpolate(model(data["image"]), size=(19, 33), mode="bilinear", align_corners=False)
    scores = evaluate(model, [data], num_classes=3)[1.0]
    assert scores.confusion.sum() == data["mask"].numel()
    assert scores.pixel_accuracy == pytest.approx((up.argmax(1) == data["mask"]).float().mean().item())


def test_batches_of_several_sizes_and_generators():
    data = [batch(seed=1), batch((6, 5), (3, 4), seed=2, n=1), batch((1, 1), seed=3)]
    scores = evaluate(pointwise(), iter(data), num_classes=3)[1.0]
    assert scores.confusion.sum() == sum(item["mask"].numel() for item in data)


def elastic():
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 3, 1, bias=False)
    )
    plain.num_classes = 3
    return slim(plain, (1.0, 0.5), example=torch.rand(2, 3, 8, 8))


def test_every_width_is_scored_in_order_and_the_model_is_left_as_it_was():
    model, data = elastic(), [batch(seed=1), batch(seed=2)]
    set_width(model, 0.5)
    model.train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    scores = evaluate(model, data, widths=(0.5, 1.0), num_classes=3)
    assert list(scores) == [0.5, 1.0]
    assert [module.training for module in model.modules()] == modes and get_width(model) == 0.5
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.eval()
    for width in (0.5, 1.0):
        set_width(model, width)
        alone = evaluate(model, data, widths=(width,), num_classes=3)[width]
        assert alone.to_dict() == scores[width].to_dict()
    assert (scores[0.5].confusion != scores[1.0].confusion).any()


def test_the_model_is_restored_after_an_error():
    model = elastic().train()
    with pytest.raises(DataError):
        evaluate(model, [batch(classes=9)], widths=(0.5,), num_classes=3)
    assert model.training and get_width(model) == 1.0


def test_views_reach_the_model():
    model = Recorder()
    evaluate(model, [batch((12, 12))], num_classes=3, mode="sliding", window=(8, 8), flip=True)
    assert len(model.sizes) == 8 and set(model.sizes) == {(8, 8)}


def test_bad_input():
    with pytest.raises(DataError, match="no batches"):
        evaluate(pointwise(), [], num_classes=3)
    with pytest.raises(ModelError, match="pass num_classes"):
        evaluate(pointwise(), [batch()])
    with pytest.raises(ModelError, match="gives 3 classes, the evaluation expects 5"):
        evaluate(pointwise(), [batch()], num_classes=5)
    with pytest.raises(DataError, match="2 images do not fit"):
        evaluate(pointwise(), [{**batch(), "mask": batch()["mask"][:1]}], num_classes=3)
    with pytest.raises(WidthError):
        evaluate(pointwise(), [batch()], widths=(0.5,), num_classes=3)
