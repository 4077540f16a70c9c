"""From a scene to the picture and the target that both detectors are shown, reproducibly.

A training view is a pure function of (image, objects, seed), as in `limbeck.data.views`. Both kinds of view end with the
resize that the detector asks for, bilinear on real numbers in [0, 1], so a detector of torchvision sees the pixels that
its own transform would make.

Not everything annotated is shown. Left out are crowds, objects that a crop leaves too little of (`min_visible`), objects
whose box is less than one pixel wide or high in the picture, and, where masks are asked for, those whose mask has no pixel
in it. What is measured is counted on the source's own objects, never on these targets.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from limbeck.data.detection.base import Objects
from limbeck.data.detection.options import SceneViewOptions
from limbeck.data.views import seeded_torch
from limbeck.detection import Resize, Target
from limbeck.errors import UserError

SceneView = Callable[[Image.Image, Objects, int], tuple[Tensor, Target]]

# image, boxes and labels; masks and scores where there are any. torchvision's transforms know what to do with each.
_Scene = dict[str, Tensor]

_SMALLEST_SIDE = 1.0  # pixels, of boxes


def scene_train_view(options: SceneViewOptions, resize: Resize, *, with_masks: bool) -> SceneView:
    """The training view of a scene.

    Args:
        options: flip, scale, colours.
        resize: as the detector asks for it.
        with_masks: give the target masks.

    Returns:
        (RGB image, its objects, seed) -> picture (3, height, width) float32 in [0, 1] and target; picklable.

    Raises:
        UserError: several short sides for a detector of one fixed size.
    """
    if options.short_sides and resize.stretch:
        raise UserError(
            f"short_sides is {options.short_sides}, but the detector sees every image at {resize.short} x {resize.long} "
            "pixels. Leave short_sides out, or use scale_jitter."
        )
    return _TrainView(options, resize, with_masks)


def scene_eval_view(resize: Resize, *, with_masks: bool) -> SceneView:
    """The view for measuring: resized and nothing else; arguments and result as for `scene_train_view`, no seed used."""
    return _EvalView(resize, with_masks)


class _TrainView:
    def __init__(self, options: SceneViewOptions, resize: Resize, with_masks: bool) -> None:
        self.options, self.resize, self.with_masks = options, resize, with_masks
        steps: list[v2.Transform] = [v2.RandomHorizontalFlip(options.flip)]
        if options.color_jitter:
            steps.append(v2.ColorJitter(*[options.color_jitter] * 3))
        self.disturb = v2.Compose(steps)

    def __call__(self, image: Image.Image, objects: Objects, seed: int) -> tuple[Tensor, Target]:
        with seeded_torch(seed):
            scene = self.disturb(_lay_out(image, objects, self.with_masks))
            return _finish(self._zoom(scene))

    def _zoom(self, scene: _Scene) -> _Scene:
        options, resize = self.options, self.resize
        if options.short_sides:
            side = options.short_sides[_up_to(len(options.short_sides) - 1)]
            resize = dataclasses.replace(resize, short=side)
        low, high = options.scale_jitter
        scale = low + (high - low) * float(torch.rand(()))
        own = scene["image"].shape[-2:]
        size = resize.size(*own)
        if scale > 1:
            window = [max(1, round(side / scale)) for side in own]
            corner = [_up_to(whole - part) for whole, part in zip(own, window, strict=True)]
            return _resize(_crop(scene, corner, window, options.min_visible), size, resize.antialias)
        if scale == 1:
            return _resize(scene, size, resize.antialias)
        inner = [max(1, round(side * scale)) for side in size]
        top, left = (_up_to(whole - part) for whole, part in zip(size, inner, strict=True))
        border = [left, top, size[1] - inner[1] - left, size[0] - inner[0] - top]
        shrunk = _resize(scene, (inner[0], inner[1]), resize.antialias)
        return _each(shrunk, lambda part: functional.pad(part, border))


class _EvalView:
    def __init__(self, resize: Resize, with_masks: bool) -> None:
        self.resize, self.with_masks = resize, with_masks

    def __call__(self, image: Image.Image, objects: Objects, seed: int) -> tuple[Tensor, Target]:
        scene = _lay_out(image, objects, self.with_masks)
        return _finish(_resize(scene, self.resize.size(image.height, image.width), self.resize.antialias))


def _lay_out(image: Image.Image, objects: Objects, with_masks: bool) -> _Scene:
    """A scene as tensors, crowds left out."""
    size = image.height, image.width
    single = torch.from_numpy(~objects.is_crowd)
    boxes: Any = tv_tensors.BoundingBoxes(
        torch.from_numpy(objects.boxes)[single].reshape(-1, 4), format="XYXY", canvas_size=size
    )
    scene: _Scene = {
        "image": tv_tensors.Image(functional.pil_to_tensor(image)),
        "boxes": boxes,
        "labels": torch.from_numpy(objects.labels)[single],
    }
    if objects.scores is not None:
        scene["scores"] = torch.from_numpy(objects.scores)[single]
    if with_masks:
        masks = objects.masks(*size)
        assert masks is not None, "masks were asked for of a source without any"
        # Bytes, since torchvision's kernels do not take bool.
        scene["masks"] = tv_tensors.Mask(torch.from_numpy(masks)[single].to(torch.uint8))
    return scene


def _each(scene: _Scene, change: Callable[[Tensor], Tensor]) -> _Scene:
    """Change whatever lies in the picture: image, boxes and masks."""
    return {name: change(part) if isinstance(part, tv_tensors.TVTensor) else part for name, part in scene.items()}


def _keep(scene: _Scene, kept: Tensor) -> _Scene:
    """The objects of a mask (N,) bool."""
    return {name: part if name == "image" else tv_tensors.wrap(part[kept], like=part) for name, part in scene.items()}


def _crop(scene: _Scene, corner: list[int], size: list[int], min_visible: float) -> _Scene:
    """A window; an object that it cuts gets the box around what is left of its mask, where there are masks."""
    whole = _extent(scene)
    cut = _each(scene, lambda part: functional.crop(part, *corner, *size))
    left = _extent(cut)
    kept = (left > 0) & (left >= min_visible * whole)
    was_cut = (left < whole)[kept]
    cut = _keep(cut, kept)
    if "masks" in cut and was_cut.any():
        around = masks_to_boxes(cut["masks"][was_cut].as_subclass(Tensor))
        around[:, 2:] += 1  # it gives the last row and column inside
        cut["boxes"][was_cut] = around
    return cut


def _extent(scene: _Scene) -> Tensor:
    """(N,) pixels of each object's mask, or of its box."""
    if "masks" in scene:
        return scene["masks"].as_subclass(Tensor).sum(dim=(1, 2)).float()
    x1, y1, x2, y2 = scene["boxes"].as_subclass(Tensor).unbind(-1)
    return (x2 - x1) * (y2 - y1)


def _resize(scene: _Scene, size: tuple[int, int], antialias: bool) -> _Scene:
    # Divided by 255, as torchvision's presets do; its `to_dtype` multiplies by 1 / 255, which rounds otherwise.
    scene = scene | {"image": tv_tensors.Image(scene["image"].to(torch.float32).div_(255))}
    return _each(scene, lambda part: functional.resize(part, list(size), antialias=antialias))


def _finish(scene: _Scene) -> tuple[Tensor, Target]:
    boxes = functional.clamp_bounding_boxes(scene["boxes"]).as_subclass(Tensor)
    kept = (boxes[:, 2:] - boxes[:, :2] >= _SMALLEST_SIDE).all(dim=1)
    masks = scene["masks"].as_subclass(Tensor).bool() if "masks" in scene else None
    if masks is not None:
        kept &= masks.any(dim=2).any(dim=1)
    scores = scene.get("scores")
    return scene["image"].as_subclass(Tensor), Target(
        boxes[kept],
        scene["labels"][kept],
        None if masks is None else masks[kept],
        None if scores is None else scores[kept],
    )


def _up_to(most: int) -> int:
    """A random whole number from 0 to `most`."""
    return int(torch.randint(most + 1, ()))
