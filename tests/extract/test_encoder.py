"""An encoder is any function of normalized tiles, and what it returns is checked."""

import sys

import pytest
import torch
from torch import nn

from disentangled_mil.extract import Encoder, encode_tiles, load_encoder

FACTORIES = """
import torch
from torch import nn
from disentangled_mil.extract import Encoder

NUMBER = 3

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def function():
    return lambda tiles: tiles.mean((2, 3))

def own():
    return Encoder(function(), "mean color", (0, 0, 0), (1, 1, 1))

def nothing():
    return None
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """The name of a module that Python finds."""
    (tmp_path / "factories_of_a_test.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    yield "factories_of_a_test"
    sys.modules.pop("factories_of_a_test", None)


def tiles(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 224, 224, 3), generator=generator, dtype=torch.uint8)


def test_tiles_are_normalized_as_stated():
    seen = []
    encoder = Encoder(lambda x: seen.append(x) or x.mean((2, 3)), "a", (0.1, 0.2, 0.3), (0.5, 0.25, 1.0))
    encode_tiles(encoder, tiles())
    expected = (tiles().permute(0, 3, 1, 2) / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.25, 1.0]
    ).view(3, 1, 1)
    torch.testing.assert_close(seen[0], expected)


def test_a_module_of_a_factory_is_in_evaluation_mode_and_named_by_its_place(factories):
    encoder = load_encoder(f"{factories}:network")
    assert encoder.name == f"{factories}:network"
    assert not encoder.model.training
    alone = torch.cat([encode_tiles(encoder, tile[None]) for tile in tiles(3)])
    torch.testing.assert_close(encode_tiles(encoder, tiles(3)), alone)


def test_a_factory_may_return_a_function_or_an_encoder_of_its_own(factories):
    assert load_encoder(f"{factories}:function").mean == (0.485, 0.456, 0.406)
    own = load_encoder(f"{factories}:own")
    assert own.name == "mean color"
    torch.testing.assert_close(encode_tiles(own, tiles()), tiles().float().mean((1, 2)) / 255)


@pytest.mark.parametrize("spec", ["uni", "timm:", ":function", ""])
def test_other_texts_name_no_encoder(spec):
    with pytest.raises(ValueError, match="encoder must be timm:NAME or MODULE:FACTORY, got"):
        load_encoder(spec)


def test_what_cannot_be_imported_or_called_is_refused(factories):
    for spec, reason in (("no_such_module:f", "No module named"), (f"{factories}:absent", "no attribute 'absent'")):
        with pytest.raises(ValueError, match=f"must be MODULE:FACTORY that can be imported, got '{spec}'.*{reason}"):
            load_encoder(spec)
    with pytest.raises(ValueError, match=r"must be MODULE:FACTORY of a function, got .*NUMBER', a int"):
        load_encoder(f"{factories}:NUMBER")
    with pytest.raises(TypeError, match="must return an Encoder, a module or a function, got None"):
        load_encoder(f"{factories}:nothing")
    with pytest.raises(ValueError, match="weights and stage must come with an encoder timm:NAME"):
        load_encoder(f"{factories}:network", stage=3)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            nn.Conv2d(3, 4, 224),
            ValueError,
            r"encoder a must have shape \[B, D\] = \[2, D\], got \[2, 4, 1, 1\]",
        ),
        (lambda x: x.mean((0, 2, 3))[None], ValueError, r"must have shape \[B, D\] = \[2, D\], got \[1, 3\]"),
        (lambda x: [x], TypeError, "output of the encoder a must be a floating-point tensor, got list"),
        (lambda x: x.mean((2, 3)).long(), TypeError, r"must be a floating-point tensor, got torch\.int64"),
    ],
)
def test_other_outputs_are_refused(model, error, message):
    with pytest.raises(error, match=message):
        encode_tiles(Encoder(model, "a"), tiles())


def test_tiles_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"tiles must have shape \[B, 224, 224, 3\]"):
        encode_tiles(Encoder(lambda x: x), torch.zeros(1, 3, 224, 224))


def test_timm_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match="timm is not installed; pip install timm"):
        load_encoder("timm:resnet50")


def test_a_model_of_timm_has_its_own_normalization_and_no_classifier(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    encoder = load_encoder("timm:vit_tiny_patch16_224.augreg_in21k", weights=tmp_path / "weights.pth")
    assert (encoder.mean, encoder.std) == ((0.5,) * 3, (0.5,) * 3)
    assert encoder.name == "timm:vit_tiny_patch16_224.augreg_in21k, weights.pth"
    with torch.no_grad():
        colors = tiles().permute(0, 3, 1, 2) / 127.5 - 1
        expected = model.eval().forward_head(model.forward_features(colors), pre_logits=True)
    torch.testing.assert_close(encode_tiles(encoder, tiles()), expected)


def test_the_third_stage_of_a_resnet_is_averaged_over_the_tile(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("resnet50").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    encoder = load_encoder("timm:resnet50", weights=tmp_path / "weights.pth", stage=3)
    assert encoder.name == "timm:resnet50, stage 3, weights.pth"
    found = encode_tiles(encoder, tiles(1))
    assert found.shape == (1, 1024)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    with torch.no_grad():
        x = model.maxpool(model.act1(model.bn1(model.conv1((tiles(1).permute(0, 3, 1, 2) / 255 - mean) / std))))
        expected = model.layer3(model.layer2(model.layer1(x))).mean((2, 3))
    torch.testing.assert_close(found, expected)


def test_what_timm_does_not_have_is_refused(tmp_path):
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="must be a model of timm with weights and the stage: Unknown model"):
        load_encoder("timm:no_such")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth: no such file of weights"):
        load_encoder("timm:resnet18", weights=tmp_path / "absent.pth")
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="encoder timm:resnet18 must be a model of timm with weights and the stage"):
        load_encoder("timm:resnet18", weights=tmp_path / "weights.pth", stage=7)
    with pytest.raises(ValueError, match="stage must be at least 0, got -1"):
        load_encoder("timm:resnet18", stage=-1)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"must be a model of timm with weights .*other\.pth lacks conv1\.weight and"):
        load_encoder("timm:resnet18", weights=tmp_path / "other.pth")
