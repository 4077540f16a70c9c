import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.detection import Pictures, Resize, Target, pad
from limbeck.errors import UserError
from limbeck.outputs import Request

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")

from limbeck.models.detection.transformers import class_names, create, from_record  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEADS = {"decoder_layers": 2, "decoder_ffn_dim": 16, "num_labels": 3}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 4,
    "hidden_sizes": [4, 4, 8, 8],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage4"],
}
DETR: dict[str, Any] = {
    **HEADS,
    "backbone_config": RESNET,
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 6,
}
RT_DETR: dict[str, Any] = {
    **HEADS,
    "backbone_config": {
        "model_type": "rt_detr_resnet",
        "embedding_size": 4,
        "hidden_sizes": [4, 8, 8, 8],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_indices": [2, 3, 4],
    },
    "encoder_hidden_dim": 16,
    "d_model": 16,
    "encoder_in_channels": [8, 8, 8],
    "decoder_in_channels": [16, 16, 16],
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 7,
    "num_denoising": 6,
}
D_FINE: dict[str, Any] = {
    **RT_DETR,
    "backbone_config": {
        "model_type": "hgnet_v2",
        "embedding_size": 4,
        "hidden_sizes": [4, 8, 8, 8],
        "depths": [1, 1, 1, 1],
        "stem_channels": [3, 4, 4],
        "stage_in_channels": [4, 4, 8, 8],
        "stage_mid_channels": [4, 4, 4, 4],
        "stage_out_channels": [4, 8, 8, 8],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [1, 1, 1, 1],
        "stage_downsample": [False, True, True, True],
        "stage_light_block": [False, False, False, False],
        "stage_kernel_size": [3, 3, 3, 3],
        "out_indices": [2, 3, 4],
    },
    "decoder_n_points": [3, 3, 3],
    "lqe_hidden_dim": 8,
    "top_prob_values": 2,
    "max_num_bins": 8,
}
GROUPS: dict[str, Any] = {
    **HEADS,
    "d_model": 16,
    "c2f_num_blocks": 1,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "num_queries": 5,
    "group_detr": 3,
}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "out_indices": [1, 2]}
LW_DETR = {
    **GROUPS,
    "backbone_config": {
        **VIT,
        "model_type": "lw_detr_vit",
        "image_size": 64,
        "pretrain_image_size": 64,
        "num_windows": 4,
        "window_block_indices": [0],
    },
    "projector_scale_factors": [2.0, 0.5],
}
RF_DETR = {
    **GROUPS,
    "backbone_config": {
        **VIT,
        "model_type": "rf_detr_dinov2",
        "image_size": 64,
        "patch_size": 16,
        "num_windows": 2,
    },
    "intermediate_size": 16,
}
YOLOS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": [64, 64],
    "num_detection_tokens": 5,
    "num_labels": 3,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "yolos": ("yolos", YOLOS),
    "detr": ("detr", DETR),
    "detr, auxiliary": ("detr", {**DETR, "auxiliary_loss": True, "decoder_layers": 3}),
    "rt_detr": ("rt_detr", RT_DETR),
    "rt_detr_v2": ("rt_detr_v2", RT_DETR),
    "d_fine": ("d_fine", D_FINE),
    "lw_detr": ("lw_detr", LW_DETR),
    "rf_detr": ("rf_detr", RF_DETR),
    "rf_detr, masks": ("rf_detr", {**RF_DETR, "architectures": ["RfDetrForInstanceSegmentation"]}),
}
PICKED = ("rt_detr", "rt_detr_v2", "d_fine")
GROUPED = ("lw_detr", "rf_detr", "rf_detr, masks")
every_family = pytest.mark.parametrize("kind", FAMILIES)


def detector(kind: str, **more: Any) -> Any:
    """A tiny detector whose every parameter matters."""
    torch.manual_seed(0)
    model_type, options = FAMILIES[kind]
    made = create(model_type, text=f"hf:{model_type}", options=options, **({"short": 64, "long": 64} | more))
    shake(made.network)
    return made


