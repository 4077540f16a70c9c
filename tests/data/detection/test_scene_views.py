"""The views of scenes: the pixels of torchvision's own transform, boxes and masks that stay together, what is left out."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import functional

from limbeck.data.detection.base import Objects, SceneSource
from limbeck.data.detection.door import open_scenes
from limbeck.data.detection.options import SceneViewOptions
from limbeck.data.detection.views import scene_eval_view, scene_train_view
from limbeck.detection import Resize, Target, pad
from limbeck.errors import UserError

SAME = Resize(64, 64)


def shapes(size: int = 64) -> SceneSource:
    return open_scenes(f"shapes(train=12, val=1, size={size})").train


def photo(height: int, width: int, boxes: list[list[float]], **fields: np.ndarray) -> tuple[Image.Image, Objects]:
    pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)
    number = len(boxes)
    objects = Objects(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.arange(number, dtype=np.int64),
        fields.get("is_crowd", np.zeros(number, dtype=bool)),
        np.ones(number, dtype=np.float32),
        tuple(fields["masks"]) if "masks" in fields else None,
        fields.get("scores"),
    )
    return Image.fromarray(pixels), objects


def around(masks: Tensor) -> Tensor:
    boxes = masks_to_boxes(masks)
    boxes[:, 2:] += 1
    return boxes


def options(**values: object) -> SceneViewOptions:
    return SceneViewOptions(**({"flip": 0.0} | values))  # type: ignore[arg-type]


def check(picture: Tensor, target: Target) -> None:
    """What every picture and target must be."""
    height, width = picture.shape[1:]
    assert (picture.dtype, type(picture), type(target.boxes)) == (torch.float32, Tensor, Tensor)
    assert picture.min() >= 0 and picture.max() <= 1
    x1, y1, x2, y2 = target.boxes.unbind(1)
    assert ((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)).all()
    assert ((x2 - x1 >= 1) & (y2 - y1 >= 1)).all()
    assert target.labels.dtype == torch.int64 and target.boxes.dtype == torch.float32
    if target.masks is not None:
        assert (target.masks.dtype, target.masks.shape) == (torch.bool, (len(target), height, width))


@pytest.mark.parametrize(("height", "width"), [(48, 64), (61, 37), (33, 97)])
def test_a_detector_of_torchvision_sees_what_its_own_transform_makes(height: int, width: int) -> None:
    masks = np.zeros((2, height, width), dtype=bool)
    masks[0, 3:20, 5:30], masks[1, 7:31, 2:9] = True, True
    image, objects = photo(height, width, [[5, 3, 30, 20], [2, 7, 9, 31]], masks=masks)
    view = scene_eval_view(Resize(80, 133, antialias=False), with_masks=True)
    picture, target = view(image, objects, 0)
    theirs = GeneralizedRCNNTransform(80, 133, [0.0] * 3, [1.0] * 3).eval()
    given = {"boxes": torch.from_numpy(objects.boxes), "masks": torch.from_numpy(masks).to(torch.uint8)}
    whole, targets = theirs([functional.to_image(image).float() / 255], [given])
    ours = pad([picture])
    assert ours.sizes == tuple(whole.image_sizes)
    assert torch.equal(ours.images, whole.tensors)
    torch.testing.assert_close(target.boxes, targets[0]["boxes"])
    own_height, own_width = ours.sizes[0]
    assert target.masks is not None
    assert torch.equal(target.masks, targets[0]["masks"].bool()[:, :own_height, :own_width])


def test_a_detector_of_one_size_sees_what_its_own_transform_makes() -> None:
    image, objects = photo(50, 70, [[5, 3, 30, 20]])
    picture, target = scene_eval_view(Resize(60, 90, stretch=True, antialias=False), with_masks=False)(
        image, objects, 0
    )
    theirs = GeneralizedRCNNTransform(1, 1, [0.0] * 3, [1.0] * 3, size_divisible=1, fixed_size=(90, 60)).eval()
    whole, targets = theirs([functional.to_image(image).float() / 255], [{"boxes": torch.from_numpy(objects.boxes)}])
    assert torch.equal(picture, whole.tensors[0])
    torch.testing.assert_close(target.boxes, targets[0]["boxes"])


def test_a_flip_mirrors_pixels_boxes_and_masks_alike() -> None:
    source = shapes()
    plain, flipped = (scene_train_view(options(flip=chance), SAME, with_masks=True) for chance in (0, 1))
    for index in range(len(source)):
        scene = source.read(index), source.objects(index)
        (picture, target), (mirrored, other) = plain(*scene, 5), flipped(*scene, 5)
        assert torch.equal(mirrored, picture.flip(2))
        assert target.masks is not None and other.masks is not None
        assert torch.equal(other.masks, target.masks.flip(2))
        x1, y1, x2, y2 = target.boxes.unbind(1)
        assert torch.equal(other.boxes, torch.stack([64 - x2, y1, 64 - x1, y2], dim=1))
        for seen in (target, other):
            assert seen.masks is not None
            assert torch.equal(around(seen.masks), seen.boxes)
        assert torch.equal(target.labels, torch.from_numpy(source.objects(index).labels))


@pytest.mark.parametrize("scale_jitter", [(0.3, 0.9), (1.1, 3.0), (0.3, 3.0)])
@pytest.mark.parametrize("resize", [Resize(48, 96), Resize(100, 200), Resize(60, 40, stretch=True)])
def test_boxes_stay_around_their_masks_whatever_happens(scale_jitter: tuple[float, float], resize: Resize) -> None:
    """Of rectangles, since the tips of stars may fall between the pixels of a smaller mask."""
    corners = np.random.RandomState(1).randint(0, 52, (12, 2))
    masks = np.zeros((12, 64, 64), dtype=bool)
    for mask, (x, y) in zip(masks, corners, strict=True):
        mask[y : y + 12, x : x + 12] = True
    image, objects = photo(64, 64, [[x, y, x + 12, y + 12] for x, y in corners.tolist()], masks=masks)
    view = scene_train_view(options(flip=0.5, scale_jitter=scale_jitter), resize, with_masks=True)
    seen = 0
    for seed in range(20):
        picture, target = view(image, objects, seed)
        check(picture, target)
        assert picture.shape[1:] == resize.size(64, 64)
        assert target.masks is not None
        if len(target):
            assert (around(target.masks) - target.boxes).abs().max() <= 1.01
            seen += len(target)
    assert seen > 50


def test_colours_follow_their_objects() -> None:
    """A red rectangle on blue: in every view its box is where the red is."""
    image = Image.new("RGB", (60, 40), (0, 0, 255))
    image.paste((255, 0, 0), (20, 8, 41, 30))
    _, objects = photo(40, 60, [[20, 8, 41, 30]])
    view = scene_train_view(options(flip=0.5, scale_jitter=(0.5, 2.0)), Resize(80, 120), with_masks=False)
    checked = 0
    for seed in range(30):
        picture, target = view(image, objects, seed)
        red = picture[0] > 0.5
        assert picture.shape == (3, 80, 120)
        if len(target):
            assert (around(red[None]) - target.boxes).abs().max() <= 1.5
            checked += 1
        else:
            assert red.sum() < 0.1 * 22 * 21 * 4 * 4
    assert checked > 20


def test_a_crop_leaves_out_what_it_leaves_too_little_of() -> None:
    image, objects = photo(64, 64, [[0, 0, 64, 64], [10, 10, 30, 30], [40, 20, 60, 50]])
    counts = {}
    for least in (0.0, 0.2, 0.9):
        view = scene_train_view(options(scale_jitter=(2.0, 2.0), min_visible=least), SAME, with_masks=False)
        targets = [view(image, objects, seed)[1] for seed in range(60)]
        counts[least] = [sum(label in target.labels for target in targets) for label in range(3)]
        for target in targets:
            if 0 in target.labels:
                assert target.boxes[target.labels == 0].tolist() == [[0, 0, 64, 64]]
    assert counts[0.0][0] == counts[0.2][0] == 60, "a quarter of the first is in every view"
    assert counts[0.9][0] == 0
    for small in (1, 2):
        assert 0 < counts[0.9][small] < counts[0.2][small] <= counts[0.0][small]


def test_a_cut_object_gets_the_box_around_what_is_left_of_its_mask() -> None:
    masks = np.zeros((1, 64, 64), dtype=bool)
    masks[0, :, :8], masks[0, :8] = True, True  # an L: most windows see a corner, or one arm, of its box
    image, objects = photo(64, 64, [[0, 0, 64, 64]], masks=masks)
    view = scene_train_view(options(scale_jitter=(2.0, 2.0), min_visible=0.0), SAME, with_masks=True)
    shown, absent, narrow = 0, 0, 0
    for seed in range(60):
        _, target = view(image, objects, seed)
        absent += len(target) == 0
        if len(target):
            assert target.masks is not None
            assert torch.equal(around(target.masks), target.boxes)
            shown += 1
            narrow += bool((target.boxes[0, 2:] - target.boxes[0, :2]).min() <= 16)
    assert shown > 5 and absent > 5 and narrow > 2


def test_crowds_slivers_and_empty_masks_are_not_shown() -> None:
    image, objects = photo(
        64, 64, [[0, 0, 20, 20], [5, 5, 5.9, 30], [30, 30, 40, 40]], is_crowd=np.array([True, False, False])
    )
    _, target = scene_eval_view(SAME, with_masks=False)(image, objects, 0)
    assert target.labels.tolist() == [2]
    larger = scene_eval_view(Resize(128, 128), with_masks=False)(image, objects, 0)[1]
    assert larger.labels.tolist() == [1, 2], "at twice the size the sliver has more than a pixel"
    masks = np.zeros((2, 64, 64), dtype=bool)
    masks[1, 30:40, 30:40] = True
    image, objects = photo(64, 64, [[0, 0, 20, 20], [30, 30, 40, 40]], masks=masks)
    assert scene_eval_view(SAME, with_masks=True)(image, objects, 0)[1].labels.tolist() == [1]
    assert scene_eval_view(SAME, with_masks=False)(image, objects, 0)[1].labels.tolist() == [0, 1]


def test_scores_stay_with_their_objects() -> None:
    scores = np.array([0.9, 0.8, 0.5], dtype=np.float32)
    image, objects = photo(64, 64, [[0, 0, 20, 20], [5, 5, 5.9, 30], [30, 30, 40, 40]], scores=scores)
    _, target = scene_eval_view(SAME, with_masks=False)(image, objects, 0)
    assert target.scores is not None
    assert target.scores.tolist() == scores[[0, 2]].tolist()
    image, objects = photo(64, 64, [[0, 0, 20, 20]])
    assert scene_eval_view(SAME, with_masks=False)(image, objects, 0)[1].scores is None


def test_background_has_an_empty_target() -> None:
    image, objects = photo(40, 64, [], masks=np.zeros((0, 40, 64), dtype=bool))
    for jitter in ((0.5, 0.5), (1.0, 1.0), (2.0, 2.0)):
        picture, target = scene_train_view(options(scale_jitter=jitter), SAME, with_masks=True)(image, objects, 0)
        check(picture, target)
        assert (len(target), target.boxes.shape) == (0, (0, 4))


def test_short_sides_are_all_used_within_the_longer_sides_limit() -> None:
    image, objects = photo(40, 80, [[0, 0, 20, 20]])
    view = scene_train_view(options(short_sides=(32, 48, 64)), Resize(40, 100), with_masks=False)
    seen = {tuple(view(image, objects, seed)[0].shape[1:]) for seed in range(30)}
    assert seen == {(32, 64), (48, 96), (50, 100)}


def test_a_view_depends_on_its_seed_alone() -> None:
    source = shapes()
    view = scene_train_view(
        options(flip=0.5, scale_jitter=(0.5, 2.0), short_sides=(48, 64), color_jitter=0.4), SAME, with_masks=True
    )
    scene = source.read(0), source.objects(0)
    torch.manual_seed(1)
    first, _ = view(*scene, 3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, _ = view(*scene, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    others = [view(*scene, seed)[0] for seed in range(4, 8)]
    assert not any(other.shape == first.shape and torch.equal(other, first) for other in others)
    boxes = source.objects(0).boxes
    assert np.array_equal(scene[1].boxes, boxes), "the source's objects are untouched"


@pytest.mark.parametrize(
    "values", [{"flip": 2}, {"scale_jitter": (2.0, 1.0)}, {"scale_jitter": (0.0, 1.0)}, {"short_sides": (0,)}]
)
def test_wrong_options_are_named(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        options(**values)


def test_short_sides_contradict_a_detector_of_one_size() -> None:
    with pytest.raises(UserError, match="short_sides"):
        scene_train_view(options(short_sides=(32, 64)), Resize(64, 64, stretch=True), with_masks=False)
