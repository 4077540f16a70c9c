"""A vector for every class, from which NAYER's generator begins, and the noisy layer that makes many pictures of one.

Published (Tran et al., CVPR 2024, arXiv:2310.00258) are the text embeddings of a CLIP. Its weights are an outside network
trained on images with captions; `teacher` does without: the rows of the teacher's own classifier are as near to each
other as the classes are to the teacher. That choice is ours.
"""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.models.text_embeddings import class_text_embeddings
from limbeck.synthesis.base import Setting

RANDOM_WIDTH = 256


def class_embeddings(setting: Setting, source: str) -> tuple[Tensor, str]:
    """The vectors that `embeddings=` of NAYER asks for.

    Args:
        setting: whose teacher and class names are read.
        source: `auto`, `teacher`, `hf:NAME` or `hf:FOLDER` (a CLIP of transformers), or the path of a `.npz` file with
            an array `embeddings` of shape (K, D).

    Returns:
        (K, D) float32 on the teacher's device, and a sentence for the user.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the source is none of these or does not fit, or a CLIP is asked for and there are no class names.
    """
    if source.startswith("hf:"):
        found, note = _of_names(setting, source.removeprefix("hf:"))
    elif source.endswith(".npz"):
        found, note = _of_file(setting, Path(source))
    elif source in ("auto", "teacher"):
        found, note = _of_teacher(setting)
        if source == "auto":
            note += " Name a CLIP (embeddings='hf:openai/clip-vit-base-patch32') for the published text embeddings."
    else:
        raise UserError(
            f"nayer: embeddings is {source!r}; it must be 'auto', 'teacher', 'hf:' and a CLIP's name or folder, or a .npz "
            "file with an array 'embeddings'."
        )
    return found.to(setting.device), note


def classifier_rows(teacher: VisionModel) -> Tensor | None:
    """(K, D), the weight of the layer that gives the logits; None where no layer has its shape."""
    wanted = (teacher.facts.num_classes, teacher.facts.pooled_channels)
    fitting = [
        layer.weight
        for layer in teacher.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.flatten(1).shape == wanted
    ]
    return fitting[-1].detach().flatten(1).float() if fitting else None


class NoisyLayers(nn.Module):
    """BatchNorm1d, then linear layers that are redrawn from N(0, 1) for each batch and never learn.

    A batch holds each class about once in every K pictures, and each such group has a layer of its own: two pictures of a
    class in a batch differ by their groups' layers, those of two batches by the redrawing. (Section 3.3.)

    Args:
        embeddings: (K, D), fixed.
        width: of the result, the generator's latent dimension.
        groups: layers.

    Attributes:
        weight: (groups, width, D), a buffer.
    """

    embeddings: Tensor
    weight: Tensor

    def __init__(self, embeddings: Tensor, width: int, groups: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings, persistent=False)
        self.register_buffer("weight", embeddings.new_zeros(groups, width, embeddings.shape[1]))
        # By the statistics of the batch in every mode, as the generator's own norms.
        self.norm = nn.BatchNorm1d(embeddings.shape[1], track_running_stats=False)
        self.redraw()

    def redraw(self) -> None:
        """New layers, for the next batch, by torch's random numbers of the CPU."""
        self.weight.copy_(torch.randn(self.weight.shape))

    def forward(self, asked: Tensor) -> Tensor:
        """(B,) classes, group after group of K (the last may be shorter), to (B, width)."""
        normed = self.norm(self.embeddings[asked])
        groups = normed.split(len(self.embeddings))
        return torch.cat([group @ weight.T for group, weight in zip(groups, self.weight, strict=True)])


def _of_names(setting: Setting, name: str) -> tuple[Tensor, str]:
    if setting.class_names is None:
        raise UserError(
            f"nayer: embeddings is 'hf:{name}', a text encoder, but the names of the teacher's {setting.num_classes} "
            "classes were not recorded. Train the teacher with `limbeck train`, which records them, or take "
            "embeddings='teacher'."
        )
    return class_text_embeddings(name, setting.class_names), f"The generator begins from {name}'s class names."


def _of_file(setting: Setting, path: Path) -> tuple[Tensor, str]:
    if not path.is_file():
        raise FileNotFoundError(f"The file of class embeddings {path} does not exist.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = np.asarray(arrays["embeddings"], np.float32)
    except KeyError:
        found, what = np.zeros(0, np.float32), "has no array 'embeddings'"
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        found, what = np.zeros(0, np.float32), f"is no readable .npz file of numbers ({error})"
    else:
        what = (
            f"holds embeddings of shape {found.shape}"
            if np.isfinite(found).all()
            else "holds embeddings that are not finite"
        )
    if found.ndim != 2 or len(found) != setting.num_classes or not np.isfinite(found).all():
        raise UserError(
            f"{path} {what}; nayer needs finite ones of shape ({setting.num_classes}, D), a row for every class of the "
            "teacher, in label order."
        )
    return torch.from_numpy(found), f"The generator begins from the class embeddings in {path}."


def _of_teacher(setting: Setting) -> tuple[Tensor, str]:
    rows = classifier_rows(setting.teacher)
    if rows is not None:
        return rows, "The generator begins from the rows of the teacher's classifier, in place of names' embeddings."
    generator = torch.Generator().manual_seed(setting.seed)
    drawn = torch.empty(setting.num_classes, RANDOM_WIDTH)
    nn.init.orthogonal_(drawn, generator=generator)
    return (
        drawn,
        "No layer of the teacher gives its logits alone, so the generator begins from random orthogonal vectors.",
    )
