"""What a run is: every option of training and distillation, typed, documented once, saved beside the results.

The dataclasses here are the single definition behind the three faces of a verb: `from_recipe` turns a function of
a recipe into a Python function of its fields, the command line makes its options from the same fields, and a YAML
file given with `--config` fills the same names. This file imports no heavy library, so that asking for help is quick.
"""

import dataclasses
import functools
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec, Self, TypeVar

from limbeck.errors import MissingExtraError, UserError

P = ParamSpec("P")
R = TypeVar("R")
RecipeT = TypeVar("RecipeT")

Auto = Literal["auto"]
Task = Literal["classification", "detection"]

NO_DATA = "none"
"""What `data` is where all images are made for the teacher."""

NO_TEACHER = "none"
"""What `teacher` is where the student learns from itself."""

# Options that mean something only where there is no data.
ONLY_WITHOUT_DATA = ("synthesis", "synthetic_images", "synthesis_batch_size", "statistics")

# Options that mean something only where there is a teacher.
ONLY_WITH_TEACHER = ("teacher_size", "teacher_accuracy", "trust_teacher")

# Options that mean something for one task only. (Those of a particular verb are in its own recipe.)
ONLY_FOR: dict[Task, tuple[str, ...]] = {
    "classification": (
        "label_smoothing", "mixup", "cutmix", "mix_prob", "mix_switch_prob", "crop", "pad", "crop_scale", "rand_augment",
        "random_erasing", "eval_crop", "view_size", "drop_path", "input_size", "student_size", "teacher_size", "compile",
        "max_train_images",
    ),
    "detection": ("short_side", "long_side", "scale_jitter", "short_sides", "backbone", "pseudo_score"),
}  # fmt: skip


