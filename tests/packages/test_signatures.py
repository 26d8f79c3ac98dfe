"""Layers behind the call signatures that other projects document: CLAM, MIL-Lab and SurvPath.

These projects are no packages of PyPI, so their calls are written out as their documentation states them.
"""

import torch
from torch import nn

from disentangled_mil import CGCOptimizer
from tests.packages.page import page


def test_model_in_a_loop_of_clam_gives_its_five_values_and_cgc_its_confidences():
    torch.manual_seed(0)
    found = page()
    model = found["ForCLAM"](6, 2)
    optimizer = CGCOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-2), model.head.subspace_parameters())
    loss_fn = found["LossForCLAM"](model, optimizer)
    for seed in range(3):
        data, label = torch.randn(9, 6, generator=torch.Generator().manual_seed(seed)), torch.tensor([seed % 2])
        logits, probability, predicted, attention, results = model(data)
        assert (logits.shape, probability.shape, predicted.shape, attention.shape) == ((1, 2), (1, 2), (1, 1), (1, 9))
        assert results == {}
        loss_fn(logits, label).backward()
        shares = {name: float(share.softmax(1)[0, label]) for name, share in model.shares.items()}
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # validation, whose confidences do not count
            loss_fn(model(data + 1)[0], label)
        assert {name: float(value) for name, value in optimizer.report.confidence.items()} == shares


def test_model_of_mil_lab_takes_h_and_a_mask_and_returns_dictionaries():
    torch.manual_seed(0)
    model = page()["ForMILLab"](6, 2).eval()
    h = torch.randn(2, 9, 6)
    kept = torch.ones(2, 9)
    kept[1, 5:] = 0
    results, log = model(h, loss_fn=nn.CrossEntropyLoss(), label=torch.tensor([0, 1]), attn_mask=kept)
    alone, _ = model(h[1:, :5])
    torch.testing.assert_close(results["logits"][1:], alone["logits"])
    assert results["loss"].ndim == 0
    assert log == {"loss": results["loss"].item()}


def test_model_of_survpath_takes_keywords():
    torch.manual_seed(0)
    model = page()["ForSurvPath"](6, {"x_omic1": 5, "x_omic2": 7}, 4).eval()
    logits = model(x_path=torch.randn(1, 9, 6), x_omic1=torch.randn(5), x_omic2=torch.randn(7), return_attn=False)
    assert logits.shape == (1, 4)
