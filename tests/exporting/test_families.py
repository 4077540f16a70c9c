"""Every family of networks leaves as a file that gives the network's answers on real images."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.exporting.onnx import export_onnx
from limbeck.exporting.verify import verify_onnx
from limbeck.models.door import load_model

# None is the size that the network's own code is written for.
QUICK = {
    "limbeck:resnet8": None,
    "deit_tiny_patch16_224": (64, 64),
    "mobilenetv3_small_050": (64, 64),
    "swin_tiny_patch4_window7_224": (64, 64),
    "convnext_atto": (64, 64),
}
SLOW = {
    "cait_xxs24_224": (64, 64),
    "efficientformerv2_s0": None,
    "tiny_vit_5m_224": None,
    "fastvit_t8": (64, 64),
    "vit_small_patch14_reg4_dinov2": (56, 56),
    "vit_small_patch16_dinov3": (64, 64),
    "torchvision:resnet18": (64, 64),
    "torchvision:vit_b_16": (64, 64),
}
ALL = os.environ.get("LIMBECK_ALL_FAMILIES") == "1"


@pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *(
            pytest.param(
                name, marks=pytest.mark.skipif(not ALL, reason="about ten seconds each; set LIMBECK_ALL_FAMILIES=1")
            )
            for name in SLOW
        ),
    ],
)
def test_a_family_is_exported_and_verified(
    name: str, digits: tuple[list[Tensor], list[Tensor]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = load_model(name, num_classes=10, pretrained=False, input_size={**QUICK, **SLOW}[name])
    with torch.no_grad():
        for weight in model.parameters():  # layer scales of 1e-5 and heads of zeros would hide most of the network
            if weight.ndim > 1 and weight.abs().max() < 1e-3:
                torch.nn.init.normal_(weight, std=0.05)
            elif 0 < weight.abs().max() <= 1e-3:
                weight.fill_(0.1)
    images = F.interpolate(digits[0][0][:8], model.facts.input_size, mode="bilinear")
    path = export_onnx(model, tmp_path / "model.onnx")
    found = verify_onnx(path, model, [images], [digits[1][0][:8]])
    with torch.no_grad():
        logits = model.eval()(images).logits
    assert logits.std(0).max() > 1e-3, "the answers do not depend on the image, so agreement would mean nothing"
    assert found.passed, found
    assert found.max_abs_difference < 1e-4 * max(1.0, float(logits.abs().max()))
    assert found.batch_sizes == (1, 2, 5, 8)