@dataclass(kw_only=True)
class TrainingRecipe:
    """How a network is trained, whatever teaches it.

    Options marked [classification] or [detection] belong to that task and are refused with the other.

    Args:
        task: what the network does: name an image's class, or find objects with their boxes (and masks, where network and
            data have them).
        data: for classification digits | a folder of class folders | FILE.npz | FILE.parquet or a folder of parquet files |
            hf:NAME; for detection shapes | coco:ANNOTATIONS.json,IMAGES | voc:FOLDER | yolo:FOLDER; for both, when
            distilling, a folder of unlabelled images, or one that `limbeck synthesize` wrote, or none: then images are made for
            the teacher alone (see synthesis).
        val_data: labelled images to measure on, named like data; its validation images are taken, and nothing is held out of
            data. For unlabelled and synthetic images, and for none, there is no other way to a number.
        out: the run's folder; auto makes a new one under runs/.
        resume: continue the run in --out from its last checkpoint; the result equals that of an uninterrupted run.
        epochs: passes over the training images.
        batch_size: images per step and device; auto is 128 for classification, 8 for detection.
        optimizer: the optimiser.
        lr: peak learning rate; auto scales with the images per update: adamw 1e-3 * sqrt(n / 512), lamb
            5e-3 * sqrt(n / 2048), sgd 0.1 * n / 256.
        weight_decay: auto is 0.05 (adamw), 0.02 (lamb) or 5e-4 (sgd).
        decay_norms: also decay biases, norm parameters, position embeddings and tokens; auto is yes for sgd (as in the
            CIFAR literature) and no for adamw and lamb (as for vision transformers).
        momentum: of sgd.
        nesterov: Nesterov's correction of that momentum.
        schedule: cosine to min_lr_ratio, step at step_epochs, or constant; all after a linear warm-up.
        warmup_epochs: linear warm-up from 1e-3 of the peak rate; auto is 5 % of the epochs (at most 20) for adamw and
            lamb, 0 for sgd.
        min_lr_ratio: last rate of the cosine, relative to the peak.
        step_epochs: epochs after which the step schedule multiplies the rate; auto is 62.5, 75 and 87.5 % of epochs.
        step_gamma: the factor of each step.
        label_smoothing: [classification] of the supervised loss.
        mixup: [classification] alpha of Mixup; 0 switches it off.
        cutmix: [classification] alpha of CutMix; 0 switches it off.
        mix_prob: [classification] share of batches that are mixed when either is on.
        mix_switch_prob: [classification] chance of CutMix instead of Mixup when both are on.
        crop: [classification] training crop. pad pads and crops; resized is the random resized crop; none only resizes; auto
            takes pad for images and views of at most 64 pixels, resized otherwise.
        pad: [classification] pixels added on each side by that padding; auto is an eighth of the view's side (4 for 32 pixels).
        crop_scale: [classification] smallest and largest area share of the random resized crop.
        flip: chance of a horizontal flip; auto is 0 for digits (a mirrored digit is none), 0.5 otherwise.
        rand_augment: [classification] a policy in timm's notation, such as rand-m9-mstd0.5-inc1.
        color_jitter: strength of brightness, contrast and saturation jitter.
        random_erasing: [classification] chance that a rectangle of the image is erased.
        eval_crop: [classification] share of the image's shorter side that the centre crop keeps when measuring.
        view_size: [classification] side in pixels of the picture that both models are shown (each resizes it to its own
            input); auto is the student's input side, or the larger of the two models' where the images are larger than that.
        drop_path: [classification] stochastic depth rate of the trained network.
        short_side: [detection] pixels that an image's shorter side is resized to; auto is what the trained network wants. Both
            models are shown the same picture.
        long_side: [detection] the most that the longer side may have; auto keeps the network's own proportion to short_side.
        scale_jitter: [detection] smallest and largest factor of a random resize of the training pictures; what then exceeds
            the picture is cut off at random, and what falls short of it is filled with black.
        short_sides: [detection] the training pictures' shorter side is one of these at random, multi-scale training.
        backbone: [detection] the trained network's backbone: a classifier's name, or the folder of a run that trained or
            distilled one, whose weights it then starts from.
        ema: decay of an exponential moving average of the weights, per update; the average is measured and saved.
        clip_grad: largest gradient norm.
        accumulate: batches per update.
        precision: auto is bf16 on a GPU that has it, 32 elsewhere.
        compile: compile the trained network with its losses, and the teacher, each as one graph.
        accelerator: where to train.
        devices: number of devices.
        nodes: number of machines (start one process on each with torchrun or SLURM).
        num_workers: processes that load images; auto is 0 for small sets in memory, else up to 8.
        seed: of everything random.
        val_fraction: share of the images held out for validation where the data gives no split.
        split_seed: of that split and of max_train_images; not the run's seed, so that a teacher and the students of several
            seeds share one split.
        max_train_images: train on a stratified random subset of this size.
        bad_images: what to do about files that cannot be decoded: stop, or skip (counted and listed in the run).
        eval_every: epochs between measurements on the validation images.
        log_every: steps between lines of metrics.
        checkpoint_steps: also write a checkpoint every so many steps within an epoch.
        loggers: beside metrics.jsonl and metrics.csv, which are always written.
        control: folders of runs without distillation to compare with in the report.
        report: write report.html at the end.
        progress: show a progress bar.
    """

    data: str
    task: Task = "classification"
    val_data: str | None = None
    out: str = "auto"
    resume: bool = False
    epochs: int = 100
    batch_size: int | Auto = "auto"
    optimizer: Literal["adamw", "sgd", "lamb"] = "adamw"
    lr: float | Auto = "auto"
    weight_decay: float | Auto = "auto"
    decay_norms: bool | Auto = "auto"
    momentum: float = 0.9
    nesterov: bool = True
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float | Auto = "auto"
    min_lr_ratio: float = 0.01
    step_epochs: list[float] | Auto = "auto"
    step_gamma: float = 0.1
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch_prob: float = 0.5
    crop: Literal["auto", "resized", "pad", "none"] = "auto"
    pad: int | Auto = "auto"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float | Auto = "auto"
    rand_augment: str | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    eval_crop: float = 0.875
    view_size: int | Auto = "auto"
    drop_path: float = 0.0
    short_side: int | Auto = "auto"
    long_side: int | Auto = "auto"
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    short_sides: list[int] = field(default_factory=list)
    backbone: str | None = None
    ema: float | None = None
    clip_grad: float | None = None
    accumulate: int = 1
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    compile: bool = False
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int = 1
    nodes: int = 1
    num_workers: int | Auto = "auto"
    seed: int = 0
    val_fraction: float = 0.1
    split_seed: int = 0
    max_train_images: int | None = None
    bad_images: Literal["stop", "skip"] = "stop"
    eval_every: int = 1
    log_every: int = 50
    checkpoint_steps: int | None = None
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = field(default_factory=lambda: ["tensorboard"])
    control: list[str] = field(default_factory=list)
    report: bool = True
    progress: bool = True

    def check(self) -> None:
        """Refuse impossible numbers before anything heavy is loaded.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        self._refuse_options_of_another_task()
        for name in ("epochs", "batch_size", "accumulate", "devices", "nodes", "eval_every", "log_every"):
            _require(self, name, lambda value: value == "auto" or value >= 1, "at least 1")
        for name in ("short_side", "long_side"):
            _require(self, name, lambda value: value == "auto" or value >= 32, "at least 32 pixels")
        _require(self, "scale_jitter", lambda value: 0 < value[0] <= value[1], "two factors, 0 < a <= b")
        for name in ("label_smoothing", "mix_prob", "mix_switch_prob", "random_erasing", "flip", "drop_path"):
            _require(self, name, lambda value: value == "auto" or 0 <= value <= 1, "between 0 and 1")
        _require(self, "val_fraction", lambda value: 0 < value < 1, "between 0 and 1, both excluded")
        _require(self, "eval_crop", lambda value: 0 < value <= 1, "above 0 and at most 1")
        _require(self, "ema", lambda value: value is None or 0 < value < 1, "between 0 and 1, for example 0.9999")
        _require(self, "lr", lambda value: value == "auto" or value > 0, "above 0")
        _require(
            self, "crop_scale", lambda value: 0 < value[0] <= value[1] <= 1, "two shares of the area, 0 < a <= b <= 1"
        )
        for name in ("mixup", "cutmix", "color_jitter", "momentum", "min_lr_ratio"):
            _require(self, name, lambda value: value >= 0, "at least 0")
        for name in ("clip_grad", "checkpoint_steps", "max_train_images"):
            _require(self, name, lambda value: value is None or value > 0, "above 0")
        for name in self.loggers:
            if name != "tensorboard" and importlib.util.find_spec(name) is None:
                raise MissingExtraError(name, "loggers", f"The {name} logger")
        if self.resume and self.out == "auto":
            raise UserError("--resume continues the run in a given folder; name that folder with --out.")

    def settled(self) -> Self:
        """The same with every "auto" decided that depends on nothing but the task."""
        if self.batch_size != "auto":
            return self
        return dataclasses.replace(self, batch_size=128 if self.task == "classification" else 8)

    def _refuse_options_of_another_task(self) -> None:
        for task, names in ONLY_FOR.items():
            if task == self.task:
                continue
            for option in dataclasses.fields(self):
                if option.name in names and getattr(self, option.name) not in (option.default, []):
                    raise UserError(
                        f"--{option.name} is for --task {task}; this run's task is {self.task}. Leave it out."
                    )


@dataclass(kw_only=True)
class SynthesizeRecipe:
    """Make images for a teacher, without any of its data.

    Args:
        teacher: the model that the images are made for, named as for `limbeck distill`.
        task: what the teacher does.
        method: how, or several ways joined with +: "invert(iterations=500, share=0.7)+one_image(image='photo.jpg', share=0.3)".
            `limbeck methods` lists them. auto is scenes for detection; for classification fast for networks with BatchNorm
            and no attention, else invert.
        count: images in all.
        out: the folder to write; auto makes a new one under synthetic/.
        resume: go on with the images in --out where an earlier call was stopped; the result equals that of an uninterrupted one.
        size: side of the images in pixels; auto is the teacher's input.
        teacher_size: [classification] side in pixels of the teacher's input; auto is the model's own.
        batch_size: images made together; auto is 64, for detection 8.
        student: [classification] a finished network to disagree with, for ways that can use one; a model's name.
        second: [classification] another network of the same classes whose agreement with the teacher is measured and noted
            in the data card; a model's name.
        statistics: [classification] a file of the teacher's token moments, from `limbeck statistics`; auto is the one in the
            teacher's run folder, if there is one; none leaves it alone.
        image_format: of the files; both are lossless.
        accelerator: where to compute.
        seed: of everything random.
    """

    teacher: str
    task: Task = "classification"
    method: str = "auto"
    count: int = 1000
    out: str = "auto"
    resume: bool = False
    size: int | Auto = "auto"
    teacher_size: int | Auto = "auto"
    batch_size: int | Auto = "auto"
    student: str | None = None
    second: str | None = None
    statistics: str = "auto"
    image_format: Literal["png", "webp"] = "png"
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    seed: int = 0

    def check(self) -> None:
        """Refuse impossible values before anything heavy is loaded.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        _require(self, "count", lambda value: value >= 1, "at least 1")
        _require(self, "batch_size", lambda value: value == "auto" or value >= 1, "at least 1")
        _require(self, "size", lambda value: value == "auto" or value >= 8, "at least 8 pixels")
        _require(self, "teacher_size", lambda value: value == "auto" or value >= 8, "at least 8 pixels")
        if self.resume and self.out == "auto":
            raise UserError("--resume continues the images in a given folder; name that folder with --out.")
        if self.task == "detection":
            for option in dataclasses.fields(self):
                if option.name in ("teacher_size", "student", "second", "statistics") and (
                    getattr(self, option.name) != option.default
                ):
                    raise UserError(
                        f"--{option.name} is for --task classification; here the task is detection. Leave it out."
                    )


