import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.detection import Pictures, Resize, Target, pad
from limbeck.errors import UserError
from limbeck.models.base import Provenance
from limbeck.outputs import Request

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")

from limbeck.models.detection.transformers import create, from_record  # noqa: E402
from limbeck.models.detection.transformers.mask_instances import instances, tight_boxes  # noqa: E402
from limbeck.models.detection.transformers.mask_queries import MaskQueryDetector  # noqa: E402

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = {
    "model_type": "swin",
    "image_size": 64,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "drop_path_rate": 0.2,
    "out_features": STAGES,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": STAGES,
}
DECODER = {
    "model_type": "detr",
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 7,
}
MASK2FORMER = {
    "backbone_config": SWIN,
    "feature_size": 32,
    "mask_feature_size": 24,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "num_attention_heads": 2,
    "dim_feedforward": 32,
    "num_queries": 7,
    "train_num_points": 64,
}
MASKFORMER = {
    "backbone_config": RESNET,
    "decoder_config": DECODER,
    "fpn_feature_size": 32,
    "mask_feature_size": 24,
}
EOMT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "num_blocks": 2,
    "num_queries": 7,
    "num_register_tokens": 1,
    "train_num_points": 64,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mask2former": ("mask2former", MASK2FORMER),
    "maskformer": ("maskformer", MASKFORMER),
    "maskformer with auxiliary losses": ("maskformer", {**MASKFORMER, "use_auxiliary_loss": True}),
    "eomt": ("eomt", {**EOMT, "mlp_ratio": 2, "drop_path_rate": 0.2}),
    "eomt_dinov3": ("eomt_dinov3", {**EOMT, "intermediate_size": 64}),
}
NAMES = ("cat", "dog", "owl")
COUNTS = {"mask2former": 3, "maskformer": 1, "maskformer with auxiliary losses": 3, "eomt": 3, "eomt_dinov3": 3}


def detector(kind: str, names: tuple[str, ...] = NAMES, side: int = 64, **fields: Any) -> MaskQueryDetector:
    """A small network in which every parameter matters."""
    torch.manual_seed(0)
    model_type, values = CONFIGS[kind]
    config = transformers.AutoConfig.for_model(
        model_type,
        id2label=dict(enumerate(names)),
        label2id={n: i for i, n in enumerate(names)},
        **{**values, **fields},
    )
    network = transformers.AutoModelForUniversalSegmentation.from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return MaskQueryDetector(
        network,
        network.config,
        text=f"hf:{kind}",
        class_names=names,
        resize=Resize(side, side),
        provenance=Provenance(),
    )


def scene(*sizes: tuple[int, int]) -> Pictures:
    torch.manual_seed(1)
    return pad([torch.rand(3, *size) for size in sizes])


def target(size: tuple[int, int], *labels: int) -> Target:
    torch.manual_seed(len(labels))
    masks = torch.rand(len(labels), *size) > 0.6
    return Target(torch.zeros(len(labels), 4), torch.tensor(labels, dtype=torch.int64), masks)


def as_the_library_takes_it(kind: str, pictures: Pictures) -> Tensor:
    """Normalised by hand: padding is 0 afterwards, or, of EoMT, black before."""
    mean = torch.tensor((0.485, 0.456, 0.406))[:, None, None]
    std = torch.tensor((0.229, 0.224, 0.225))[:, None, None]
    whole = ((torch.zeros_like(pictures.images[0]) - mean) / std).repeat(len(pictures), 1, 1, 1)
    whole = whole if kind.startswith("eomt") else torch.zeros_like(pictures.images)
    for place, image, (height, width) in zip(whole, pictures.images, pictures.sizes, strict=True):
        place[:, :height, :width] = (image[:, :height, :width] - mean) / std
    return whole


def extras(kind: str) -> dict[str, bool]:
    return {} if kind.startswith("eomt") else {"output_hidden_states": True, "output_auxiliary_logits": True}


class Broken(torch.nn.Module):
    def forward(self, *given: Any, **named: Any) -> Tensor:
        raise AssertionError("this part was run")