def shake(network: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.endswith((".up", ".reg_scale")):
                parameter.add_(0.05 * torch.randn_like(parameter))


def pictures() -> Pictures:
    generator = torch.Generator().manual_seed(3)
    return pad([torch.rand(3, 64, 40, generator=generator), torch.rand(3, 50, 64, generator=generator)])


def targets() -> list[Target]:
    boxes = [torch.tensor([[2.0, 3, 22, 43], [10, 10, 40, 60]]), torch.tensor([[30.0, 4, 60, 44]])]
    masks = [torch.zeros(2, 64, 40, dtype=torch.bool), torch.zeros(1, 50, 64, dtype=torch.bool)]
    for mask, corners in zip(masks, boxes, strict=True):
        for one, (x1, y1, x2, y2) in zip(mask, corners.long(), strict=True):
            one[y1:y2, x1:x2] = True
    labels = [torch.tensor([2, 0]), torch.tensor([1])]
    return [Target(*each) for each in zip(boxes, labels, masks, strict=True)]


def by_hand(kind: str, given: Pictures, wanted: list[Target] | None = None) -> dict[str, Any]:
    """What the library's own processor would give the network."""
    plain = kind in PICKED
    pixels = torch.zeros_like(given.images)
    mask = torch.zeros(given.images.shape[0], *given.size, dtype=torch.long)
    for number, (height, width) in enumerate(given.sizes):
        own = given.images[number, :, :height, :width]
        if not plain:
            own = (own - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        pixels[number, :, :height, :width] = own
        mask[number, :height, :width] = 1
    inputs: dict[str, Any] = {"pixel_values": pixels}
    masked = not plain and kind != "yolos"
    if masked:
        inputs["pixel_mask"] = mask
    if wanted is not None:
        inputs["labels"] = []
        for (height, width), target in zip(given.sizes, wanted, strict=True):
            frame = torch.tensor([width, height] * 2) if masked else torch.tensor([*reversed(given.size)] * 2)
            x1, y1, x2, y2 = (target.boxes / frame).unbind(-1)
            boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1)
            whole = torch.zeros(len(target), *given.size, dtype=torch.bool)
            assert target.masks is not None
            whole[:, :height, :width] = target.masks
            inputs["labels"].append({"class_labels": target.labels, "boxes": boxes, "masks": whole})
    return inputs


def everything(model: Any) -> Request:
    return Request(tuple(level.name for level in model.facts.levels), final=True, predictions=True, queries=True)


@every_family
def test_losses_gradients_buffers_and_random_numbers_are_the_librarys(kind: str) -> None:
    ours = detector(kind).train()
    theirs = copy.deepcopy(ours.network)
    torch.manual_seed(5)
    expected = theirs(**by_hand(kind, pictures(), targets())).loss
    state = torch.get_rng_state()
    expected.backward()
    torch.manual_seed(5)
    # Whatever is asked for beside, the training is the same.
    outputs = ours(pictures(), targets(), everything(ours))
    assert torch.equal(torch.get_rng_state(), state)
    total = torch.stack([*outputs.losses.values()]).sum()
    total.backward()
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)
    for (name, parameter), other in zip(ours.network.named_parameters(), theirs.parameters(), strict=True):
        grads = [torch.zeros(1) if each.grad is None else each.grad for each in (parameter, other)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    for buffer, other_buffer in zip(ours.network.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(buffer, other_buffer)


@every_family
def test_pictures_without_objects_can_be_learned_from(kind: str) -> None:
    ours = detector(kind).train()
    empty = [
        Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, *size, dtype=torch.bool))
        for size in pictures().sizes
    ]
    total = torch.stack([*ours(pictures(), empty).losses.values()]).sum()
    assert total.ndim == 0 and torch.isfinite(total)


