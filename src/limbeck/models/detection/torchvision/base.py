"""What torchvision's two-stage and dense detectors share: pictures and targets as the library wants them, and facts."""

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models.detection.image_list import ImageList

from limbeck.detection import (
    DetectionOutputs,
    DetectorFacts,
    DetectorFamily,
    Found,
    Pictures,
    Resize,
    Size,
    Target,
)
from limbeck.errors import UserError
from limbeck.models.base import Provenance
from limbeck.models.detection.backbones import freeze_norms
from limbeck.models.detection.base import Detector, evaluating, over_padding
from limbeck.models.detection.torchvision import published
from limbeck.models.detection.torchvision.classes import Slots, other_classes
from limbeck.models.detection.torchvision.older_names import todays_names
from limbeck.models.weights import State
from limbeck.outputs import Level, Request

_COUNTER = "num_batches_tracked"
_STRIDE_PROBE = 1024
"""Side in pixels of a picture so large that each map's stride shows in its cells."""


class TorchvisionDetector(Detector):
    """A torchvision detector behind our interface.

    Args:
        network: the library's detector.
        slots: which of its head's slots are classes.
        text: the name the user gave.
        resize: the size at which it wants an image.
        rebuild: plain values that make this network again, the slots and the size left out.
        published_slots: the slots of the weights that torchvision publishes for this network, if any.

    Attributes:
        open_options: options of which some are `auto`, to be settled by the weights file if one is loaded; None where
            nothing is open.
    """

    family: DetectorFamily
    network: Any
    open_options: dict[str, Any] | None = None

    def __init__(
        self,
        network: nn.Module,
        slots: Slots,
        *,
        text: str,
        resize: Resize,
        rebuild: dict[str, Any],
        published_slots: Slots | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.slots = slots
        self.resize = resize
        self.provenance = Provenance(licence="none attached (random initialisation)")
        self.rebuild = {
            "library": "torchvision",
            **rebuild,
            **slots.values(),
            "short": resize.short,
            "long": resize.long,
        }
        self._published = published_slots
        self._keys, levels, size = self._find_levels()
        self.facts = DetectorFacts(
            name=text,
            num_classes=len(slots.class_names),
            input_size=size,
            levels=levels,
            pooled_channels=0,
            class_names=slots.class_names,
            family=self.family,
            scores=slots.scores,
            has_masks=self.has_masks,
        )

    def forward(
        self, pictures: Pictures, targets: Sequence[Target] | None = None, request: Request | None = None
    ) -> DetectionOutputs:
        """See `Detector`."""
        request = request or Request()
        for name in request.levels:
            self.facts.level(name)
        images = self._images(pictures)
        seen = (int(images.tensors.shape[-2]), int(images.tensors.shape[-1]))
        outputs = DetectionOutputs(pictures.size, pictures.sizes)
        answers = targets is not None or request.predictions or request.regions or request.read_regions
        if not (answers or request.levels):
            return outputs
        features = self._features(images)
        for name in request.levels:
            outputs.maps[name] = features[self._keys[name]]
            if seen != pictures.size:
                stride = self.facts.level(name).stride
                rows, columns = (-(-side // stride) for side in pictures.size)
                outputs.maps[name] = over_padding(outputs.maps[name], (rows, columns))
        if answers:
            self._answer(outputs, images, features, None if targets is None else self._targets(targets), request)
        return outputs

    @torch.no_grad()
    def detect(self, pictures: Pictures, sizes: Sequence[Size]) -> list[Found]:
        """See `Detector`."""
        with evaluating(self):
            images = self._images(pictures)
            detections = self._detections(images, self._features(images))
            detections = self.network.transform.postprocess(detections, images.image_sizes, [tuple(s) for s in sizes])
        return [self._found(detection) for detection in detections]

    def prepare_state(self, state: State, class_names: tuple[str, ...] | None) -> State:
        """Bring a file's tensors to this network's names and classes, and this network's norms to the file's.

        Args:
            state: as read.
            class_names: those of the file; None where it does not say, and either the published ones or this
                detector's own are guessed by their number.
        """
        state = todays_names(state)
        self._settle(state)
        own = self.network.state_dict()
        # Frozen norms count no batches, and trained ones may start to count at 0.
        state = {name: tensor for name, tensor in state.items() if name in own or not name.endswith(_COUNTER)}
        state |= {name: tensor for name, tensor in own.items() if name.endswith(_COUNTER) and name not in state}
        theirs = self._slots_of(state, class_names)
        if theirs is None or theirs == self.slots:
            return state
        return other_classes(state, own, theirs, self.slots, self._class_tensors())

    @property
    def has_masks(self) -> bool:
        """Whether it predicts masks."""
        return False

    @abstractmethod
    def _answer(
        self,
        outputs: DetectionOutputs,
        images: ImageList,
        features: dict[str, Tensor],
        targets: list[dict[str, Tensor]] | None,
        request: Request,
    ) -> None:
        """Put losses, predictions and regions into `outputs`."""

    @abstractmethod
    def _detections(self, images: ImageList, features: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """What the library's inference finds, before its transform's `postprocess`."""

    @abstractmethod
    def _class_tensors(self) -> dict[str, int]:
        """Names of the tensors with rows of classes, with the number of anchors whose rows they have."""

    def _images(self, pictures: Pictures) -> ImageList:
        """The library's images: normalised, 0 beyond their own areas."""
        images = pictures.images
        if self.network.transform.size_divisible == 1:
            # Default boxes are shares of the whole rectangle, so that padding would move them.
            height, width = (max(of) for of in zip(*pictures.sizes, strict=True))
            images = images[:, :, :height, :width]
        whole = tuple(images.shape[-2:])
        images = self.network.transform.normalize(images)
        if any(size != whole for size in pictures.sizes):
            images = images * pictures.inside()[:, None, : whole[0], : whole[1]]
        return ImageList(images, list(pictures.sizes))

    def _features(self, images: ImageList) -> dict[str, Tensor]:
        features = self.network.backbone(images.tensors)
        return OrderedDict([("0", features)]) if isinstance(features, Tensor) else features

    def _targets(self, targets: Sequence[Target]) -> list[dict[str, Tensor]]:
        made = []
        for target in targets:
            made.append({"boxes": target.boxes, "labels": self.slots.to_slots(target.labels)})
            if self.has_masks:
                if target.masks is None:
                    raise UserError(
                        f"{self.facts.name} learns from masks, and the data have boxes only. Take data with masks, or a "
                        "detector of boxes (faster_rcnn in place of mask_rcnn)."
                    )
                made[-1]["masks"] = target.masks
        return made

    def _found(self, detection: dict[str, Tensor]) -> Found:
        labels = self.slots.to_labels(detection["labels"])
        named = labels >= 0
        masks = detection["masks"][named, 0] > 0.5 if "masks" in detection else None
        return Found(detection["boxes"][named], labels[named], detection["scores"][named], masks)

    def _settle(self, state: State) -> None:
        """Do as a weights file says where the options left it open."""
        if self.open_options is None:
            return
        name, options = self.rebuild["name"], self.open_options
        frozen = not any(key.startswith("backbone.") and key.endswith(_COUNTER) for key in state)
        if name in published.RECIPES:
            settled = published.settle(name, options, weighty=True, frozen=frozen)
            published.fix(
                self.network,
                name,
                frozen=settled["norm"] == "frozen",
                trainable=settled["trainable_layers"],
                text=self.facts.name,
            )
            self.rebuild["options"] = settled
        elif frozen and options["norm"] == "auto":
            freeze_norms(self.network.backbone.body)
            self.rebuild["options"] = self.rebuild["options"] | {"norm": "frozen"}
        self.open_options = None

    def _slots_of(self, state: State, class_names: tuple[str, ...] | None) -> Slots | None:
        """The slots of a file; None where nothing but its own fitting can tell."""
        own = self.network.state_dict()
        share = {len(state[name]) / len(own[name]) for name in self._class_tensors() if name in state}
        count = round(self.slots.count * share.pop()) if len(share) == 1 else None
        if class_names is None:
            same = self._published is not None and count == self._published.count and count != self.slots.count
            return self._published if same else None
        if (
            self._published is not None
            and class_names == self._published.class_names
            and count == self._published.count
        ):
            return self._published
        return Slots.contiguous(class_names, self.slots.scores)

    @torch.no_grad()
    def _find_levels(self) -> tuple[dict[str, str], tuple[Level, ...], Size]:
        """The library's name of each level, the levels, and the size of their grids; found without computing anything."""
        size = (self.resize.short, self.resize.long)
        if not self.resize.stretch:
            side = -(-min(size) // 32) * 32
            size = (side, side)
        backbone = self.network.backbone
        tensors = {
            name: tensor.to("meta") for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers())
        }
        with evaluating(backbone):
            maps, large = (
                functional_call(backbone, tensors, torch.zeros(1, 3, *of, device="meta"))
                for of in (size, (_STRIDE_PROBE, _STRIDE_PROBE))
            )
        levels, keys = [], {}
        for index, (key, map_) in enumerate(maps.items()):
            _, channels, height, width = map_.shape
            keys[f"fpn.{index}"] = key
            stride = 2 ** round(math.log2(_STRIDE_PROBE / large[key].shape[-2]))
            levels.append(Level(f"fpn.{index}", channels, stride, (height, width), "fpn"))
        return keys, tuple(levels), size
