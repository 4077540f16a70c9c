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
    ),
    "nkd": MethodInfo(
        "limbeck.losses.nkd:NKD",
        "match target and non-target probabilities, each normalised on its own",
        "Yang et al., ICCV 2023, arXiv:2303.13005",
        needs_labels=True,
        kind="logits",
    ),
    "reviewkd": MethodInfo(
        "limbeck.losses.reviewkd:ReviewKDLoss",
        "match feature maps through a chain of attention-based fusions, deep to shallow",
        "Chen et al., CVPR 2021, arXiv:2104.09044",
        needs_labels=False,
        kind="features",
        tasks=BOTH_TASKS,
    ),
    "manifold": MethodInfo(
        "limbeck.losses.manifold:Manifold",
        "match cosines between patches within and across images; no projector",
        "Hao et al., NeurIPS 2022, arXiv:2107.01378",
        needs_labels=False,
        kind="relations",
        tasks=BOTH_TASKS,
    ),
    "vitkd": MethodInfo(
        "limbeck.losses.vitkd:ViTKDLoss",
        "mimic the first two blocks and regenerate the masked last one",
        "Yang et al., CVPR 2024 workshops, arXiv:2209.02432",
        needs_labels=False,
        kind="features",
        tasks=BOTH_TASKS,
    ),
    "fitnets": MethodInfo(
        "limbeck.losses.fitnets:FitNets",
        "regress the teacher's map in the middle of the network",
        "Romero et al., ICLR 2015, arXiv:1412.6550",
        needs_labels=False,
        kind="features",
        tasks=BOTH_TASKS,
    ),
    "pkd": MethodInfo(
        "limbeck.losses.pkd:PKD",
        "maximise the correlation of feature maps, channel by channel",
        "Cao et al., NeurIPS 2022, arXiv:2207.02039",
        needs_labels=False,
        kind="features",
        tasks=BOTH_TASKS,
    ),
    "cwd": MethodInfo(
        "limbeck.losses.cwd:CWD",
        "match each channel's distribution over positions",
        "Shu et al., ICCV 2021, arXiv:2011.13256",
        needs_labels=False,
        kind="features",
        tasks=BOTH_TASKS,
    ),
    "mgd": MethodInfo(
        "limbeck.losses.mgd:MGDLoss",
        "regenerate the teacher's map from a partly masked one",
        "Yang et al., ECCV 2022, arXiv:2205.01529",
        needs_labels=False,
        kind="features",
        tasks=BOTH_TASKS,
    ),
    "patch_attention": MethodInfo(
        "limbeck.losses.patch_attention:PatchAttention",
        "match how like the class token is to every patch, block by block; no projector",
        "Wang et al., ICASSP 2022 (Attention Probe)",
        needs_labels=False,
        kind="relations",
    ),
    "noise_adaptation": MethodInfo(
        "limbeck.losses.noise_adaptation:NoiseAdaptation",
        "learn the teacher's likeliest class through a learnt matrix of its mistakes",
        "Chen et al., CVPR 2021 (DFND)",
        needs_labels=False,
        kind="logits",
    ),
    "fgd": MethodInfo(
        "limbeck.losses.fgd:FGD",
        "match maps where the teacher looks, objects and background apart, and their global relations",
        "Yang et al., CVPR 2022, arXiv:2111.11837",
        needs_labels=True,
        kind="features",
        tasks=("detection",),
    ),
    "roi_kd": MethodInfo(
        "limbeck.losses.roi_kd:RoIKD",
        "match the heads of two-stage detectors on the student's regions: classes, boxes, masks",
        "after Chen et al., NeurIPS 2017",
        needs_labels=False,
        kind="predictions",
        tasks=("detection",),
    ),
    "query_kd": MethodInfo(
        "limbeck.losses.query_kd:QueryKD",
        "match the predictions of queries, after finding which of the student's answers for which of the teacher's",
        "Chang et al., ICCV 2023, arXiv:2211.10156",
        needs_labels=False,
        kind="predictions",
        tasks=("detection",),
    ),
    "shared_queries": MethodInfo(
        "limbeck.losses.shared_queries:SharedQueries",
        "match the answers of both models on the same queries: the teacher's own and random ones",
        "Wang et al., CVPR 2024, arXiv:2211.08071",
        needs_labels=False,
        kind="predictions",
        tasks=("detection",),
    ),
    "corner_kd": MethodInfo(
        "limbeck.losses.corner_kd:CornerKD",
        "match the distributions of box sides of matched queries (D-FINE)",
        "after Peng et al., ICLR 2025, arXiv:2410.13842",
        needs_labels=False,
        kind="predictions",
        tasks=("detection",),
    ),
    "ld": MethodInfo(
        "limbeck.losses.ld:LD",
        "match the distributions of box sides on and around true objects",
        "Zheng et al., CVPR 2022, arXiv:2102.12252",
        needs_labels=True,
        kind="predictions",
        tasks=("detection",),
    ),
    "mask_kd": MethodInfo(
        "limbeck.losses.mask_kd:MaskQueryKD",
        "match the masks and classes of matched mask queries",
        "no paper: classes by KL, masks by cross-entropy and Dice with soft targets",
        needs_labels=False,
        kind="predictions",
        tasks=("detection",),
    ),
}