@every_family
@torch.no_grad()
def test_the_last_prediction_is_the_librarys_and_earlier_ones_its_auxiliary_ones(kind: str) -> None:
    ours = detector(kind).eval()
    given = pictures()
    whole = ours.network(**by_hand(kind, given))
    outputs = ours(given, None, everything(ours))
    last = outputs.predictions[-1]
    assert torch.equal(last.logits, whole.logits)
    frames = torch.tensor([[width, height] * 2 for height, width in given.sizes])[:, None]
    masked = kind != "yolos" and kind not in PICKED
    expected = whole.pred_boxes if masked else whole.pred_boxes * torch.tensor([*reversed(given.size)] * 2) / frames
    torch.testing.assert_close(last.boxes, expected)
    if kind == "rf_detr, masks":
        assert torch.equal(last.masks, whole.pred_masks)
    if kind not in ("yolos", "detr", "d_fine"):
        # In evaluation mode the group losses match wrongly, but the auxiliary outputs are plain answers.
        auxiliary = ours.network(**by_hand(kind, given, targets())).auxiliary_outputs
        for found, wanted in zip(outputs.predictions[:-1], auxiliary, strict=False):
            torch.testing.assert_close(found.logits, wanted["logits"])
    layers = 1 if kind == "yolos" else ours.network.config.decoder_layers
    assert len(outputs.predictions) == layers