@dataclass(kw_only=True)
class TrainRecipe(TrainingRecipe):
    """Train one network without a teacher, from scratch or from given weights.

    Args:
        model: what to train: a timm name, torchvision:NAME, hf:NAME-OR-FOLDER, limbeck:NAME, a run's folder or
            package.module:factory; NAME(option=value) gives options, NAME@weights.safetensors loads local weights.
        pretrained: start from the library's weights; auto does so for names with a tag (deit3_small_patch16_224.fb_in1k),
            hub names and local weights, and starts from random numbers otherwise.
        input_size: [classification] side in pixels of the model's input; auto is the model's own.
    """

    model: str
    pretrained: bool | Auto = "auto"
    input_size: int | Auto = "auto"


@dataclass(kw_only=True)
class DistillRecipe(TrainingRecipe):
    """Train a student from a teacher.

    Args:
        teacher: the strong model: a timm name, torchvision:NAME, hf:NAME-OR-FOLDER, limbeck:NAME, a run's folder or
            package.module:factory; NAME(option=value) gives options, NAME@weights.safetensors loads local weights. "NAME + NAME"
            are several [classification]: unic reads the features of each, methods on logits their mean probabilities. none is for
            methods by which a student learns from labels and itself (uskd).
        student: the small model, named in the same ways.
        method: none, or distillation losses joined with +, each with its options in parentheses:
            "vitkd+nkd(gamma=1.0, weight=0.5)". `limbeck methods` lists them. auto is kd for classification; for detection it
            is query_kd between two networks of object queries, mask_kd between two of mask queries, and pkd otherwise.
        task_weight: weight of the supervised loss; auto is what the methods were published with (0 for unlabelled images).
        balance: shares of the pull on the student that terms keep whatever their weights: "kd=0.5,vitkd=0.3". The pull of a term
            is the norm of its weighted gradient. The supervised loss and terms left out keep their weights and have the rest;
            where there is no rest, shares are relative to each other. Warm-up still multiplies.
        student_pretrained: start the student from its library's weights; auto does so for names with a tag
            (deit_tiny_patch16_224.fb_in1k), hub names and local weights.
        student_size: [classification] side in pixels of the student's input; auto is the model's own.
        teacher_size: [classification] the same for the teacher.
        teacher_accuracy: the accuracy (for detection the AP of boxes), 0 to 1, that the teacher should reach on the
            validation images; the run stops when it is more than 0.05 below.
        trust_teacher: go on although the teacher looks implausible.
        pseudo_score: [detection] for unlabelled images: the teacher's detections with at least this score are learned as
            objects.
        synthesis: [data none] how images are made, or several ways joined with +, each with its options in parentheses:
            "invert(iterations=500, share=0.5)+one_image(image='photo.jpg', share=0.5)". `limbeck methods` lists them.
            auto is scenes for detection; for classification fast for networks with BatchNorm and no attention, else invert.
        synthetic_images: [data none] images that are made before training; of ways that learn together with the student, images
            that an epoch passes over. auto is 10000, for detection 500.
        synthesis_batch_size: [data none] images made together; auto is 64, for generators that go on during training 256, for
            detection 8.
        statistics: [data none] a file of the teacher's token moments, from `limbeck statistics`; auto is the one in the
            teacher's run folder, if there is one; none leaves it alone.
    """

    teacher: str
    student: str
    method: str = "auto"
    task_weight: float | Auto = "auto"
    balance: str | None = None
    student_pretrained: bool | Auto = "auto"
    student_size: int | Auto = "auto"
    teacher_size: int | Auto = "auto"
    teacher_accuracy: float | None = None
    trust_teacher: bool = False
    pseudo_score: float = 0.4
    synthesis: str = "auto"
    synthetic_images: int | Auto = "auto"
    synthesis_batch_size: int | Auto = "auto"
    statistics: str = "auto"

    def check(self) -> None:
        """As for any training; the expected accuracy is a share, not per cent; options on making images need data none."""
        super().check()
        if self.teacher == NO_TEACHER:
            self._refuse_what_needs_a_teacher()
        for name in ("synthetic_images", "synthesis_batch_size"):
            _require(self, name, lambda value: value == "auto" or value >= 1, "at least 1")
        if self.data != NO_DATA:
            for option in dataclasses.fields(self):
                if option.name in ONLY_WITHOUT_DATA and getattr(self, option.name) != option.default:
                    raise UserError(f"--{option.name} is for --data none, and the data is {self.data}. Leave one out.")
        elif self.max_train_images is not None:
            raise UserError("--max_train_images is for data; how many images are made is --synthetic_images.")
        _require(self, "teacher_accuracy", lambda value: value is None or 0 < value <= 1, "a share between 0 and 1")
        _require(self, "task_weight", lambda value: value == "auto" or value >= 0, "at least 0")
        _require(self, "pseudo_score", lambda value: 0 < value < 1, "between 0 and 1, both excluded")

    def _refuse_what_needs_a_teacher(self) -> None:
        if self.task == "detection":
            raise UserError(
                "--teacher none is for --task classification: no method for detectors does without a teacher. "
                "Name one, or train the detector alone with limbeck train."
            )
        if self.data == NO_DATA:
            raise UserError(
                "--teacher none and --data none leave nothing to learn from: images are made for a teacher. "
                "Give labelled images with --data, or a teacher."
            )
        for option in dataclasses.fields(self):
            if option.name in ONLY_WITH_TEACHER and getattr(self, option.name) != option.default:
                raise UserError(f"--{option.name} says something of the teacher, and --teacher is none. Leave it out.")

    def settled(self) -> Self:
        """As for any training; and the method of a classifier."""
        recipe = super().settled()
        if recipe.method == "auto" and recipe.task == "classification":
            recipe = dataclasses.replace(recipe, method="kd")
        if recipe.data == NO_DATA and recipe.synthetic_images == "auto":
            recipe = dataclasses.replace(recipe, synthetic_images=10_000 if recipe.task == "classification" else 500)
        return recipe


