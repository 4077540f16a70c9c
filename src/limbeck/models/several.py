"""Several networks taken as one teacher: each sees the same images, and the class probabilities are averaged."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.models.base import Provenance, VisionModel
from limbeck.models.door import load_model
from limbeck.models.names import JOINER, split_model_names
from limbeck.outputs import ModelFacts, Outputs, Request


class SeveralModels(VisionModel):
    """Models that are shown the same images in [0, 1]; each resizes and normalises them for itself.

    `Outputs.members` holds what each of them answers to its own `Request` (`Request.members`, in their order). `Outputs.logits`
    is the logarithm of the mean of their class probabilities, so that softmax gives that mean; where their numbers of classes
    differ it is empty, (B, 0), and `facts.num_classes` is 0. There are no maps of all together: `facts.levels` is empty.

    Args:
        models: at least two.
    """

    def __init__(self, models: Sequence[VisionModel]) -> None:
        assert len(models) > 1
        super().__init__((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.models = nn.ModuleList(models)
        own = [model.facts for model in models]
        classes = {facts.num_classes for facts in own}
        self.facts = ModelFacts(
            JOINER.join(facts.name for facts in own),
            classes.pop() if len(classes) == 1 else 0,
            (max(facts.input_size[0] for facts in own), max(facts.input_size[1] for facts in own)),
            levels=(),
            pooled_channels=0,
            members=tuple(own),
        )
        self.provenance = Provenance(
            licence=_licences(models),
            source="; ".join(f"{model.facts.name}: {model.provenance.source}" for model in models),
            notes=[f"{model.facts.name}: {note}" for model in models for note in model.provenance.notes],
        )
        self.rebuild = {}  # it teaches and is never saved

    @property
    def members(self) -> tuple[VisionModel, ...]:
        """The models, in the order of their names."""
        found: tuple[VisionModel, ...] = tuple(self.models)  # type: ignore[arg-type]
        return found

    def prepare(self, images: Tensor) -> Tensor:
        """The images as they are, since each model prepares them for itself."""
        return images

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        """The answers of each, to (B, 3, H, W) images in [0, 1]."""
        asked = request.members or (Request(),) * len(self.models)
        members = tuple(model(inputs, own) for model, own in zip(self.models, asked, strict=True))
        if not self.facts.num_classes:
            return Outputs(inputs.new_zeros(inputs.shape[0], 0), members=members)
        return Outputs(log_mean_probability([of.logits for of in members]), members=members)


def load_teacher(name: str, *, input_size: tuple[int, int] | None = None) -> VisionModel:
    """Open a teacher by its name, or several by theirs.

    Args:
        name: as for `limbeck.models.load_model`, or several such names joined by ` + `.
        input_size: (height, width) in pixels that images are resized to; None is each model's own.

    Raises:
        FileNotFoundError: a named file or folder does not exist.
        UserError: a name is unknown, or its weights cannot be fetched, read or fitted.
    """
    names = split_model_names(name)
    models = [load_model(one, input_size=input_size) for one in names]
    return models[0] if len(models) == 1 else SeveralModels(models)


def log_mean_probability(logits: Sequence[Tensor]) -> Tensor:
    """log of the mean over models of softmax(logits), at least in float32.

    Args:
        logits: of each model (B, K).
    """
    logs = torch.stack([(of if of.dtype == torch.float64 else of.float()).log_softmax(1) for of in logits])
    return logs.logsumexp(0) - math.log(len(logits))


def _licences(models: Sequence[VisionModel]) -> str:
    licences = {model.provenance.licence for model in models}
    if len(licences) == 1:
        return licences.pop()
    return "; ".join(f"{model.facts.name}: {model.provenance.licence}" for model in models)
