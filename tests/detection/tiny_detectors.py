"""Tiny random detectors of every family, the teacher wider than the student, and two pictures for them to learn from."""

import copy
from functools import cache
from typing import Any

import torch

from limbeck.call_text import write_call
from limbeck.detection import Pictures, Target, pad
from limbeck.models.detection.base import Detector
from limbeck.models.detection.door import load_detector

Options = dict[str, Any]
NAMES = ("cat", "dog", "owl")
PROPOSALS = ("faster_rcnn", "mask_rcnn")
"""The families of two stages."""

MOBILE: Options = {"backbone": "mobilenet_v3_small", "fpn_channels": 16}
RESNET: Options = {
    "model_type": "resnet",
    "embedding_size": 4,
    "hidden_sizes": [4, 4, 8, 8],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
HEADS: Options = {"decoder_layers": 2, "decoder_ffn_dim": 16}
ENCODER: Options = {"encoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
DETR: Options = {
    **HEADS,
    **ENCODER,
    "backbone_config": {**RESNET, "out_features": ["stage4"]},
    "d_model": 16,
    "encoder_layers": 1,
    "num_queries": 6,
    "auxiliary_loss": True,
}
RT_DETR: Options = {
    **HEADS,
    **ENCODER,
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
    "num_queries": 7,
    "num_denoising": 6,
}
WIDER_RT_DETR: Options = {"encoder_hidden_dim": 32, "d_model": 32, "decoder_in_channels": [32, 32, 32]}
HGNET: Options = {
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
}
D_FINE: Options = {
    **RT_DETR,
    "backbone_config": HGNET,
    "decoder_n_points": [3, 3, 3],
    "lqe_hidden_dim": 8,
    "top_prob_values": 2,
    "max_num_bins": 8,
}
TWO_MAPS: Options = {
    "backbone_config": {**HGNET, "out_indices": [3, 4]},
    "num_feature_levels": 2,
    "feat_strides": [16, 32],
    "encoder_in_channels": [8, 8],
    "decoder_in_channels": [16, 16],
    "encode_proj_layers": [1],
    "decoder_n_points": [3, 3],
}
GROUPS: Options = {
    **HEADS,
    "d_model": 16,
    "c2f_num_blocks": 1,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "num_queries": 5,
    "group_detr": 3,
}
VIT: Options = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LW_VIT: Options = {
    "model_type": "lw_detr_vit",
    "pretrain_image_size": 64,
    "num_windows": 4,
    "window_block_indices": [0],
}
RF_VIT: Options = {"model_type": "rf_detr_dinov2", "patch_size": 16, "num_windows": 2}
SEGMENTER: Options = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 7}

FAMILIES: dict[str, tuple[str, Options, Options]] = {
    "faster_rcnn": ("torchvision:faster_rcnn", {**MOBILE, "head_channels": 16}, {"fpn_channels": 24}),
    "mask_rcnn": (
        "torchvision:mask_rcnn",
        {**MOBILE, "head_channels": 16, "mask_channels": 8},
        {"fpn_channels": 24},
    ),
    "retinanet": ("torchvision:retinanet", MOBILE, {"fpn_channels": 24}),
    "fcos": ("torchvision:fcos", {**MOBILE, "fpn_channels": 32}, {"fpn_channels": 64}),
    "ssdlite": (
        "torchvision:ssdlite",
        {"backbone": "mobilenet_v3_small", "extra_channels": [16, 16, 8, 8]},
        {"extra_channels": [24, 24, 16, 16]},
    ),
    "yolos": (
        "hf:yolos",
        {**VIT, "intermediate_size": 32, "image_size": [64, 64], "num_detection_tokens": 5},
        {"hidden_size": 24, "num_hidden_layers": 3},
    ),
    "detr": ("hf:detr", DETR, {"d_model": 24}),
    "rt_detr": ("hf:rt_detr", RT_DETR, WIDER_RT_DETR),
    "rt_detr_v2": ("hf:rt_detr_v2", RT_DETR, WIDER_RT_DETR),
    "d_fine": ("hf:d_fine", D_FINE, WIDER_RT_DETR),
    "lw_detr": (
        "hf:lw_detr",
        {
            **GROUPS,
            "backbone_config": {**VIT, **LW_VIT, "image_size": 64, "out_indices": [1, 2]},
            "projector_scale_factors": [2.0, 0.5],
        },
        {"d_model": 32},
    ),
    "rf_detr": (
        "hf:rf_detr",
        {
            **GROUPS,
            "backbone_config": {**VIT, **RF_VIT, "image_size": 64, "out_indices": [1, 2]},
            "intermediate_size": 16,
        },
        {"d_model": 32},
    ),
    "mask2former": (
        "hf:mask2former",
        {
            **SEGMENTER,
            "backbone_config": {"model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1]}
            | {"num_heads": [1, 1, 2, 2], "window_size": 4, "out_features": RESNET["out_features"]},
            "feature_size": 32,
            "mask_feature_size": 16,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 16,
            "num_attention_heads": 2,
            "dim_feedforward": 16,
            "train_num_points": 64,
        },
        {"feature_size": 64, "hidden_dim": 64, "mask_feature_size": 24},
    ),
    "maskformer": (
        "hf:maskformer",
        {
            "backbone_config": RESNET,
            "decoder_config": {**SEGMENTER, **ENCODER, "model_type": "detr", "d_model": 16, "decoder_ffn_dim": 16},
            "fpn_feature_size": 32,
            "mask_feature_size": 16,
        },
        {"fpn_feature_size": 64, "mask_feature_size": 24},
    ),
    "eomt": (
        "hf:eomt",
        {**VIT, "num_hidden_layers": 3, "num_blocks": 1, "image_size": 64, "patch_size": 16, "num_queries": 7}
        | {"num_register_tokens": 1, "train_num_points": 64, "mlp_ratio": 2},
        {"hidden_size": 24},
    ),
}
"""Of each family its name, the student's options and what is other of the teacher."""

VARIANTS: dict[str, tuple[str, Options, Options]] = {
    "faster_rcnn on a vit": (
        "torchvision:faster_rcnn",
        {"backbone": "timm:test_vit", "fpn_channels": 16, "head_channels": 16},
        {},
    ),
    "rf_detr with masks": (
        "hf:rf_detr",
        {**FAMILIES["rf_detr"][1], "architectures": ["RfDetrForInstanceSegmentation"]},
        {"d_model": 32},
    ),
    "d_fine of two maps": ("hf:d_fine", {**D_FINE, **TWO_MAPS}, {}),
    "d_fine of other bins": ("hf:d_fine", {**D_FINE, "max_num_bins": 6}, {}),
}
"""Further networks for pairs of different families."""


@cache
def opened(kind: str, role: str, names: tuple[str, ...] = NAMES) -> Detector:
    """A detector that has an opinion of every picture, and of which no parameter is idle."""
    name, options, wider = (FAMILIES | VARIANTS)[kind]
    torch.manual_seed(len(kind))
    text = write_call(name, options | (wider if role == "teacher" else {}))
    detector = load_detector(text, class_names=names, short=64, long=64)
    network: Any = detector.network
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if parameter.max() == parameter.min() and not key.endswith((".up", ".reg_scale")):
                # Heads start out sure that there is nothing, with a large negative bias.
                parameter.clamp_(min=0).add_(0.1 * torch.randn_like(parameter))
    if kind.startswith(PROPOSALS):
        network.roi_heads.fg_bg_sampler.batch_size_per_image = 16
        network.rpn._pre_nms_top_n = {"training": 50, "testing": 20}
    return detector


def pair(student: str, teacher: str, classes: tuple[str, ...] = NAMES) -> tuple[Detector, Detector]:
    """Teacher and student; the student is a copy that may be trained."""
    return opened(teacher, "teacher", classes), copy.deepcopy(opened(student, "student"))


@cache
def scene() -> tuple[Pictures, list[Target]]:
    """Two pictures of unequal sizes with two objects and one."""
    generator = torch.Generator().manual_seed(3)
    pictures = pad([torch.rand(3, *size, generator=generator) for size in ((64, 96), (56, 80))])
    boxes = torch.tensor([[6.0, 5, 45, 40], [20, 30, 70, 56]]), torch.tensor([[30.0, 4, 70, 44]])
    targets = []
    for corners, labels, (height, width) in zip(boxes, ([2, 0], [1]), pictures.sizes, strict=True):
        masks = torch.zeros(len(corners), height, width, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, corners.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        targets.append(Target(corners, torch.tensor(labels), masks))
    return pictures, targets