def targets_of(case: str) -> list[Target]:
    shown = {"objects": ((0, 2, 2), (1,)), "one image is empty": ((0, 2), ()), "all are empty": ((), ())}[case]
    return [target((64, 64), *shown[0]), target((44, 60), *shown[1])]


@pytest.mark.parametrize("case", ["objects", "one image is empty", "all are empty"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_losses_gradients_and_random_numbers_are_the_librarys(kind: str, case: str) -> None:
    model = detector(kind).train()
    bare = copy.deepcopy(model.network)
    pictures, targets = scene((64, 64), (44, 60)), targets_of(case)
    masks = [torch.zeros(len(each), 64, 64) for each in targets]
    for mask, each in zip(masks, targets, strict=True):
        assert each.masks is not None
        mask[:, : each.masks.shape[1], : each.masks.shape[2]] = each.masks
    torch.manual_seed(3)
    expected = bare(
        pixel_values=as_the_library_takes_it(kind, pictures),
        mask_labels=masks,
        class_labels=[each.labels for each in targets],
        **extras(kind),
    ).loss
    expected.backward()
    drawn = torch.rand(3)
    torch.manual_seed(3)
    losses = model(pictures, targets).losses
    # transformers sums EoMT's terms layer by layer.
    torch.testing.assert_close(sum(losses.values()), expected, rtol=1e-6 if kind.startswith("eomt") else 0, atol=0)
    assert len(losses) == 3 * COUNTS[kind]
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert torch.equal(torch.rand(3), drawn)
    for own, library in zip(model.network.parameters(), bare.parameters(), strict=True):
        assert (own.grad is None) == (library.grad is None)
        assert own.grad is None or torch.equal(own.grad, library.grad)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_predictions_are_the_librarys_and_no_random_number_is_drawn(kind: str) -> None:
    model = detector(kind).eval()
    pictures = scene((64, 64), (44, 60))
    state = torch.get_rng_state()
    outputs = model(pictures, request=Request(predictions=True))
    assert torch.equal(torch.get_rng_state(), state)
    expected = model.network(pixel_values=as_the_library_takes_it(kind, pictures), **extras(kind))
    assert not outputs.losses
    assert len(outputs.predictions) == COUNTS[kind]
    earlier = getattr(expected, "auxiliary_logits", None) or []
    wanted = [(each["class_queries_logits"], each["masks_queries_logits"]) for each in earlier]
    wanted.append((expected.class_queries_logits, expected.masks_queries_logits))
    for found, (logits, masks) in zip(outputs.predictions[-len(wanted) :], wanted, strict=True):
        assert torch.equal(found.logits, logits)
        assert found.masks is not None
        assert torch.equal(found.masks, masks)
        assert found.boxes is None
    assert outputs.predictions[0].logits.shape == (2, model.facts.num_queries, len(NAMES) + 1)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_every_level_has_the_promised_size_in_every_kind_of_pass(kind: str) -> None:
    model = detector(kind, side=96).eval()
    pictures = scene((96, 96))
    names = tuple(level.name for level in model.facts.levels)
    request = Request(names, final=model.facts.final is not None)
    alone = model(pictures, request=request)
    together = model(pictures, [target((96, 96), 0)], Request.union([request, Request(predictions=True)]))
    for level in model.facts.levels:
        assert alone.maps[level.name].shape == (1, level.channels, *level.grid)
        assert level.grid == (96 // level.stride, 96 // level.stride)
        assert torch.equal(alone.maps[level.name], together.maps[level.name])
    strides = [level.stride for level in model.facts.levels]
    assert strides == {"mask2former": [4, 8, 16, 32], "maskformer": [4, 8, 16]}.get(kind.split()[0], [16] * 4)
    assert (alone.final is None) == (model.facts.final is None)
    assert alone.final is None or torch.equal(alone.final, together.final)


@torch.no_grad()
def test_the_masks_of_pixel_decoders_are_read_from_their_first_level() -> None:
    """Masks are linear in that map: scaling it scales them."""
    model = detector("mask2former").eval()
    pictures = scene((64, 64))
    request = Request(("encoder.0",), predictions=True)
    before = model(pictures, request=request)
    for value in model.network.model.pixel_level_module.decoder.mask_projection.parameters():
        value.mul_(2)
    after = model(pictures, request=request)
    torch.testing.assert_close(after.maps["encoder.0"], 2 * before.maps["encoder.0"])
    torch.testing.assert_close(after.predictions[0].masks, 2 * before.predictions[0].masks)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_parts_that_nobody_asked_for_do_not_run(kind: str) -> None:
    model = detector(kind).eval()
    pictures = scene((64, 64))
    all_but_last = tuple(level.name for level in model.facts.levels)[:-2]
    expected = model(pictures, request=Request(all_but_last)).maps
    network, broken = model.network, Broken()
    network.class_predictor = broken
    if kind.startswith("eomt"):
        # The queries join after the first two of four blocks.
        network.mask_head = network.upscale_block = network.layernorm = broken
        network.layers[2] = network.layers[3] = broken
    else:
        network.model.transformer_module = broken
    found = model(pictures, request=Request(all_but_last)).maps
    assert all(torch.equal(found[name], expected[name]) for name in all_but_last)
    assert model(pictures).maps == {}
    with pytest.raises(AssertionError, match="was run"):
        model(pictures, request=Request(predictions=True))


@pytest.mark.parametrize("kind", ["eomt", "eomt_dinov3"])
@torch.no_grad()
def test_eomts_levels_are_the_patch_tokens_after_each_block(kind: str) -> None:
    model = detector(kind).eval()
    pictures = scene((64, 64))
    outputs = model(pictures, request=Request(tuple(f"blocks.{n}" for n in range(4)), final=True))
    tokens: list[Tensor] = []
    for layer in model.network.layers:
        layer.register_forward_hook(lambda _, given, found: tokens.append(found))
    whole = model.network(pixel_values=as_the_library_takes_it(kind, pictures))
    assert [len(each[0]) for each in tokens] == [2 + 16, 2 + 16, 7 + 2 + 16, 7 + 2 + 16]
    for number, each in enumerate([*tokens, whole.last_hidden_state]):
        expected = each[0, -16:].T.reshape(32, 4, 4)
        found = outputs.final if number == 4 else outputs.maps[f"blocks.{number}"]
        assert found is not None
        assert torch.equal(found[0], expected)


@torch.no_grad()
def test_once_eomts_masks_are_no_longer_attended_with_only_the_last_prediction_is_left() -> None:
    model = detector("eomt").eval()
    model.network.attn_mask_probs.zero_()
    pictures = scene((64, 64))
    found = model(pictures, request=Request(predictions=True)).predictions
    expected = model.network(pixel_values=as_the_library_takes_it("eomt", pictures))
    assert len(found) == 1
    assert torch.equal(found[0].logits, expected.class_queries_logits)


@pytest.mark.parametrize("kind", ["eomt", "eomt_dinov3"])
@torch.no_grad()
def test_eomt_sees_a_small_picture_in_the_corner_of_its_square(kind: str) -> None:
    model = detector(kind).eval()
    small = scene((32, 64))
    square = Pictures(torch.nn.functional.pad(small.images, (0, 0, 0, 32)), small.sizes)
    request = Request(("blocks.3",), predictions=True, final=True)
    found, expected = model(small, request=request), model(square, request=request)
    assert torch.equal(found.predictions[-1].logits, expected.predictions[-1].logits)
    assert torch.equal(found.predictions[-1].masks, expected.predictions[-1].masks[..., :8, :])
    assert torch.equal(found.maps["blocks.3"], expected.maps["blocks.3"][..., :2, :])
    assert torch.equal(found.final, expected.final[..., :2, :])
    labels = target((32, 64), 0, 1)
    torch.manual_seed(0)
    of_small = model(small, [labels]).losses
    torch.manual_seed(0)
    of_square = model(square, [labels]).losses
    assert of_small == of_square


@torch.no_grad()
def test_eomts_position_embeddings_are_stretched_to_squares_of_another_size() -> None:
    model = detector("eomt", side=96).eval()
    request = Request(("blocks.0",), predictions=True)
    # A constant stays what it is on every grid: 36 equal patches are told apart by nothing.
    model.network.embeddings.position_embeddings.weight.copy_(torch.randn(32))
    plain = Pictures(torch.full((1, 3, 96, 96), 0.3), ((96, 96),))
    maps = model(plain, request=request).maps["blocks.0"]
    torch.testing.assert_close(maps, maps[..., :1, :1].expand_as(maps))
    found = model(scene((128, 96)), request=request)
    assert found.maps["blocks.0"].shape[-2:] == (8, 6)
    assert found.predictions[-1].masks.shape[-2:] == (32, 24)


def test_mistakes_are_told() -> None:
    model = detector("eomt")
    boxes_only = Target(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([1]))
    with pytest.raises(UserError, match="boxes only"):
        model(scene((64, 64)), [boxes_only])
    with pytest.raises(UserError, match="patches of 16 pixels"):
        model(Pictures(torch.rand(1, 3, 60, 64), ((60, 64),)))
    with pytest.raises(KeyError, match=r"blocks\.9"):
        model(scene((64, 64)), request=Request(("blocks.9",)))


def drawn_logits() -> tuple[Tensor, Tensor]:
    """Two rectangles and an empty mask on a grid of a quarter of 32 x 48 pixels."""
    logits = torch.full((3, 3), -5.0)
    logits[0, 1], logits[1, 0], logits[1, 2], logits[2, 0] = 5.0, 2.0, 1.0, 9.0
    masks = torch.full((3, 8, 12), -20.0)
    masks[0, 1:3, 2:6] = 20.0
    masks[1, 4:8, 0:12] = 20.0
    return logits, masks


def test_instances_are_pairs_of_query_and_class_scored_by_class_and_mask() -> None:
    logits, masks = drawn_logits()
    found = instances(logits, masks, (32, 48), (32, 48), (32, 48))
    # The sure rectangle, the other with its class; the third likeliest pair has the empty mask.
    assert found.labels.tolist() == [1, 0]
    assert found.boxes.tolist() == [[8, 4, 24, 12], [0, 16, 48, 32]]
    assert found.masks is not None
    # Bilinear interpolation rounds the four corners that are not at the picture's edge: 0.625 ** 2 < 0.5.
    assert found.masks.sum((1, 2)).tolist() == [16 * 8 - 4, 48 * 16]
    probabilities = logits.softmax(-1)
    assert 0.98 < float(found.scores[0] / probabilities[0, 1]) <= 1
    assert 0.98 < float(found.scores[1] / probabilities[1, 0]) <= 1


def test_padding_is_cut_away_before_masks_are_resized() -> None:
    logits, masks = drawn_logits()
    found = instances(logits, masks, (32, 48), (32, 24), (64, 48))
    assert found.boxes.tolist() == [[16, 8, 48, 24], [0, 32, 48, 64]]
    assert found.masks is not None and found.masks.shape == (2, 64, 48)


def test_one_query_may_be_two_instances_of_different_classes() -> None:
    logits = torch.tensor([[2.0, 2.5, -9.0], [-9.0, -9.0, 9.0]])
    masks = torch.full((2, 8, 8), 9.0)
    found = instances(logits, masks, (32, 32), (32, 32), (32, 32))
    assert found.labels.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx((logits[0].softmax(0)[[1, 0]] * masks.sigmoid()[0, 0, 0]).tolist())


def test_nothing_found_is_empty_tensors() -> None:
    found = instances(torch.zeros(4, 3), torch.full((4, 8, 8), -1.0), (32, 32), (30, 20), (60, 40))
    assert found.boxes.shape == (0, 4)
    assert found.masks is not None and found.masks.shape == (0, 60, 40)
    assert len(found.labels) == len(found.scores) == 0


def test_tight_boxes_touch_their_masks_on_all_sides() -> None:
    masks = torch.zeros(2, 9, 7, dtype=torch.bool)
    masks[0, 3, 5] = masks[1, 0, 0] = masks[1, 8, 6] = True
    assert tight_boxes(masks).tolist() == [[5, 3, 6, 4], [0, 0, 7, 9]]


@pytest.mark.parametrize("kind", ["mask2former", "eomt"])
@torch.no_grad()
def test_instances_are_the_librarys_where_its_processor_follows_the_papers(kind: str) -> None:
    """Mask2Former: a picture of 384 x 384. EoMT: one class, since the library gives each query its best one only."""
    side, names = (384, ("cat", "dog")) if kind == "mask2former" else (64, ("cat",))
    model = detector(kind, names, num_queries=5).eval()
    pictures = scene((side, side))
    outputs = model.network(pixel_values=as_the_library_takes_it(kind, pictures))
    found = model.detect(pictures, [(side, side)])[0]
    processor = {
        "mask2former": transformers.models.mask2former.image_processing_mask2former.Mask2FormerImageProcessor,
        "eomt": transformers.models.eomt.image_processing_eomt.EomtImageProcessor,
    }[kind]()
    options = (
        {"return_binary_maps": True} if kind == "mask2former" else {"size": {"shortest_edge": 64, "longest_edge": 64}}
    )
    expected = processor.post_process_instance_segmentation(
        SimpleNamespace(**outputs), target_sizes=[(side, side)], threshold=0.0, **options
    )[0]
    told = sorted((-each["score"], each["label_id"]) for each in expected["segments_info"])
    assert len(told) > 1
    assert found.labels.tolist() == [label for _, label in told]
    assert found.scores.tolist() == pytest.approx([-score for score, _ in told], abs=1e-5)
    assert found.masks is not None
    if kind == "mask2former":
        order = sorted(range(len(told)), key=lambda place: -expected["segments_info"][place]["score"])
        assert torch.equal(found.masks, expected["segmentation"][order].bool())


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_a_record_makes_the_same_network_and_new_classes_keep_the_rows_of_equal_names(kind: str) -> None:
    model_type, values = CONFIGS[kind]
    options = {**values, "id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
    model = create(model_type, text="hf:x", options=options, short=64, long=64).eval()
    again = from_record(json.loads(json.dumps(model.rebuild)), text="run").eval()
    again.network.load_state_dict(model.network.state_dict())
    pictures = scene((64, 64), (60, 40))
    request = Request(predictions=True)
    answers = [each(pictures, request=request).predictions[-1] for each in (model, again)]
    assert torch.equal(answers[0].logits, answers[1].logits)
    assert again.facts.class_names == NAMES
    other = from_record(model.rebuild, text="run", class_names=("ant", "owl"))
    assert other.facts.class_names == ("ant", "owl")
    torch.manual_seed(0)
    losses = other.train()(pictures, [target((64, 64), 0, 1), target((60, 40))]).losses
    assert all(value.isfinite() for value in losses.values())


@torch.no_grad()
def test_slots_without_a_class_are_no_answers_and_labels_skip_them() -> None:
    full = detector("mask2former", ("cat", "dog", "owl")).eval()
    config = copy.deepcopy(full.config)
    config.id2label = {0: "cat", 1: "N/A", 2: "owl"}
    gap = MaskQueryDetector(
        full.network, config, text="x", class_names=("cat", "owl"), resize=Resize(64, 64), provenance=Provenance()
    )
    pictures = scene((64, 64))
    request = Request(predictions=True)
    expected = full(pictures, request=request).predictions[-1].logits[..., [0, 2, 3]]
    assert torch.equal(gap(pictures, request=request).predictions[-1].logits, expected)
    torch.manual_seed(0)
    of_gap = gap(pictures, [target((64, 64), 1)]).losses
    torch.manual_seed(0)
    of_full = full(pictures, [target((64, 64), 2)]).losses
    assert of_gap == of_full
