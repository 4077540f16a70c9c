"""The distillation methods that come with Limbeck, and what a user should know to choose among them. Imports no torch.

Published numbers are top-1 accuracies (of detectors AP) as the papers or their authors' code give them, with the pair of
networks; they come from different recipes, and only rows of one recipe may be compared.
"""

from dataclasses import dataclass
from typing import Literal

TaskName = Literal["classification", "detection"]
MethodKind = Literal["logits", "features", "relations", "predictions", "none"]


@dataclass(frozen=True)
class MethodInfo:
    """What a list of methods says about one.

    Attributes:
        path: `module:Class` of its `DistillationLoss`.
        summary: one line.
        reference: paper and arXiv number.
        needs_labels: whether unlabelled images are of no use to it.
        kind: what it reads.
        tasks: for which of them it can be used; instance segmentation counts as detection.
        needs: what it asks of the models beside that, in a few words: "one grid", "a ViT", ...; empty for nothing.
        published: numbers of its paper: "ResNet-34 -> ResNet-18, ImageNet: 71.70"; empty where none were found.
        when: when to take it, in one sentence.
    """

    path: str
    summary: str
    reference: str
    needs_labels: bool
    kind: MethodKind
    tasks: tuple[TaskName, ...] = ("classification",)
    needs: str = ""
    published: str = ""
    when: str = ""


BOTH_TASKS: tuple[TaskName, ...] = ("classification", "detection")