@pytest.mark.parametrize("kind", [*PICKED, *GROUPED])
@torch.no_grad()
def test_denoising_queries_and_further_groups_never_show(kind: str) -> None:
    ours = detector(kind).eval()
    calm = ours(pictures(), None, everything(ours))
    ours.train()
    for module in ours.modules():
        # With running statistics and no dropout, training differs from evaluation by its extra queries only.
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    busy = ours(pictures(), targets(), everything(ours))
    for first, second in zip(calm.predictions, busy.predictions, strict=True):
        torch.testing.assert_close(first.logits, second.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(first.boxes, second.boxes, rtol=1e-4, atol=1e-5)
        if first.masks is not None:
            torch.testing.assert_close(first.masks, second.masks, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", PICKED)
def test_asked_about_its_own_queries_it_repeats_its_own_predictions(kind: str, training: bool) -> None:
    ours = detector(kind).train(training)
    outputs = ours(pictures(), targets() if training else None, Request(queries=True))
    assert ours.facts.reads_queries and outputs.tokens is not None and outputs.read_queries is not None
    answers = outputs.read_queries(outputs.tokens)
    for answer, own in zip(answers, outputs.predictions, strict=True):
        torch.testing.assert_close(answer.logits, own.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(answer.boxes, own.boxes, rtol=1e-4, atol=1e-5)
        assert (answer.corners is None) == (own.corners is None) == (kind != "d_fine")
    fewer = copy.copy(outputs.tokens)
    fewer.strides, fewer.rows, fewer.columns = (part[:, :3] for part in (fewer.strides, fewer.rows, fewer.columns))
    assert outputs.read_queries(fewer)[-1].logits.shape == (2, 3, 3)


def test_dfines_corners_give_its_boxes_and_every_layer_answers_in_evaluation_too() -> None:
    ours = detector("d_fine").eval()
    outputs = ours(pictures(), None, Request(predictions=True))
    decoder = ours.network.model.decoder
    assert not decoder.training and len(outputs.predictions) == 2
    assert ours.facts.corner_bins == 9 and ours.facts.corner_scale == (0.5, 4.0)
    for layer in outputs.predictions:
        assert layer.corners.shape == (2, 7, 4, 9)
    # Layer by layer the distributions are refined around the same first boxes.
    from transformers.loss.loss_d_fine import weighting_function
    from transformers.models.d_fine.modeling_d_fine import distance2bbox

    project = weighting_function(8, decoder.up, decoder.reg_scale)
    canvas = ours.canvas(pictures())
    with ours.every_layer():
        whole = ours.network(canvas.pixels)
    for number, layer in enumerate(outputs.predictions):
        first = whole.initial_reference_points[:, number]
        boxes = distance2bbox(first, layer.corners.softmax(-1) @ project, decoder.reg_scale)
        own = torch.tensor([[width, height] * 2 for height, width in pictures().sizes])[:, None]
        torch.testing.assert_close(layer.boxes, boxes * 64 / own, rtol=1e-4, atol=1e-5)


@every_family
@torch.no_grad()
def test_maps_have_the_promised_shapes_and_need_no_decoder(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = detector(kind, short=96, long=96).eval()
    given = pad([torch.rand(3, 96, 96), torch.rand(3, 60, 96)])
    whole = ours(given, None, everything(ours))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the decoder or a head ran")

    network = ours.network
    parts = [network.bbox_predictor] if kind == "yolos" else [ours_model(network).decoder]
    for part in [*parts, network.__class__.__name__.startswith("Rf") and network]:
        if part:
            monkeypatch.setattr(part, "forward", refuse)
    request = Request(tuple(level.name for level in ours.facts.levels), final=True)
    alone = ours(given, None, request)
    assert not alone.predictions and not alone.losses
    for level in ours.facts.levels:
        assert alone.maps[level.name].shape == (2, level.channels, *level.grid)
        torch.testing.assert_close(alone.maps[level.name], whole.maps[level.name])
    if ours.facts.final is not None:
        assert alone.final.shape == (2, ours.facts.final.channels, *ours.facts.final.grid)
        torch.testing.assert_close(alone.final, whole.final)


def ours_model(network: Any) -> Any:
    return network.model.model if hasattr(network.model, "model") else network.model


@torch.no_grad()
def test_yolos_maps_are_its_patch_tokens() -> None:
    ours = detector("yolos").eval()
    given = pad([torch.rand(3, 64, 96)])
    states = ours.network.vit(ours.canvas(given).pixels, output_hidden_states=True).hidden_states
    outputs = ours(given, None, everything(ours))
    for number in range(2):
        assert torch.equal(
            outputs.maps[f"blocks.{number}"].flatten(2).transpose(1, 2), states[number + 1][:, 1 : 1 + 4 * 6]
        )


PROCESSORS = {
    "yolos": "YolosImageProcessor",
    "detr": "DetrImageProcessor",
    "rt_detr": "RTDetrImageProcessor",
    "d_fine": "RTDetrImageProcessor",
    "lw_detr": "DeformableDetrImageProcessor",
    "rf_detr": "RfDetrImageProcessor",
    "rf_detr, masks": "RfDetrImageProcessor",
}


@pytest.mark.parametrize("kind", PROCESSORS)
@torch.no_grad()
def test_a_saved_folder_detects_as_its_own_processor_says(kind: str, tmp_path: Path) -> None:
    made = detector(kind)
    made.network.config.id2label = {0: "cat", 1: "dog", 2: "owl"}
    made.network.save_pretrained(tmp_path)
    processor = getattr(transformers, PROCESSORS[kind])
    if kind in PICKED:
        written = processor(size={"height": 64, "width": 64})
    else:
        written = processor(size={"height": 64, "width": 64}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    written.save_pretrained(tmp_path)
    ours = create(str(tmp_path), text=f"hf:{tmp_path}").eval()
    assert ours.facts.class_names == ("cat", "dog", "owl") == class_names(str(tmp_path))
    assert ours.resize == Resize(64, 64, stretch=True)
    assert ours.provenance.weights_sha256 and not ours.provenance.notes
    images = torch.rand(2, 3, 64, 64)
    prepared = written(images=[*images], do_resize=False, do_rescale=False, return_tensors="pt")
    library = type(made.network).from_pretrained(tmp_path).eval()
    sizes = [(30, 50), (80, 40)]
    whole = library(**{name: prepared[name] for name in ("pixel_values", "pixel_mask") if name in prepared})
    expected = written.post_process_object_detection(whole, threshold=0.0, target_sizes=sizes)
    for number, (found, wanted) in enumerate(zip(ours.detect(pad([*images]), sizes), expected, strict=True)):
        order = wanted["scores"].sort(descending=True, stable=True).indices
        torch.testing.assert_close(found.scores, wanted["scores"][order])
        assert torch.equal(found.labels, wanted["labels"][order])
        torch.testing.assert_close(found.boxes, wanted["boxes"][order], rtol=1e-4, atol=1e-4)
        assert (found.masks is None) == (kind != "rf_detr, masks")
        if found.masks is not None:
            drawn = written.post_process_instance_segmentation(
                whole, threshold=0.0, target_sizes=sizes, return_binary_maps=True
            )[number]["segmentation"]
            assert torch.equal(found.masks[found.masks.any((1, 2))], drawn)


@pytest.mark.parametrize("kind", ["yolos", "detr", "rt_detr", "lw_detr"])
@torch.no_grad()
def test_slots_without_a_class_are_neither_learned_nor_answered(kind: str) -> None:
    model_type, options = FAMILIES[kind]
    torch.manual_seed(0)
    few = {name: value for name, value in options.items() if name != "num_labels"}
    named = {0: "N/A", 1: "cat", 2: "N/A", 3: "dog"}
    ours = create(model_type, text="x", options={**few, "id2label": named}, short=64, long=64).eval()
    assert ours.facts.class_names == ("cat", "dog") and ours.facts.num_classes == 2
    whole = ours.network(**by_hand(kind, pictures()))
    softmax = kind in ("yolos", "detr")
    columns = [1, 3, 4] if softmax else [1, 3]
    outputs = ours(pictures(), None, Request(predictions=True))
    assert torch.equal(outputs.predictions[-1].logits, whole.logits[..., columns])
    learned = ours.labels(ours.canvas(pictures()), [Target(torch.zeros(2, 4), torch.tensor([0, 1]))] * 2)
    assert learned[0]["class_labels"].tolist() == [1, 3]
    scores = whole.logits.softmax(-1) if softmax else whole.logits.sigmoid()
    found = ours.detect(pictures(), [(64, 40), (50, 64)])[0]
    assert set(found.labels.tolist()) <= {0, 1}
    torch.testing.assert_close(found.scores[0], scores[0][..., [1, 3]].max())


@pytest.mark.parametrize("kind", ["yolos", "detr", "rt_detr", "d_fine", "lw_detr", "rf_detr, masks"])
def test_a_new_head_keeps_the_rows_of_equal_names(kind: str, tmp_path: Path) -> None:
    made = detector(kind)
    made.network.config.id2label = {0: "cat", 1: "N/A", 2: "owl"}
    made.network.save_pretrained(tmp_path)
    names = ("dog", "owl", "cat", "cow")
    ours = create(str(tmp_path), text="x", class_names=names, short=64, long=64)
    assert ours.facts.class_names == names
    assert any("2 -> 4 classes, the rows of 2 kept" in note for note in ours.provenance.notes)
    old, new = made.network.state_dict(), ours.network.state_dict()
    changed = {name for name in new if new[name].shape != old[name].shape}
    assert changed
    for name in new:
        if name not in changed:
            assert torch.equal(new[name], old[name]), name
            continue
        assert torch.equal(new[name][[1, 2]], old[name][[2, 0]]), name
        assert torch.equal(new[name][4:], old[name][3:]), name
        assert not torch.equal(new[name][0], old[name][1]), name
    # A run's folder says what the network is; its weights are then fitted to other classes in the same way.
    record = json.loads(json.dumps(create(str(tmp_path), text="x", short=64, long=64).rebuild))
    again: Any = from_record(record, text="x", class_names=names)
    again.network.load_state_dict(again.prepare_state(old, ("cat", "owl")))
    for name in new:
        rows = [1, 2] if name in changed else ...
        assert torch.equal(again.network.state_dict()[name][rows], new[name][rows]), name


@pytest.mark.parametrize("kind", ["yolos", "detr", "rt_detr", "d_fine", "lw_detr", "rf_detr, masks"])
def test_a_record_makes_the_same_architecture(kind: str) -> None:
    ours = detector(kind).eval()
    again = from_record(json.loads(json.dumps(ours.rebuild)), text=ours.facts.name).eval()
    assert again.facts == ours.facts and again.resize == ours.resize
    again.network.load_state_dict(ours.network.state_dict())
    ours_found, again_found = (each.detect(pictures(), [(64, 40), (50, 64)])[1] for each in (ours, again))
    assert torch.equal(ours_found.boxes, again_found.boxes) and torch.equal(ours_found.scores, again_found.scores)
    renamed = from_record(ours.rebuild, text="x", class_names=("a",), short=128)
    assert renamed.facts.class_names == ("a",) and renamed.resize.short == renamed.resize.long == 128


def test_a_network_without_a_mask_answers_in_shares_of_the_padded_picture() -> None:
    ours = detector("yolos")
    wide = Pictures(torch.rand(1, 3, 64, 128), ((32, 96),))
    (label,) = ours.labels(ours.canvas(wide), [Target(torch.tensor([[16.0, 8, 80, 24]]), torch.tensor([1]))])
    torch.testing.assert_close(label["boxes"], torch.tensor([[48 / 128, 16 / 64, 64 / 128, 16 / 64]]))
    answer = type(ours(wide, None, Request(predictions=True)).predictions[0])(
        torch.zeros(1, 1, 4), label["boxes"][None]
    )
    (back,) = ours.canonical((answer,), ours.canvas(wide))
    torch.testing.assert_close(back.boxes[0], torch.tensor([[48 / 96, 16 / 32, 64 / 96, 16 / 32]]))


@every_family
@torch.no_grad()
def test_a_size_that_does_not_fit_is_fitted(kind: str) -> None:
    """Also where the padding is one that the network's own divisor does not divide."""
    ours = detector(kind).eval()
    images = [torch.rand(3, 64, 64), torch.rand(3, 60, 64)]
    fitting = ours(pad(images, 64), None, everything(ours))
    odd = ours(pad(images, 72), None, everything(ours))
    assert odd.size == (72, 72)
    for level in ours.facts.levels:
        cells = odd.maps[level.name].shape[-2:]
        assert max(abs(each * level.stride - 72) for each in cells) < level.stride
    if kind not in ("detr", "detr, auxiliary"):
        torch.testing.assert_close(odd.predictions[-1].logits, fitting.predictions[-1].logits)
        torch.testing.assert_close(odd.predictions[-1].boxes, fitting.predictions[-1].boxes)


@every_family
def test_sizes_can_be_chosen(kind: str) -> None:
    stretches = not kind.startswith(("yolos", "detr"))
    model_type, options = FAMILIES[kind]
    usual = create(model_type, text="x", options=options).resize
    side = 640 if kind in PICKED else 64
    assert usual == (Resize(side, side, stretch=True) if stretches else Resize(800, 1333))
    assert create(model_type, text="x", options=options, short=96).resize == (
        Resize(96, 96, stretch=True) if stretches else Resize(96, 160)
    )


def test_what_cannot_be_opened_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="brings its own backbone"):
        create("yolos", text="hf:yolos", backbone="resnet18")
    with pytest.raises(UserError, match="no option hiden_size"):
        create("yolos", text="hf:yolos", options={"hiden_size": 16})
    with pytest.raises(UserError, match="cannot be built"):
        create("rt_detr", text="hf:rt_detr", options={**RT_DETR, "decoder_attention_heads": 3})
    with pytest.raises(UserError, match="two classes named 'cat'"):
        create("yolos", text="hf:yolos", options={**YOLOS, "id2label": {0: "cat", 1: "cat", 2: "dog"}})
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'vit', which is no detector"):
        create(str(tmp_path), text=f"hf:{tmp_path}")
    with pytest.raises(UserError, match="Give a folder saved by transformers"):
        create(str(tmp_path / "nothing"), text="hf:nothing")
    masks = detector("rf_detr, masks")
    bare = [Target(target.boxes, target.labels) for target in targets()]
    with pytest.raises(UserError, match="learns masks"):
        masks(pictures(), bare)
    with pytest.raises(
        UserError, match="picks 30 queries among the cells of its maps, and a picture of 32x32 pixels has 21"
    ):
        many = create("rt_detr", text="hf:rt_detr", options={**RT_DETR, "num_queries": 30})
        many(pad([torch.rand(3, 32, 32)]), None, Request(predictions=True))
    with pytest.raises(UserError, match="projector_scale_factors"):
        create("lw_detr", text="hf:lw_detr", options={**LW_DETR, "projector_scale_factors": []})
    with pytest.raises(KeyError, match=r"has no level 'blocks\.9'"):
        masks(pictures(), None, Request(("blocks.9",)))


def test_without_pretrained_a_folder_gives_its_architecture_alone(tmp_path: Path) -> None:
    made = detector("yolos")
    made.network.save_pretrained(tmp_path)
    fresh = create(str(tmp_path), text="x", pretrained=False, class_names=("a", "b"))
    assert fresh.facts.class_names == ("a", "b") and fresh.provenance.weights_sha256 is None
    weights: Tensor = fresh.network.get_parameter("vit.embeddings.detection_tokens")
    assert not torch.equal(weights, made.network.get_parameter("vit.embeddings.detection_tokens"))
