"""Names of the ways to make images for a teacher and the text by which they are asked for, without importing torch.

A way is written `name` or `name(option=value, ...)`; several are joined by `+` and share the pictures out by their
`share`: `invert(share=0.7)+one_image(image='photo.jpg', share=0.3)`. A name is one of `SYNTHESES` or an importable class,
`package.module:Class`. Values are as in `limbeck.call_text` and never run.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from limbeck.call_text import parse_call, split_joined, write_call
from limbeck.errors import UserError

TaskName = Literal["classification", "detection"]
Moment = Literal["before", "between", "during"]
"""When pictures are made: before the student learns, between its epochs (they may be made before as well), at every step."""


@dataclass(frozen=True)
class SynthesisInfo:
    """What a list of ways says about one.

    Attributes:
        path: `module:Class` of its `Synthesis`.
        summary: one line.
        reference: paper and arXiv number, or what it follows.
        moment: when it makes its pictures in a distillation.
        needs: what it must be given beside a teacher: "" or words for people.
        task: what for.
    """

    path: str
    summary: str
    reference: str
    moment: Moment
    needs: str = ""
    task: TaskName = "classification"


_INVERSION = "limbeck.synthesis.inversion.presets"

SYNTHESES: dict[str, SynthesisInfo] = {
    "invert": SynthesisInfo(
        f"{_INVERSION}:Invert",
        "optimise pixels for any teacher with the priors that it can give; the default for transformers",
        "ours, from the parts of PSAQ-ViT, MimiQ and Plug-In Inversion",
        "between",
    ),
    "psaq": SynthesisInfo(
        f"{_INVERSION}:PSAQ",
        "patches of a transformer's attention output shall be as unlike as in real images",
        "Li et al., ECCV 2022, arXiv:2203.02250",
        "between",
        "a teacher with attention",
    ),
    "mimiq": SynthesisInfo(
        f"{_INVERSION}:MimiQ",
        "a transformer's heads shall look at the same structure",
        "Choi et al., AAAI 2025, arXiv:2407.20021",
        "between",
        "a teacher with attention",
    ),
    "plugin": SynthesisInfo(
        f"{_INVERSION}:PlugIn",
        "optimise pixels under shifted colours on a growing canvas; needs nothing of the network",
        "Ghiasi et al., ICML 2022, arXiv:2201.12961",
        "between",
    ),
    "smi": SynthesisInfo(
        f"{_INVERSION}:SMI",
        "sparse inversion: patches that the class token ignores are dropped on the way",
        "Hu et al., ICML 2024, arXiv:2510.27186",
        "between",
        "a plain vision transformer",
    ),
    "pri": SynthesisInfo(
        f"{_INVERSION}:PRI",
        "patch rebirth: the most important patches are finished first, the others go on; much faster",
        "arXiv:2509.23235",
        "between",
        "a plain vision transformer",
    ),
    "deepinversion": SynthesisInfo(
        f"{_INVERSION}:DeepInversion",
        "optimise pixels towards the BatchNorm statistics of the teacher; adi > 0 also puzzles the student",
        "Yin et al., CVPR 2020, arXiv:1912.08795",
        "between",
        "a teacher with BatchNorm",
    ),
    "cmi": SynthesisInfo(
        "limbeck.synthesis.generators.cmi:CMI",
        "a fresh generator for each batch, which contrasts it with all earlier ones",
        "Fang et al., IJCAI 2021, arXiv:2105.08584",
        "between",
    ),
    "fast": SynthesisInfo(
        "limbeck.synthesis.generators.fast:Fast",
        "a meta-learned generator that needs a few steps for each batch; the default for networks with BatchNorm",
        "Fang et al., AAAI 2022, arXiv:2112.06253 (Fast-DFKD)",
        "between",
    ),
    "nayer": SynthesisInfo(
        "limbeck.synthesis.generators.nayer:NAYER",
        "a generator fed with class-name embeddings through a noisy layer",
        "Tran et al., CVPR 2024, arXiv:2310.00258",
        "between",
    ),
    "dafl": SynthesisInfo(
        "limbeck.synthesis.generators.dafl:DAFL",
        "a generator that makes the teacher sure, active and balanced",
        "Chen et al., ICCV 2019, arXiv:1904.01186",
        "during",
    ),
    "zskt": SynthesisInfo(
        "limbeck.synthesis.generators.zskt:ZSKT",
        "a generator that seeks where student and teacher disagree (KL)",
        "Micaelli and Storkey, NeurIPS 2019, arXiv:1905.09768",
        "during",
    ),
    "dfad": SynthesisInfo(
        "limbeck.synthesis.generators.dfad:DFAD",
        "a generator that seeks where student and teacher disagree (L1 of logits)",
        "Fang et al. 2019, arXiv:1912.11006",
        "during",
    ),
    "attention_generator": SynthesisInfo(
        "limbeck.synthesis.generators.attention:AttentionGenerator",
        "a generator with self-attention that puzzles the student and sharpens the teacher's attention",
        "inferred from the abstract of arXiv:2408.05952, whose details are not public",
        "during",
    ),
    "one_image": SynthesisInfo(
        "limbeck.synthesis.pools.one_image:OneImage",
        "crops of one large photograph",
        "Asano and Saeed, ICLR 2023, arXiv:2112.00725",
        "before",
        "image=FILE",
    ),
    "pool": SynthesisInfo(
        "limbeck.synthesis.pools.pool:Pool",
        "of a folder of unrelated images, those that the teacher is surest of, balanced over classes",
        "Wang et al., ICASSP 2022 (Attention Probe); Chen et al., CVPR 2021 (DFND)",
        "before",
        "images=FOLDER",
    ),
    "folder": SynthesisInfo(
        "limbeck.synthesis.pools.folder:Folder",
        "all images of a folder, for instance of an external generator",
        "after DM-KD, arXiv:2305.12954",
        "before",
        "images=FOLDER",
    ),
    "noise": SynthesisInfo(
        "limbeck.synthesis.pools.procedural:Noise", "Gaussian noise, a control", "control", "before"
    ),
    "fractals": SynthesisInfo(
        "limbeck.synthesis.pools.procedural:Fractals",
        "random iterated function systems, a control",
        "control, after Kataoka et al., ACCV 2020",
        "before",
    ),
    "dead_leaves": SynthesisInfo(
        "limbeck.synthesis.pools.procedural:DeadLeaves",
        "overlapping random shapes, a control",
        "control, after Baradad et al., NeurIPS 2021",
        "before",
    ),
    "scenes": SynthesisInfo(
        "limbeck.synthesis.detection.scenes:Scenes",
        "optimise pixels for boxes that are placed, then found and pruned by the detector itself",
        "DIODE, WACV 2021; adaptive labels after arXiv:2507.16782",
        "before",
        task="detection",
    ),
}

RESERVED_OPTIONS = ("share",)


@dataclass(frozen=True)
class SynthesisSpec:
    """One way as the user asked for it.

    Attributes:
        name: short name, or the class's name where a class was given.
        path: `module:Class`.
        options: as written, without `share`.
        share: of the pictures, relative to the others'.
        task: what for.
    """

    name: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    task: TaskName = "classification"

    @property
    def moment(self) -> Moment:
        """When it makes its pictures; classes of a user's own are taken to make them before."""
        return SYNTHESES[self.name].moment if self.name in SYNTHESES else "before"

    def __str__(self) -> str:
        options = self.options | ({"share": self.share} if self.share != 1 else {})
        return write_call(self.name if self.name in SYNTHESES else self.path, options)


