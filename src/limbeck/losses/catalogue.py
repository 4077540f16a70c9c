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
        needs_teacher: whether there is nothing to learn without one.
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
    needs_teacher: bool = True
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
    "deit": MethodInfo(
        "limbeck.losses.deit:DeiT",
        "learn the class that the teacher names, through a head of its own where there is a distillation token",
        "Touvron et al., ICML 2021, arXiv:2012.12877",
        needs_labels=False,
        kind="logits",
        needs="same classes",
        published="RegNetY-16GF -> DeiT-Ti with token, ImageNet: 74.5 (alone 72.2); -> DeiT-S 81.2 (79.9); "
        "-> DeiT-B 83.4 (81.8; soft without token 81.8, hard 83.0)",
        when="a convolutional teacher and a vision transformer, without anything to tune",
    ),
    "maskedkd": MethodInfo(
        "limbeck.losses.maskedkd:MaskedKD",
        "kd with a teacher that sees only the patches which the student attends to",
        "Son et al., ECCV 2024, arXiv:2302.10494",
        needs_labels=False,
        kind="logits",
        needs="two plain ViTs (no Swin, no rotary positions), same classes; no --compile, no method on the teacher's maps",
        published="half of the patches: about half of the teacher's operations, the accuracy of kd",
        when="the teacher's pass takes most of the time",
    ),
    "uskd": MethodInfo(
        "limbeck.losses.uskd:USKD",
        "learn from oneself: soft labels from the network's own final and middle answers",
        "Yang et al., ICCV 2023, arXiv:2303.13005",
        needs_labels=True,
        kind="logits",
        needs_teacher=False,
        needs="a level in the middle of the student",
        published="without a teacher, ImageNet: ResNet-18 70.79 (alone 69.90), DeiT-Ti 74.97 (alone 74.42)",
        when="no teacher is to be had: --teacher none",
    ),
    "dkd": MethodInfo(
        "limbeck.losses.dkd:DKD",
        "match target against the rest and the rest among themselves, each with a weight of its own",
        "Zhao et al., CVPR 2022, arXiv:2203.08679",
        needs_labels=True,
        kind="logits",
        needs="three classes or more",
        published="ResNet-34 -> ResNet-18, ImageNet: 71.70; ResNet-32x4 -> ResNet-8x4, CIFAR-100: 76.32",
        when="small convolutional pairs of one family; beta is to be tuned for the pair",
    ),
    "dist": MethodInfo(
        "limbeck.losses.dist:DIST",
        "match class probabilities up to scale and offset, over classes and over the batch",
        "Huang et al., NeurIPS 2022, arXiv:2205.10536",
        needs_labels=False,
        kind="logits",
        published="ResNet-34 -> ResNet-18, ImageNet: 72.07; Swin-L -> Swin-T: 82.3",
        when="a teacher much stronger than the student; in place of kd with nothing to tune",
    ),
    "standardised": MethodInfo(
        "limbeck.losses.standardised:Standardised",
        "another loss on logits, after giving these mean 0 and standard deviation 1",
        "Sun et al., CVPR 2024, arXiv:2403.01427",
        needs_labels=False,
        kind="logits",
        needs="labels where the loss inside does",
        published="ResNet-32x4 -> ResNet-8x4, CIFAR-100: kd 76.62, dkd 77.01",
        when="logits of unlike scales, such as those of ensembles or of teachers trained with BCE",
    ),
    "function_matching": MethodInfo(
        "limbeck.losses.function_matching:FunctionMatching",
        "match the teacher's class probabilities in place of the labels",
        "Beyer et al., CVPR 2022, arXiv:2106.05237",
        needs_labels=False,
        kind="logits",
        published="BiT-R152x2 -> ResNet-50, ImageNet: 82.8 (9600 epochs)",
        when="very long schedules with --mixup 1.0; fine-tuning on small data",
    ),
    "at": MethodInfo(
        "limbeck.losses.at:AttentionTransfer",
        "match where activations are strong, level by level; no projector",
        "Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928",
        needs_labels=False,
        kind="features",
        needs="levels; unequal grids are resized",
        published="ResNet-34 -> ResNet-18, ImageNet: 70.90; ResNet-32x4 -> ResNet-8x4, CIFAR-100: 73.44",
        when="a baseline for convolutional pairs of unequal widths",
    ),
    "sp": MethodInfo(
        "limbeck.losses.sp:SP",
        "match how alike the images of a batch are, by their last maps; no projector",
        "Tung and Mori, ICCV 2019, arXiv:1907.09682",
        needs_labels=False,
        kind="relations",
        needs="levels; any grids",
        published="ResNet-32x4 -> ResNet-8x4, CIFAR-100: 72.94",
        when="a baseline between networks of any kinds; wants large batches",
    ),
    "rkd": MethodInfo(
        "limbeck.losses.rkd:RKD",
        "match distances and angles among the images of a batch, by their pooled vectors; no projector",
        "Park et al., CVPR 2019, arXiv:1904.05068",
        needs_labels=False,
        kind="relations",
        needs="memory for the batch cubed",
        published="ResNet-32x4 -> ResNet-8x4, CIFAR-100: 71.90",
        when="embeddings for retrieval and metric learning",
    ),
    "feature_kd": MethodInfo(
        "limbeck.losses.feature_kd:FeatureKD",
        "learn the teacher's last features, pooled and dense, each channel brought to one scale",
        "after Shang et al., CoRL 2024, arXiv:2407.20179 (Theia)",
        needs_labels=False,
        kind="features",
        needs="a last map, or dense=0",
        when="a foundation model as teacher (DINOv2, CLIP, ...) and images without labels",
    ),
    "patch_relation": MethodInfo(
        "limbeck.losses.patch_relation:PatchRelation",
        "match, for each patch of an image, which others it is like in the last layer, by KL",
        "LightlyTrain's distillation, third version (documentation, no paper)",
        needs_labels=False,
        kind="relations",
        needs="a last map",
        when="beside feature_kd(dense=0), for students of dense prediction",
    ),
    "ofa_kd": MethodInfo(
        "limbeck.losses.ofa_kd:OFAKD",
        "learn the teacher's class probabilities at early exits too, the true class strengthened",
        "Hao et al., NeurIPS 2023, arXiv:2310.19444",
        needs_labels=True,
        kind="logits",
        needs="levels of the student",
        published="DeiT-Ti -> ResNet-18, ImageNet: 71.34 (gamma 1.5)",
        when="teacher and student of different families; lower the weight if it is unstable",
    ),
    "spectralkd": MethodInfo(
        "limbeck.losses.spectralkd:SpectralKD",
        "match the Fourier spectra of maps, channels averaged to the narrower width; no projector",
        "Tian et al. 2024, arXiv:2412.19055",
        needs_labels=False,
        kind="features",
        needs="levels; unequal grids are resized",
        published="CaiT-S24 -> DeiT-Ti, ImageNet, 400 epochs: +5.2; Swin-S -> Swin-T: +1.4",
        when="two vision transformers of one kind, beside kd(temperature=1), without drop path",
    ),
    "vkd": MethodInfo(
        "limbeck.losses.vkd:VkD",
        "meet the teacher's normalised vector through a projection that stays orthogonal",
        "Miles et al., CVPR 2024, arXiv:2403.06213",
        needs_labels=False,
        kind="features",
        published="RegNetY-160 -> DeiT-Ti, ImageNet: 78.3; -> DeiT-S: 82.3",
        when="a vision transformer from any teacher at least as wide, beside DeiT's distillation",
    ),
    "crd": MethodInfo(
        "limbeck.losses.crd:CRD",
        "tell an image's embedding from those of thousands of others that are remembered",
        "Tian et al., ICLR 2020, arXiv:1910.10699",
        needs_labels=False,
        kind="relations",
        needs="room for two vectors of every training image; no mixup",
        published="ResNet-32x4 -> ResNet-8x4, CIFAR-100: 75.51; ResNet-34 -> ResNet-18, ImageNet: 70.93",
        when="small data sets and convolutional pairs, alone or with kd",
    ),
    "unic": MethodInfo(
        "limbeck.losses.unic:UNIC",
        "learn the features of several teachers, each through heads on all levels, now and then leaving some out",
        "Sariyildiz et al., ECCV 2024, arXiv:2408.05088",
        needs_labels=False,
        kind="features",
        needs="a last map; one teacher, or several: --teacher 'A + B'",
        published="ViT-B/16 from several teachers, ImageNet, linear classifier on its features: 83.8",
        when="several foundation models that are good at different things",
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