def from_recipe(recipe_class: Callable[P, RecipeT]) -> Callable[[Callable[[RecipeT], R]], Callable[P, R]]:
    """Turn a function of a recipe into the same function of the recipe's fields, with their types and documentation."""

    def decorate(function: Callable[[RecipeT], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def verb(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(recipe_class(*args, **kwargs))

        result_annotation = function.__annotations__.get("return", inspect.Signature.empty)
        verb.__signature__ = inspect.signature(recipe_class).replace(return_annotation=result_annotation)  # type: ignore[attr-defined]
        verb.__doc__ = f"{function.__doc__}\n\n{inspect.getdoc(recipe_class)}"
        verb.recipe_class = recipe_class  # type: ignore[attr-defined]
        return verb

    return decorate


def resolve_training(recipe: TrainingRecipe, updates_images: int) -> dict[str, Any]:
    """The value of every "auto" that depends on numbers only.

    Args:
        recipe: what the user asked for.
        updates_images: images per optimiser update, over all devices and accumulated batches.

    Returns:
        Field name to value, for the fields that are "auto".
    """
    optimizer, epochs = recipe.optimizer, recipe.epochs
    rules: dict[str, Callable[[], Any]] = {
        "lr": lambda: {
            "adamw": 1e-3 * (updates_images / 512) ** 0.5,
            "lamb": 5e-3 * (updates_images / 2048) ** 0.5,
            "sgd": 0.1 * updates_images / 256,
        }[optimizer],
        "weight_decay": lambda: {"adamw": 0.05, "lamb": 0.02, "sgd": 5e-4}[optimizer],
        "decay_norms": lambda: optimizer == "sgd",
        "warmup_epochs": lambda: 0.0 if optimizer == "sgd" else min(20.0, 0.05 * epochs),
        "step_epochs": lambda: [0.625 * epochs, 0.75 * epochs, 0.875 * epochs],
    }
    return {name: rule() for name, rule in rules.items() if getattr(recipe, name) == "auto"}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines that name each field in which two recipes differ, as `name: old -> new`."""
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)
    ]


def as_plain(recipe: Any) -> dict[str, Any]:
    """A recipe as plain values for YAML, tuples as lists; options that mean nothing to this run left out."""
    foreign = [name for task, names in ONLY_FOR.items() if task != recipe.task for name in names]
    foreign += ONLY_WITHOUT_DATA if recipe.data != NO_DATA else ()
    foreign += ONLY_WITH_TEACHER if getattr(recipe, "teacher", None) == NO_TEACHER else ()
    values = dataclasses.asdict(recipe).items()
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values if key not in foreign}


def defaults_of(recipe: Any) -> dict[str, Any]:
    """The default of every option that has one, as plain values."""
    found = {}
    for option in dataclasses.fields(recipe):
        if option.default is not dataclasses.MISSING:
            found[option.name] = option.default
        elif option.default_factory is not dataclasses.MISSING:
            found[option.name] = option.default_factory()
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def _require(recipe: Any, name: str, holds: Callable[[Any], bool], expectation: str) -> None:
    value = getattr(recipe, name)
    if not holds(value):
        raise UserError(f"--{name} is {value!r}; it must be {expectation}.")