def parse_synthesis(text: str, task: TaskName = "classification") -> list[SynthesisSpec]:
    """Read what the user wrote for `--method` of `synthesize` or `--synthesis` of `distill`.

    Args:
        text: ways joined by `+`.
        task: those of the other one are refused.

    Raises:
        UserError: a part cannot be read, names no way, or is of another task; the message holds the part.
    """
    return [_parse_one(part.strip(), text, task) for part in split_joined(text, "+", "synthesis")]


def check_moments(specs: Sequence[SynthesisSpec]) -> None:
    """Refuse two ways that both learn with the student: a step has only one.

    Raises:
        UserError: there are two.
    """
    streamed = [spec.name for spec in specs if spec.moment == "during"]
    if len(streamed) > 1:
        raise UserError(
            f"Only one way may learn with the student at every step, and {' and '.join(streamed)} do. Leave one out."
        )


def _parse_one(part: str, text: str, task: TaskName) -> SynthesisSpec:
    name, options = parse_call(part, text, kind="synthesis", plural="ways", example="invert+noise")
    share = options.pop("share", 1.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < float("inf"):
        raise UserError(f"In {part!r}, share is {share!r}; it must be a number above 0.")
    if ":" in name:
        return SynthesisSpec(name.partition(":")[2], name, options, float(share), task)
    short = name.lower()
    fitting = [known for known, info in SYNTHESES.items() if info.task == task]
    if short not in SYNTHESES:
        close = difflib.get_close_matches(short, SYNTHESES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"There is no way {name!r} to make images.{hint} Known: {', '.join(fitting)}, or a class as "
            "package.module:Class."
        )
    if short not in fitting:
        raise UserError(f"{short!r} makes no images for --task {task}. For it: {', '.join(fitting)}.")
    return SynthesisSpec(short, SYNTHESES[short].path, options, float(share), task)
