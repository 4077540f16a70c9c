"""torchvision's published detectors are made as torchvision makes them, and their classes are told from empty slots."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.poolers import _setup_scales

from limbeck.models.detection import torchvision as adapter
from limbeck.models.detection.door import class_names_of, load_detector, save_detector
from limbeck.models.detection.names import PUBLISHED
from limbeck.models.detection.torchvision.older_names import todays_names
from limbeck.models.detection.torchvision.published import RECIPES, weights_of

SMALL = "ssdlite320_mobilenet_v3_large"
NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def network(name: str) -> Any:
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=91)


def as_published(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Frozen batch norms count no batches, so files of networks with them have no counters."""
    frozen = RECIPES[name].frozen_eps is not None
    return {key: tensor for key, tensor in state.items() if not (frozen and key.endswith("num_batches_tracked"))}


@pytest.mark.filterwarnings("ignore:for .*meta")
@pytest.mark.parametrize("name", PUBLISHED)
def test_with_weights_it_is_the_librarys_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        state = as_published(name, network(name).state_dict())
        monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: dict(state))
        monkeypatch.setattr(adapter, "fetch_weights", lambda *_: dict(state))
        monkeypatch.setattr(adapter, "weights_hash", lambda _: "")
        expected: Any = torchvision.models.get_model(name, weights="DEFAULT")
        made: Any = load_detector(f"torchvision:{name}")
    ours, theirs = dict(made.network.named_parameters()), dict(expected.named_parameters())
    assert {key: p.requires_grad for key, p in ours.items()} == {key: p.requires_grad for key, p in theirs.items()}
    assert list(made.network.state_dict()) == list(expected.state_dict())

    def norms(of: nn.Module) -> dict[str, tuple[type, float]]:
        return {key: (type(m), m.eps) for key, m in of.named_modules() if isinstance(m, NORMS)}

    assert norms(made.network) == norms(expected)
    transform = expected.transform
    assert made.resize.antialias is False and made.resize.stretch == (transform.fixed_size is not None)
    size = transform.fixed_size or (transform.min_size[-1], transform.max_size)
    assert (made.resize.short, made.resize.long) == tuple(size)
    assert made.provenance.source.startswith("torchvision: ")


def test_the_classes_are_those_that_name_something() -> None:
    names = class_names_of(f"torchvision:{SMALL}")
    categories = weights_of(SMALL).meta["categories"]
    assert names is not None and len(names) == 80 and len(categories) == 91
    assert names == tuple(name for name in categories if name not in ("__background__", "N/A"))
    assert class_names_of("torchvision:faster_rcnn(backbone=resnet18)") is None


@pytest.mark.parametrize("name", [SMALL, "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_a_file_with_91_slots(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = network(name)
    state = {key: tensor.contiguous() for key, tensor in as_published(name, source.state_dict()).items()}
    save_file(state, tmp_path / "coco.safetensors")
    text = f"torchvision:{name}@{tmp_path / 'coco.safetensors'}"
    made: Any = load_detector(text, pretrained=False)
    own = made.network.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in state.items())
    assert made.facts.num_classes == 80 and "N/A" not in made.facts.class_names
    assert any(isinstance(m, FrozenBatchNorm2d) for m in made.network.modules()) == (name != SMALL)

    categories = weights_of(name).meta["categories"]
    wanted = ("zebra", "unicorn", "person")
    other: Any = load_detector(text, class_names=wanted)
    assert other.facts.class_names == wanted
    if name == SMALL:
        key = "head.classification_head.module_list.0.1.bias"
        old, new = own[key].view(-1, 91), other.network.state_dict()[key].view(-1, 4)
    else:
        key = "roi_heads.box_predictor.bbox_pred.weight"
        old, new = (s[key].view(n, 4, -1).transpose(0, 1) for s, n in ((own, 91), (other.network.state_dict(), 4)))
    old_slots = [0, categories.index("zebra"), categories.index("person")]
    assert torch.equal(new[:, [0, 1, 3]], old[:, old_slots])
    saved = tmp_path / "run"
    save_detector(other, saved)
    again: Any = load_detector(str(saved), class_names=("person", "zebra"))
    last = again.network.state_dict()[key]
    last = last.view(-1, 3) if name == SMALL else last.view(3, 4, -1).transpose(0, 1)
    assert torch.equal(last[:, [0, 2, 1]], new[:, [0, 1, 3]])


def test_labels_are_told_from_slots(tmp_path: Path) -> None:
    made: Any = load_detector(f"torchvision:{SMALL}", pretrained=False)
    categories = weights_of(SMALL).meta["categories"]
    labels = torch.arange(80)
    slots = made.slots.to_slots(labels)
    assert [categories[slot] for slot in slots] == list(made.facts.class_names)
    assert torch.equal(made.slots.to_labels(slots), labels)
    empty = torch.tensor([slot for slot, name in enumerate(categories) if name in ("N/A", "__background__")])
    assert (made.slots.to_labels(empty) == -1).all()
    found = made._found(
        {
            "boxes": torch.rand(3, 4),
            "labels": torch.stack([slots[5], empty[1], slots[79]]),
            "scores": torch.tensor([0.9, 0.8, 0.7]),
        }
    )
    assert found.labels.tolist() == [5, 79]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7]))
    logits = torch.arange(91.0)[None, None]
    assert logits[..., made.slots.columns(logits.device)][0, 0].tolist() == [*slots.tolist(), 0]
    # The same architecture comes back from its record, empty slots and all.
    save_detector(made, tmp_path)
    again: Any = load_detector(str(tmp_path))
    assert again.slots == made.slots and again.rebuild == made.rebuild


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"])
def test_older_names_are_todays(name: str) -> None:
    with torch.device("meta"):
        state = network(name).state_dict()
    old = {}
    for key, tensor in state.items():
        older = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", key)
        older = older.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        older = re.sub(r"mask_head\.(\d)\.0\.", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}.", older)
        if "retinanet" in name:
            older = re.sub(r"_head\.conv\.(\d)\.0\.", lambda found: f"_head.conv.{2 * int(found[1])}.", older)
        old[older] = tensor
    assert old.keys() != state.keys()
    assert list(todays_names(old)) == list(state)
    assert list(todays_names(dict(state))) == list(state)


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("fasterrcnn_resnet50_fpn", (4, 8, 16, 32, 64)),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", (32, 32, 64)),
        ("fasterrcnn_mobilenet_v3_large_fpn", (32, 32, 64)),
        ("retinanet_resnet50_fpn", (8, 16, 32, 64, 128)),
        ("fcos_resnet50_fpn", (8, 16, 32, 64, 128)),
    ],
)
def test_strides_are_the_maps_own_and_regions_are_read_at_them(name: str, strides: tuple[int, ...]) -> None:
    with torch.device("meta"):
        made: Any = load_detector(f"torchvision:{name}", pretrained=False)
    assert tuple(level.stride for level in made.facts.levels) == strides
    if name.startswith("faster"):
        pool = made.network.roi_heads.box_roi_pool
        maps = [
            torch.zeros(1, 1, 1024 // stride, 1024 // stride) for stride in strides[:-1]
        ]  # the last is the RPN's alone
        expected, _ = _setup_scales(maps, [(1024, 1024)], pool.canonical_scale, pool.canonical_level)
        assert pool.scales == expected
