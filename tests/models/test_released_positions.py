"""The released convention of positions: golden numbers, and a convolution with grid sampling as the oracle."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from disentangled_mil.bags import Grid
from disentangled_mil.models.released import ReleasedPositions
from disentangled_mil.nn import DeformableCrossAttention
from tests.support.deformable import exact, small_layer
from tests.support.golden import load_golden

RELEASED = {"positions": ReleasedPositions(), "bias": "exact", "max_keys": None}


def released_parameters(case: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Released names -> ours."""
    names = {
        "to_offsets.0.weight": "to_offsets.depthwise.weight",
        "to_offsets.0.bias": "to_offsets.depthwise.bias",
        "to_offsets.2.weight": "to_offsets.pointwise.weight",
        "rel_pos_bias.mlp.0.0.weight": "position_bias.mlp.0.weight",
        "rel_pos_bias.mlp.0.0.bias": "position_bias.mlp.0.bias",
        "rel_pos_bias.mlp.1.0.weight": "position_bias.mlp.2.weight",
        "rel_pos_bias.mlp.1.0.bias": "position_bias.mlp.2.bias",
        "rel_pos_bias.mlp.2.weight": "position_bias.mlp.4.weight",
        "rel_pos_bias.mlp.2.bias": "position_bias.mlp.4.bias",
        "to_q.weight": "to_q.weight",
        "to_k.weight": "to_k.weight",
        "to_v.weight": "to_v.weight",
        "to_out.weight": "to_out.weight",
        "to_out.bias": "to_out.bias",
    }
    return {ours: case[f"{prefix}{theirs}"] for theirs, ours in names.items()}


@pytest.mark.parametrize("name", ["g2_h8", "g4_h4", "g4_h4_r2"])
def test_released_layer_is_met_with_gradients(name: str) -> None:
    case = load_golden(f"deformable_cross_attention_{name}")
    config = {key.removeprefix("config/"): int(case[key]) for key in case if key.startswith("config/")}
    layer = DeformableCrossAttention(
        config["dim"],
        heads=config["heads"],
        dim_head=config["dim_head"],
        groups=config["offset_groups"],
        downsample=config["downsample_factor"],
        kernel_size=config["offset_kernel_size"],
        offset_scale=config["offset_scale"],
        **RELEASED,
    ).double()
    layer.eval()
    parameters = dict(layer.named_parameters())
    layer.load_state_dict({k: v.reshape(parameters[k].shape) for k, v in released_parameters(case, "param/").items()})
    query = case["query_tokens"].transpose(1, 2).requires_grad_()
    value = case["value_tokens"].transpose(1, 2).requires_grad_()
    out = layer(query, value, Grid.square(query.shape[1]))
    exact = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(out.tokens.transpose(1, 2), case["out"], **exact)
    torch.testing.assert_close(out.attention.weights(), case["attention"], **exact)
    side = int(case["sampling_positions"].shape[-1])
    positions = out.attention.coarse_positions.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
    torch.testing.assert_close(positions, case["sampling_positions"], **exact)
    (out.tokens * case["grad_out"].transpose(1, 2)).sum().backward()
    torch.testing.assert_close(query.grad.transpose(1, 2), case["grad_query_tokens"], **exact)
    torch.testing.assert_close(value.grad.transpose(1, 2), case["grad_value_tokens"], **exact)
    for key, gradient in released_parameters(case, "grad/").items():
        torch.testing.assert_close(parameters[key].grad, gradient.reshape(parameters[key].shape), **exact)


def attend_as_released(layer: DeformableCrossAttention, query: Tensor, context: Tensor, side: int) -> Tensor:
    """The released convention by convolution and grid sampling of torch."""
    batch, groups = len(query), layer.groups

    def normalize(x: Tensor, y: Tensor, size: int) -> Tensor:
        return 2 * torch.stack([x, y], dim=-1) / max(size - 1, 1) - 1

    def heads(tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, (layer.heads, layer.dim_head)).mT  # [B, H, N, D]

    q = layer.to_q(query.mT)
    conv, padding = layer.to_offsets.depthwise, (layer.kernel_size - layer.downsample) // 2
    windows = q.reshape(batch * groups, -1, side, side)
    hidden = F.conv2d(windows, conv.weight, conv.bias, layer.downsample, padding, groups=windows.shape[1])
    offset = layer.to_offsets.pointwise(F.gelu(hidden).movedim(1, -1)).tanh() * layer.offset_scale  # [BG, h, w, 2]
    coarse = offset.shape[1]
    rows, columns = torch.meshgrid(torch.arange(coarse), torch.arange(coarse), indexing="ij")
    places = normalize(columns + offset[..., 0], rows + offset[..., 1], coarse)
    maps = context.mT.reshape(batch * groups, -1, side, side)
    sampled = F.grid_sample(maps, places, align_corners=False).reshape(batch, -1, coarse**2)
    k, v = layer.to_k(sampled), layer.to_v(sampled)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    cells = normalize(columns.double(), rows.double(), side).reshape(1, -1, 1, 2)
    bias = layer.position_bias(cells - places.reshape(batch * groups, 1, -1, 2)).movedim(-1, 1)  # [BG, H/G, N, J]
    logits = heads(q) @ heads(k).mT * layer.dim_head**-0.5 + bias.reshape(batch, layer.heads, side**2, -1)
    return layer.to_out((logits.softmax(-1) @ heads(v)).mT.flatten(1, 2).mT)


@pytest.mark.parametrize("sizes", [(4, 4), (4, 6), (3, 5), (1, 3)], ids="r {0[0]}, kernel {0[1]}".format)
@pytest.mark.parametrize("side", [4, 5, 6, 7, 10, 13])
def test_released_positions_are_those_of_a_convolution_on_any_square(side: int, sizes: tuple[int, int]) -> None:
    downsample, kernel = sizes
    layer = small_layer(downsample=downsample, kernel_size=kernel, offset_scale=4.0, **RELEASED)
    source = torch.Generator().manual_seed(side)
    query, context = torch.randn(2, 2, side**2, 8, dtype=torch.float64, generator=source)
    expected = attend_as_released(layer, query, context, side)
    torch.testing.assert_close(layer(query, context, Grid.square(side**2)).tokens, expected, **exact)


@pytest.mark.parametrize("full", ["queries", "context"])
def test_grids_with_holes_are_refused(full: str) -> None:
    layer, tokens = small_layer(**RELEASED), torch.zeros(1, 9, 8, dtype=torch.float64)
    whole, holes = Grid.square(9), Grid.from_coords(torch.arange(9)[:, None] * torch.tensor([1, 2]), step=1)
    grids = (whole, holes) if full == "queries" else (holes, whole)
    with pytest.raises(ValueError, match=r"^ReleasedPositions\(\) needs grids that every bag fills row by row"):
        layer(tokens, tokens, *grids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": "table"}, "bias must be 'exact' for ReleasedPositions(), which may sample outside of the map"),
        ({"max_keys": 9}, "max_keys must be None for ReleasedPositions(), which has a fixed number of keys, got 9"),
    ],
)
def test_options_that_the_convention_does_not_allow_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        small_layer(**RELEASED | options)
