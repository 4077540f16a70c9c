"""Names of the distillation methods and the text by which they are asked for, without importing torch.

A method is written `name` or `name(option=value, ...)`, several are joined by `+`: `vitkd+nkd(gamma=1.0)`. A name
is one of `METHODS` or an importable class, `package.module:Class`. Values are as in `limbeck.call_text` and never run.
"""

import difflib
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from limbeck.call_text import parse_options, split_joined
from limbeck.errors import UserError

TaskName = Literal["classification", "detection"]


@dataclass(frozen=True)
class MethodInfo:
    """What a list of methods says about one.

    Attributes:
        path: `module:Class` of its `DistillationLoss`.
        summary: one line.
        reference: paper and arXiv number.
        needs_labels: whether unlabelled images are of no use to it.
        tasks: for which of them it can be used; instance segmentation counts as detection.
    """

    path: str
    summary: str
    reference: str
    needs_labels: bool
    tasks: tuple[TaskName, ...] = ("classification",)


BOTH_TASKS: tuple[TaskName, ...] = ("classification", "detection")


METHODS: dict[str, MethodInfo] = {
    "kd": MethodInfo(
        "limbeck.losses.kd:KD",
        "match the teacher's softened class probabilities",
        "Hinton et al. 2015, arXiv:1503.02531",
        needs_labels=False,
    ),
    "nkd": MethodInfo(
        "limbeck.losses.nkd:NKD",
        "match target and non-target probabilities, each normalised on its own",
        "Yang et al., ICCV 2023, arXiv:2303.13005",
        needs_labels=True,
    ),
    "reviewkd": MethodInfo(
        "limbeck.losses.reviewkd:ReviewKDLoss",
        "match feature maps through a chain of attention-based fusions, deep to shallow",
        "Chen et al., CVPR 2021, arXiv:2104.09044",
        needs_labels=False,
        tasks=BOTH_TASKS,
    ),
    "manifold": MethodInfo(
        "limbeck.losses.manifold:Manifold",
        "match cosines between patches within and across images; no projector",
        "Hao et al., NeurIPS 2022, arXiv:2107.01378",
        needs_labels=False,
        tasks=BOTH_TASKS,
    ),
    "vitkd": MethodInfo(
        "limbeck.losses.vitkd:ViTKDLoss",
        "mimic the first two blocks and regenerate the masked last one",
        "Yang et al., CVPR 2024 workshops, arXiv:2209.02432",
        needs_labels=False,
        tasks=BOTH_TASKS,
    ),
    "fitnets": MethodInfo(
        "limbeck.losses.fitnets:FitNets",
        "regress the teacher's map in the middle of the network",
        "Romero et al., ICLR 2015, arXiv:1412.6550",
        needs_labels=False,
        tasks=BOTH_TASKS,
    ),
    "pkd": MethodInfo(
        "limbeck.losses.pkd:PKD",
        "maximise the correlation of feature maps, channel by channel",
        "Cao et al., NeurIPS 2022, arXiv:2207.02039",
        needs_labels=False,
        tasks=BOTH_TASKS,
    ),
    "cwd": MethodInfo(
        "limbeck.losses.cwd:CWD",
        "match each channel's distribution over positions",
        "Shu et al., ICCV 2021, arXiv:2011.13256",
        needs_labels=False,
        tasks=BOTH_TASKS,
    ),
    "mgd": MethodInfo(
        "limbeck.losses.mgd:MGDLoss",
        "regenerate the teacher's map from a partly masked one",
        "Yang et al., ECCV 2022, arXiv:2205.01529",
        needs_labels=False,
        tasks=BOTH_TASKS,
    ),
    "patch_attention": MethodInfo(
        "limbeck.losses.patch_attention:PatchAttention",
        "match how like the class token is to every patch, block by block; no projector",
        "Wang et al., ICASSP 2022 (Attention Probe)",
        needs_labels=False,
    ),
    "noise_adaptation": MethodInfo(
        "limbeck.losses.noise_adaptation:NoiseAdaptation",
        "learn the teacher's likeliest class through a learnt matrix of its mistakes",
        "Chen et al., CVPR 2021 (DFND)",
        needs_labels=False,
    ),
    "fgd": MethodInfo(
        "limbeck.losses.fgd:FGD",
        "match maps where the teacher looks, objects and background apart, and their global relations",
        "Yang et al., CVPR 2022, arXiv:2111.11837",
        needs_labels=True,
        tasks=("detection",),
    ),
    "roi_kd": MethodInfo(
        "limbeck.losses.roi_kd:RoIKD",
        "match the heads of two-stage detectors on the student's regions: classes, boxes, masks",
        "after Chen et al., NeurIPS 2017",
        needs_labels=False,
        tasks=("detection",),
    ),
    "query_kd": MethodInfo(
        "limbeck.losses.query_kd:QueryKD",
        "match the predictions of queries, after finding which of the student's answers for which of the teacher's",
        "Chang et al., ICCV 2023, arXiv:2211.10156",
        needs_labels=False,
        tasks=("detection",),
    ),
    "shared_queries": MethodInfo(
        "limbeck.losses.shared_queries:SharedQueries",
        "match the answers of both models on the same queries: the teacher's own and random ones",
        "Wang et al., CVPR 2024, arXiv:2211.08071",
        needs_labels=False,
        tasks=("detection",),
    ),
    "corner_kd": MethodInfo(
        "limbeck.losses.corner_kd:CornerKD",
        "match the distributions of box sides of matched queries (D-FINE)",
        "after Peng et al., ICLR 2025, arXiv:2410.13842",
        needs_labels=False,
        tasks=("detection",),
    ),
    "ld": MethodInfo(
        "limbeck.losses.ld:LD",
        "match the distributions of box sides on and around true objects",
        "Zheng et al., CVPR 2022, arXiv:2102.12252",
        needs_labels=True,
        tasks=("detection",),
    ),
    "mask_kd": MethodInfo(
        "limbeck.losses.mask_kd:MaskQueryKD",
        "match the masks and classes of matched mask queries",
        "no paper: classes by KL, masks by cross-entropy and Dice with soft targets",
        needs_labels=False,
        tasks=("detection",),
    ),
}

