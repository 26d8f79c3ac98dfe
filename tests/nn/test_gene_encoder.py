import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from disentangled_mil.nn.gene_encoder import SNNEncoder
from tests.support.golden import load_golden


def _deep(activation: str, dropout: float = 0.0) -> SNNEncoder:
    torch.manual_seed(0)
    return SNNEncoder({"tumor": 256}, 256, hidden=[256] * 8, dropout=dropout, activation=activation)


def _depths(encoder: SNNEncoder, values: Tensor) -> list[tuple[float, float]]:
    """Mean and variance after every layer."""
    moments = []
    for layer in encoder.networks["tumor"]:
        values = layer(values)
        moments.append((values.mean().item(), values.var().item()))
    return moments


def test_the_released_variant_meets_the_golden_numbers():
    case = load_golden("snn_gene_encoder")
    encoder = SNNEncoder({"tumor": 59}, 128, activation="elu").eval()
    state = {
        f"networks.tumor.{name.removeprefix('param/encoder.')}": value
        for name, value in case.items()
        if name.startswith("param/encoder.")
    }
    encoder.load_state_dict(state)
    classifier = nn.Linear(128, 4)
    classifier.load_state_dict({k: case[f"param/classifier.0.{k}"] for k in ("weight", "bias")})

    features = encoder({"tumor": case["genes"]})["tumor"][:, 0]  # [B, C]

    torch.testing.assert_close(features, case["features"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(classifier(features), case["logits"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_selu_keeps_mean_zero_and_variance_one_through_depth(dropout, generator):
    encoder = _deep("selu", dropout).train()
    moments = _depths(encoder, torch.randn(2000, 256, generator=generator))
    assert len(moments) == 9
    for mean, variance in moments:
        assert abs(mean) < 0.1
        assert 0.8 < variance < 1.25


@torch.no_grad()
def test_elu_does_not_keep_variance_one_through_depth(generator):
    moments = _depths(_deep("elu").eval(), torch.randn(2000, 256, generator=generator))
    assert moments[-2][1] < 0.5


@torch.no_grad()
@pytest.mark.parametrize(("activation", "keeps"), [("selu", True), ("elu", False)])
def test_alpha_dropout_keeps_the_moments_after_selu_only(activation, keeps, generator):
    encoder = _deep(activation, dropout=0.2)
    values = torch.randn(4000, 256, generator=generator)
    (mean, variance), *_ = _depths(encoder.eval(), values)
    (dropped_mean, dropped_variance), *_ = _depths(encoder.train(), values)
    same = abs(dropped_mean - mean) < 0.02 and abs(dropped_variance / variance - 1) < 0.03
    assert same is keeps


@pytest.mark.parametrize("activation", ["selu", "elu"])
def test_weights_are_lecun_normal_and_biases_zero(activation):
    torch.manual_seed(0)
    encoder = SNNEncoder({"tumor": 400}, 300, hidden=(200,), activation=activation)
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert parameter.std().item() == pytest.approx(parameter.shape[1] ** -0.5, rel=0.03)
            assert abs(parameter.mean().item()) < 4 * parameter.shape[1] ** -0.5 / math.sqrt(parameter.numel())


def test_selu_tokens_are_not_clipped_and_elu_tokens_are(generator):
    genes = {"tumor": torch.randn(8, 20, generator=generator)}
    assert SNNEncoder({"tumor": 20}, activation="selu").eval()(genes)["tumor"].min() < 0
    assert SNNEncoder({"tumor": 20}, activation="elu").eval()(genes)["tumor"].min() == 0


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    hidden=st.lists(st.integers(1, 6), max_size=3),
    tokens=st.integers(1, 4),
    batch=st.integers(0, 4),
    seed=st.integers(0, 2**31),
)
def test_every_subspace_has_a_network_of_its_own_and_every_patient_stands_alone(sizes, hidden, tokens, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    names = [f"s{index}" for index in range(len(sizes))]
    encoder = SNNEncoder(dict(zip(names, sizes, strict=True)), 5, hidden=hidden, gene_tokens=tokens).eval()
    genes = {
        name: torch.randn(batch, size, generator=generator)
        for name, size in reversed(list(zip(names, sizes, strict=True)))
    }
    out = encoder(genes)
    assert list(out) == names
    assert all(tensor.shape == (batch, tokens, 5) for tensor in out.values())
    for row in range(batch):
        alone = encoder({name: values[row : row + 1] for name, values in genes.items()})
        for name in names:
            torch.testing.assert_close(alone[name][0], out[name][row])
    changed = encoder({**genes, names[0]: genes[names[0]] + 1})
    for name in names[1:]:
        assert torch.equal(changed[name], out[name])


def test_gradients_are_those_of_finite_differences(generator):
    encoder = SNNEncoder({"tumor": 3, "tme": 4}, 2, hidden=(3,), gene_tokens=2).double().eval()
    tumor = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    tme = torch.randn(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: tuple(encoder({"tumor": a, "tme": b}).values()), (tumor, tme))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_converted_to_the_type_of_the_weights(dtype, generator):
    encoder = SNNEncoder({"tumor": 6}, 4).eval()
    values = torch.randn(2, 6, generator=generator).to(dtype)
    out = encoder({"tumor": values})["tumor"]
    assert out.dtype == torch.float32
    assert torch.equal(out, encoder({"tumor": values.float()})["tumor"])


def test_state_dict_and_repr_round_trip(generator):
    encoder = SNNEncoder({"tumor": 6, "tme": 3}, 4, hidden=(5,), gene_tokens=2, dropout=0.2).eval()
    options = encoder.extra_repr()
    assert options == (
        "genes={'tumor': 6, 'tme': 3}, dim=4, hidden=(5,), gene_tokens=2, dropout=0.2, activation='selu'"
    )
    twin = eval(f"SNNEncoder({options})").eval()
    twin.load_state_dict(encoder.state_dict())
    genes = {"tumor": torch.randn(2, 6, generator=generator), "tme": torch.randn(2, 3, generator=generator)}
    for mine, theirs in zip(encoder(genes).values(), twin(genes).values(), strict=True):
        assert torch.equal(mine, theirs)


def test_widths_may_come_from_a_generator():
    assert SNNEncoder({"tumor": 3}, hidden=(width for width in (5, 4))).hidden == (5, 4)


@pytest.mark.parametrize("name", ["", "a.b", "keys", "training", "float"])
def test_names_that_no_module_can_have_are_refused(name):
    with pytest.raises(ValueError, match=rf"genes must (be non-empty strings|not be attributes of) .*, got '{name}'"):
        SNNEncoder({name: 3})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"genes": {}}, ValueError, r"genes must hold at least one name, each once, got \(\)"),
        ({"genes": {1: 3}}, TypeError, "genes must be a sequence of names, got 1 among them"),
        ({"genes": [3, 4]}, TypeError, "genes must be a mapping from names, got list"),
        ({"genes": {"tumor": 0}}, ValueError, r"genes\['tumor'\] must be at least 1, got 0"),
        ({"genes": {"tumor": 2.0}}, TypeError, r"genes\['tumor'\] must be an integer, got float"),
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"hidden": 64}, TypeError, "hidden must be a sequence of integers, got int"),
        ({"hidden": (4, 0)}, ValueError, "hidden must be at least 1, got 0"),
        ({"gene_tokens": 0}, ValueError, "gene_tokens must be at least 1, got 0"),
        ({"dropout": 1.5}, ValueError, r"dropout must lie in \[0.0, 1.0\], got 1.5"),
        ({"activation": "relu"}, ValueError, "activation must be one of 'selu', 'elu', got 'relu'"),
    ],
)
def test_options_out_of_range_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        SNNEncoder(**{"genes": {"tumor": 3}, **arguments})


