from __future__ import annotations

import pytest
import torch
from torch import nn

from litheseg.models.inference import evaluating, threads_limited


def test_everything_is_restored_also_after_a_failure() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    module.train()
    module[0].eval()
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), evaluating(module) as same, threads_limited(before + 1):
        assert same is module and not module.training and not module[1].training
        assert torch.get_num_threads() == before + 1
        module(torch.zeros(1, 7, 4, 4))
    assert torch.get_num_threads() == before
    assert module.training and module[1].training and not module[0].training


def test_no_number_of_threads_changes_nothing() -> None:
    before = torch.get_num_threads()
    with threads_limited(None):
        assert torch.get_num_threads() == before