METHODS: dict[str, MethodInfo] = {
    "kd": MethodInfo(
        "limbeck.losses.kd:KD",
        "match the teacher's softened class probabilities",
        "Hinton et al. 2015, arXiv:1503.02531",
        needs_labels=False,
        kind="logits",
        published="ResNet-34 -> ResNet-18, ImageNet: 71.03",
        when="the first thing to try, and the control of every other method",
    ),
    "nkd": MethodInfo(
        "limbeck.losses.nkd:NKD",
        "match target and non-target probabilities, each normalised on its own",
        "Yang et al., ICCV 2023, arXiv:2303.13005",
        needs_labels=True,
        kind="logits",
        published="ResNet-34 -> ResNet-18, ImageNet: 71.96; DeiT III-S -> DeiT-Ti: 76.68",
        when="in place of kd where images are labelled; joins well with vitkd",
    ),
    "reviewkd": MethodInfo(
        "limbeck.losses.reviewkd:ReviewKDLoss",
        "match feature maps through a chain of attention-based fusions, deep to shallow",
        "Chen et al., CVPR 2021, arXiv:2104.09044",
        needs_labels=False,
        kind="features",
        tasks=BOTH_TASKS,
        needs="maps of several sizes, or blocks of several depths",
        published="ResNet-34 -> ResNet-18, ImageNet: 71.61; WRN-40-2 -> WRN-16-2, CIFAR-100: 76.12",
        when="convolutional pairs and detectors with feature pyramids",
    ),
    "manifold": MethodInfo(
        "limbeck.losses.manifold:Manifold",
        "match cosines between patches within and across images; no projector",
        "Hao et al., NeurIPS 2022, arXiv:2107.01378",
        needs_labels=False,
        kind="relations",
        tasks=BOTH_TASKS,
        needs="levels; unequal grids are resized",
        published="CaiT-S24 -> DeiT-Ti, ImageNet: 76.4 (rerun by others: 75.7)",
        when="two vision transformers of any widths; nothing is learnt beside the student",
    ),
    "vitkd": MethodInfo(
        "limbeck.losses.vitkd:ViTKDLoss",
        "mimic the first two blocks and regenerate the masked last one",
        "Yang et al., CVPR 2024 workshops, arXiv:2209.02432",
        needs_labels=False,
        kind="features",
        tasks=BOTH_TASKS,
        needs="levels; unequal grids are resized",
        published="DeiT III-S -> DeiT-Ti, ImageNet: 76.06, with nkd 77.78",
        when="vision transformers of one family, joined with nkd",
    ),
    "fitnets": MethodInfo(
        "limbeck.losses.fitnets:FitNets",
        "regress the teacher's map in the middle of the network",
        "Romero et al., ICLR 2015, arXiv:1412.6550",
        needs_labels=False,
        kind="features",
        tasks=BOTH_TASKS,
        needs="one pair of levels",
        published="ResNet-32x4 -> ResNet-8x4, CIFAR-100: 73.50",
        when="a baseline for other feature methods",
    ),
    "pkd": MethodInfo(
        "limbeck.losses.pkd:PKD",
        "maximise the correlation of feature maps, channel by channel",
        "Cao et al., NeurIPS 2022, arXiv:2207.02039",
        needs_labels=False,
        kind="features",
        tasks=BOTH_TASKS,
        needs="levels",
        published="Mask R-CNN-Swin -> RetinaNet-R50, COCO: 41.5 AP (alone 37.4)",
        when="detectors of unlike architectures: scale and offset of maps do not matter",
    ),
    "cwd": MethodInfo(
        "limbeck.losses.cwd:CWD",
        "match each channel's distribution over positions",
        "Shu et al., ICCV 2021, arXiv:2011.13256",
        needs_labels=False,
        kind="features",
        tasks=BOTH_TASKS,
        needs="levels",
        published="GFL-R101 -> GFL-R50, COCO: 41.9 AP (alone 40.2)",
        when="dense prediction, where channels stand for places",
    ),
    "mgd": MethodInfo(
        "limbeck.losses.mgd:MGDLoss",
        "regenerate the teacher's map from a partly masked one",
        "Yang et al., ECCV 2022, arXiv:2205.01529",
        needs_labels=False,
        kind="features",
        tasks=BOTH_TASKS,
        needs="levels",
        published="ResNet-34 -> ResNet-18, ImageNet: 71.69; RetinaNet-R50, COCO: 41.0 AP (alone 37.4)",
        when="detectors, and convolutional classifiers",
    ),
    "patch_attention": MethodInfo(
        "limbeck.losses.patch_attention:PatchAttention",
        "match how like the class token is to every patch, block by block; no projector",
        "Wang et al., ICASSP 2022 (Attention Probe)",
        needs_labels=False,
        kind="relations",
        needs="a class token, or a mean in its place",
        when="vision transformers of one depth; made for unlabelled images",
    ),
    "noise_adaptation": MethodInfo(
        "limbeck.losses.noise_adaptation:NoiseAdaptation",
        "learn the teacher's likeliest class through a learnt matrix of its mistakes",
        "Chen et al., CVPR 2021 (DFND)",
        needs_labels=False,
        kind="logits",
        when="images that were not made for the teacher and fool it",
    ),
    "fgd": MethodInfo(
        "limbeck.losses.fgd:FGD",
        "match maps where the teacher looks, objects and background apart, and their global relations",
        "Yang et al., CVPR 2022, arXiv:2111.11837",
        needs_labels=True,
        kind="features",
        tasks=("detection",),
        needs="feature pyramids",
        published="RetinaNet-R50, COCO: 40.7 AP (alone 37.4)",
        when="detectors with feature pyramids",
    ),
    "roi_kd": MethodInfo(
        "limbeck.losses.roi_kd:RoIKD",
        "match the heads of two-stage detectors on the student's regions: classes, boxes, masks",
        "after Chen et al., NeurIPS 2017",
        needs_labels=False,
        kind="predictions",
        tasks=("detection",),
        needs="two two-stage detectors",
        when="Faster and Mask R-CNN pairs, beside a feature method",
    ),
    "query_kd": MethodInfo(
        "limbeck.losses.query_kd:QueryKD",
        "match the predictions of queries, after finding which of the student's answers for which of the teacher's",
        "Chang et al., ICCV 2023, arXiv:2211.10156",
        needs_labels=False,
        kind="predictions",
        tasks=("detection",),
        needs="two detectors with object queries",
        published="Deformable DETR-R101 -> R50, with two other terms, COCO: 46.6 AP (alone 44.1)",
        when="DETR-like pairs",
    ),
    "shared_queries": MethodInfo(
        "limbeck.losses.shared_queries:SharedQueries",
        "match the answers of both models on the same queries: the teacher's own and random ones",
        "Wang et al., CVPR 2024, arXiv:2211.08071",
        needs_labels=False,
        kind="predictions",
        tasks=("detection",),
        needs="encoder-chosen queries in both",
        published="a larger DAB-DETR -> R18, COCO: 41.4 AP (alone 36.2)",
        when="RT-DETR- or DINO-like pairs",
    ),
    "corner_kd": MethodInfo(
        "limbeck.losses.corner_kd:CornerKD",
        "match the distributions of box sides of matched queries (D-FINE)",
        "after Peng et al., ICLR 2025, arXiv:2410.13842",
        needs_labels=False,
        kind="predictions",
        tasks=("detection",),
        needs="distributions of box sides in both",
        when="D-FINE pairs, beside query_kd",
    ),
    "ld": MethodInfo(
        "limbeck.losses.ld:LD",
        "match the distributions of box sides on and around true objects",
        "Zheng et al., CVPR 2022, arXiv:2102.12252",
        needs_labels=True,
        kind="predictions",
        tasks=("detection",),
        needs="distributions of box sides in both",
        published="GFL-R101 -> GFL-R50, COCO: 41.1 AP (alone 40.1)",
        when="D-FINE pairs on labelled images",
    ),
    "mask_kd": MethodInfo(
        "limbeck.losses.mask_kd:MaskQueryKD",
        "match the masks and classes of matched mask queries",
        "no paper: classes by KL, masks by cross-entropy and Dice with soft targets",
        needs_labels=False,
        kind="predictions",
        tasks=("detection",),
        needs="two detectors with mask queries",
        when="Mask2Former-like pairs",
    ),
}
