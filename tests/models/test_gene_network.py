import pytest
import torch

from disentangled_mil import GeneNetwork, SNNEncoder, SubspaceHead


@pytest.fixture
def network() -> GeneNetwork:
    torch.manual_seed(0)
    return GeneNetwork({"tumor": 5, "tme": 3}, 4, dim=8, gene_tokens=3).eval()


@pytest.fixture
def genes(generator) -> dict[str, torch.Tensor]:
    return {"tumor": torch.randn(6, 5, generator=generator), "tme": torch.randn(6, 3, generator=generator)}


def test_it_is_a_head_over_the_mean_gene_tokens_of_every_subspace(network, genes):
    out = network(genes)
    tokens = network.genes(genes)
    for name, features in out.features.items():
        assert tokens[name].shape == (6, 3, 8)
        torch.testing.assert_close(features, tokens[name].sum(1) / 3)
    torch.testing.assert_close(out.logits, network.head(out.features).logits)
    assert list(out.features) == ["tumor", "tme"]
    assert isinstance(network.genes, SNNEncoder)
    assert isinstance(network.head, SubspaceHead)


def test_subspaces_are_matched_by_name_and_patients_are_independent(network, genes):
    out = network(genes)
    turned = network({"tme": genes["tme"], "tumor": genes["tumor"]})
    assert torch.equal(turned.logits, out.logits)
    alone = network({name: values[2:3] for name, values in genes.items()})
    torch.testing.assert_close(alone.logits[0], out.logits[2])


def test_every_gene_and_parameter_has_a_gradient(network, genes):
    leaves = {name: values.requires_grad_() for name, values in genes.items()}
    network(leaves).logits.square().sum().backward()
    assert all((values.grad != 0).all() for values in leaves.values())
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_dropout_acts_in_training_only(genes):
    network = GeneNetwork({"tumor": 5, "tme": 3}, 4, dim=8, dropout=0.5)
    torch.manual_seed(0)
    assert not torch.equal(network(genes).logits, network(genes).logits)
    network.eval()
    assert torch.equal(network(genes).logits, network(genes).logits)


def test_weights_survive_saving(network, genes):
    other = GeneNetwork({"tumor": 5, "tme": 3}, 4, dim=8, gene_tokens=3).eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(genes).logits, network(genes).logits)


def test_any_number_of_subspaces_is_possible():
    network = GeneNetwork({"a": 2, "b": 3, "c": 4}, 1, dim=4)
    out = network({"a": torch.zeros(2, 2), "b": torch.zeros(2, 3), "c": torch.zeros(2, 4)})
    assert out.logits.shape == (2, 1)
    assert GeneNetwork({"a": 2}, 1, dim=4)({"a": torch.zeros(2, 2)}).logits.shape == (2, 1)


def test_names_and_shapes_that_disagree_are_refused(network, genes):
    with pytest.raises(ValueError, match=r"exactly the names \['tme', 'tumor'\], got \['tumor'\]"):
        network({"tumor": genes["tumor"]})
    with pytest.raises(ValueError, match=r"\[6, 4\]"):
        network({**genes, "tumor": genes["tumor"][:, :4]})
    with pytest.raises(ValueError, match=r"^genes must hold at least one name"):
        GeneNetwork({}, 4)