RESERVED_OPTIONS = ("weight", "warmup_epochs")


@dataclass(frozen=True)
class MethodSpec:
    """One method as the user asked for it.

    Attributes:
        name: short name, or the class's name where a class was given.
        path: `module:Class`.
        options: as written; `weight` and `warmup_epochs` are understood for every method.
    """

    name: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)


def parse_methods(text: str) -> list[MethodSpec]:
    """Read what the user wrote for `--method`.

    Args:
        text: `none`, or methods joined by `+`.

    Returns:
        One spec per method, in order; empty for `none`.

    Raises:
        UserError: a part cannot be read or names no method; the message holds the part.
    """
    if text.strip().lower() == "none":
        return []
    return [_parse_one(part.strip(), text) for part in split_joined(text, "+", "method")]


def _parse_one(part: str, text: str) -> MethodSpec:
    if not part:
        raise UserError(f"The method {text!r} has an empty part. Write methods joined by '+', such as 'vitkd+nkd'.")
    match = re.fullmatch(r"([^\s()]+)\s*(\(.*\))?", part, flags=re.DOTALL)
    if match is None:
        raise UserError(f"The method {part!r} cannot be read. Write name or name(option=value, ...), joined by '+'.")
    name, arguments = match[1], match[2]
    options = parse_options(arguments or "", part)
    if ":" in name:
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
            raise UserError(f"The method {name!r} looks like a class, which is written package.module:Class.")
        return MethodSpec(name.partition(":")[2], name, options)
    short = name.lower()
    if short == "none":
        raise UserError(f"'none' stands alone: {text!r} asks for no distillation and for some at once.")
    if short not in METHODS:
        close = difflib.get_close_matches(short, METHODS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"There is no method {name!r}.{hint} Known: none, {', '.join(METHODS)}, or a class as package.module:Class."
        )
    return MethodSpec(short, METHODS[short].path, options)
