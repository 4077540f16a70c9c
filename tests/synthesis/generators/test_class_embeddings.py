"""Where NAYER's class vectors come from, and the layers of noise behind them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.synthesis.base import Setting
from limbeck.synthesis.generators.class_embeddings import NoisyLayers, class_embeddings, classifier_rows


def test_the_teachers_rows_are_its_classifiers(resnet_setting: Setting, vit_setting: Setting) -> None:
    resnet, vit = resnet_setting.teacher, vit_setting.teacher
    assert torch.equal(class_embeddings(resnet_setting, "teacher")[0], resnet.classifier.weight)
    assert torch.equal(class_embeddings(vit_setting, "teacher")[0], vit.network.head.weight)


def test_auto_is_the_teacher_and_says_how_to_get_more(resnet_setting: Setting) -> None:
    rows, note = class_embeddings(resnet_setting, "auto")
    assert torch.equal(rows, class_embeddings(resnet_setting, "teacher")[0])
    assert "hf:openai/clip" in note


def test_without_such_a_layer_they_are_orthogonal(resnet_setting: Setting) -> None:
    resnet_setting.teacher.classifier = nn.Identity()  # type: ignore[assignment]
    assert classifier_rows(resnet_setting.teacher) is None
    rows, _ = class_embeddings(resnet_setting, "teacher")
    torch.testing.assert_close(rows @ rows.T, torch.eye(4))


def test_a_file_must_have_a_row_for_every_class(resnet_setting: Setting, tmp_path: Path) -> None:
    path = tmp_path / "names.npz"
    with pytest.raises(FileNotFoundError, match=r"names\.npz"):
        class_embeddings(resnet_setting, str(path))
    given = np.arange(12).reshape(4, 3)
    np.savez(path, embeddings=given)
    assert class_embeddings(resnet_setting, str(path))[0].tolist() == given.tolist()
    np.savez(path, embeddings=given.T)
    with pytest.raises(UserError, match=r"shape \(3, 4\).*\(4, D\)"):
        class_embeddings(resnet_setting, str(path))
    np.savez(path, vectors=given)
    with pytest.raises(UserError, match="no array 'embeddings'"):
        class_embeddings(resnet_setting, str(path))
    path.write_bytes(b"broken")
    with pytest.raises(UserError, match="no readable"):
        class_embeddings(resnet_setting, str(path))


def test_a_clip_needs_names_of_classes(resnet_setting: Setting) -> None:
    with pytest.raises(UserError, match="names of the teacher's 4 classes were not recorded"):
        class_embeddings(resnet_setting, "hf:openai/clip-vit-base-patch32")
    with pytest.raises(UserError, match="must be 'auto'"):
        class_embeddings(replace(resnet_setting, class_names=("a", "b", "c", "d")), "clip")


def test_each_group_of_classes_has_a_layer_of_its_own() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(3, 5)
    noise = NoisyLayers(embeddings, 7, 2)
    asked = torch.tensor([2, 0, 1, 1, 0])
    made = noise(asked)
    normed = embeddings[asked]
    normed = (normed - normed.mean(0)) / (normed.var(0, correction=0) + 1e-5).sqrt()
    expected = torch.stack([noise.weight[place // 3] @ row for place, row in enumerate(normed)])
    torch.testing.assert_close(made, expected)
    # The class that stands in both groups is another vector in each.
    assert not torch.allclose(made[1], made[4])


def test_the_noise_is_normal_and_learns_nothing() -> None:
    noise = NoisyLayers(torch.randn(10, 64), 256, 3)
    assert {name for name, _ in noise.named_parameters()} == {"norm.weight", "norm.bias"}
    before = noise.weight.clone()
    noise.redraw()
    assert not torch.equal(before, noise.weight)
    assert abs(noise.weight.mean().item()) < 0.02 and abs(noise.weight.std().item() - 1) < 0.02
