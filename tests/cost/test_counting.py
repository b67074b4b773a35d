from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from litheseg.cost.counting import count, layer_table


class _Mixed(nn.Module):
    """Convolutions of every kind, a linear gate, a skip connection and a head that eval mode leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=4, bias=False)
        self.gate = nn.Linear(16, 16)
        self.up = nn.ConvTranspose2d(16, 6, 3, stride=2, padding=1, output_padding=1)
        self.aux = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        if self.training:
            self.aux(x)
        x = self.grouped(x)
        x = x * self.gate(x.mean((2, 3)))[:, :, None, None].sigmoid()
        return self.up(x)


def test_hand_computed_table() -> None:
    rows = {row.name: row for row in layer_table(_Mixed(), (8, 12))}
    table = {name: (row.type, row.output, row.params, row.macs) for name, row in rows.items()}
    assert table == {
        "stem": ("Conv2d", (1, 8, 4, 6), 3 * 8 * 9 + 8, 4 * 6 * 3 * 8 * 9),
        "norm": ("BatchNorm2d", (1, 8, 4, 6), 16, 0),
        "grouped": ("Conv2d", (1, 16, 4, 6), 2 * 16 * 9, 4 * 6 * 2 * 16 * 9),
        "gate": ("Linear", (1, 16), 16 * 16 + 16, 16 * 16),
        "up": ("ConvTranspose2d", (1, 6, 8, 12), 16 * 6 * 9 + 6, 4 * 6 * 16 * 6 * 9),  # at the input's 4x6
        "aux": ("Conv2d", (), 8 * 5 + 5, 0),
    }


def test_table_sums_to_count() -> None:
    model = _Mixed()
    cost, rows = count(model, (9, 13)), layer_table(model, (9, 13))
    assert sum(row.macs for row in rows) == cost.macs
    assert sum(row.params for row in rows) == cost.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", [(8, 12), (9, 13), (32, 64)])
def test_macs_are_half_the_flops_of_torch(size: tuple[int, int]) -> None:
    model = _Mixed().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *size))
    assert 2 * count(model, size).macs == counter.get_total_flops()


@pytest.mark.parametrize("bias", [True, False])
def test_linear_on_tokens_and_unbatched_bias(bias: bool) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 7, bias=bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(2).transpose(1, 2))

    assert count(Tokens(), (4, 5)).macs == 20 * 3 * 7


def test_inference_mode_changes_nothing() -> None:
    expected = count(_Mixed(), (8, 8))
    with torch.inference_mode():
        assert count(_Mixed(), (8, 8)) == expected


def test_large_inputs_cost_neither_time_nor_memory() -> None:
    cost = count(nn.Conv2d(3, 64, 3, padding=1), (16384, 32768))  # 137 GB of output if it were real
    assert cost.macs == 16384 * 32768 * 64 * 27
    assert cost.peak_activation_bytes == 16384 * 32768 * (3 + 64) * 4


def test_peak_of_a_chain_is_its_worst_pair() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 2, 1))
    assert count(chain, (4, 4)).peak_activation_bytes == 16 * (8 + 16) * 4


def test_in_place_and_views_take_no_room() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
    in_place = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Flatten())
    assert count(plain, (4, 4)).peak_activation_bytes == 16 * (8 + 8) * 4
    assert count(in_place, (4, 4)).peak_activation_bytes == 16 * (3 + 8) * 4


def test_a_skip_connection_stays_alive() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return x + self.third(self.second(x))

    assert count(Skip(), (4, 4)).peak_activation_bytes == 16 * (8 + 8 + 8) * 4


def test_half_precision_weights_are_counted_as_float32() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    assert count(chain.half(), (4, 4)) == count(chain.float(), (4, 4))


def test_shared_layers_count_twice_in_macs_and_once_in_params() -> None:
    layer = nn.Conv2d(3, 3, 1, bias=False)
    model = nn.Sequential(layer, layer)
    cost = count(model, (4, 4))
    assert (cost.params, cost.macs) == (9, 2 * 16 * 9)
    (row,) = layer_table(model, (4, 4))
    assert (row.params, row.macs) == (9, 2 * 16 * 9)


def test_tied_weights_of_two_layers_belong_to_the_first() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False))
    model[1].weight = model[0].weight
    assert count(model, (2, 2)).params == 9
    assert [row.params for row in layer_table(model, (2, 2))] == [9, 0]


def test_functional_convolutions_and_slices_are_seen() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(8, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight[:4], padding=1)

    assert count(Sliced(), (4, 4)).macs == 16 * 4 * 27


def test_a_module_that_reads_values_is_run_for_real() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("alpha", torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if self.alpha.item() > 0 else x

    cost = count(Reads(), (4, 4))
    assert (cost.macs, cost.peak_activation_bytes) == (16 * 12, 16 * 7 * 4)


def test_the_module_is_left_as_it_was() -> None:
    model = _Mixed().train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count(model, (8, 8))
    assert model.training and not model.norm.training and not model.stem._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in model.parameters())


def test_a_genuine_error_is_the_models_own() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        count(nn.Sequential(nn.Conv2d(5, 4, 1)), (4, 4))