@pytest.mark.parametrize(
    ("genes", "error", "message"),
    [
        (torch.ones(2, 3), TypeError, "genes must be a mapping from names, got Tensor"),
        ({"tumor": torch.ones(2, 3)}, ValueError, r"genes must have exactly the names \['tme', 'tumor'\]"),
        (
            {"tumor": torch.ones(2, 3), "tme": torch.ones(2, 2), "immune": torch.ones(2, 2)},
            ValueError,
            r"got \['immune', 'tme', 'tumor'\]",
        ),
        (
            {"tumor": torch.ones(2, 3), "tme": torch.ones(2, 3)},
            ValueError,
            r"genes\['tme'\] must have shape \[B, G\] = \[2, 2\], got \[2, 3\]",
        ),
        (
            {"tumor": torch.ones(2, 3), "tme": torch.ones(1, 2)},
            ValueError,
            r"genes\['tme'\] must have shape \[B, G\] = \[2, 2\], got \[1, 2\]",
        ),
        (
            {"tumor": torch.ones(2, 3, dtype=torch.int64), "tme": torch.ones(2, 2)},
            TypeError,
            r"genes\['tumor'\] must be a floating-point tensor, got torch.int64",
        ),
    ],
)
def test_genes_that_do_not_fit_are_refused(genes, error, message):
    with pytest.raises(error, match=message):
        SNNEncoder({"tumor": 3, "tme": 2}, 4)(genes)
