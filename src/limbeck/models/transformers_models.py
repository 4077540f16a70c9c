"""Any image classifier of transformers, from its hub or a local folder, read with `output_hidden_states`.

Token sequences (B, N, D) become maps on the patch grid, the N - h*w tokens before it stripped (levels of kind
`block`); pyramids keep the last map of each stride from 4 on (`stage`). How a family makes its pooled vector is not
part of the library's interface: a dry run records what enters the classifier and the rule that gives the same vector
is kept; where none does, the library's own pass gives the logits. Code from the hub is never run.
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import MissingExtraError, UserError
from limbeck.models.base import Provenance, VisionModel
from limbeck.models.weights import is_unreachable, weights_hash
from limbeck.outputs import Level, ModelFacts, Outputs, Request

try:
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
except ImportError as missing:
    raise MissingExtraError("transformers", "hf", "A model named hf:...") from missing

Pooling = Callable[[Any, int], Tensor]

_POOLINGS: dict[str, Pooling] = {
    "pooler": lambda out, prefix: out.pooler_output.flatten(1),
    "class_token": lambda out, prefix: out.last_hidden_state[:, 0],
    "mean": lambda out, prefix: _mean(out.last_hidden_state),
    "patch_mean": lambda out, prefix: out.last_hidden_state[:, prefix:].mean(1),
    "class_and_patch_mean": lambda out, prefix: torch.cat(
        [out.last_hidden_state[:, 0], out.last_hidden_state[:, prefix:].mean(1)], 1
    ),
    "class_and_rest_mean": lambda out, prefix: torch.cat(
        [out.last_hidden_state[:, 0], out.last_hidden_state[:, 1:].mean(1)], 1
    ),
}
_CLASS_TOKENS = ("cls_token", "class_embedding")
"""What the library calls the parameter in its several families."""


def create(
    name: str,
    *,
    text: str,
    num_classes: int | None = None,
    pretrained: bool = True,
    input_size: tuple[int, int] | None = None,
    drop_path: float = 0.0,
) -> "TransformersModel":
    """A transformers image classifier; arguments and errors as for `timm_models.create`.

    `name` is a hub name or a local folder.
    """
    local = Path(name).is_dir()
    offline = not local and is_unreachable("huggingface.co")
    options = {"trust_remote_code": False, "local_files_only": local or offline}
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{text} could not be opened: {first_line(error)} Give a folder saved by transformers, as hf:FOLDER."
        ) from error
    published = config.num_labels
    if num_classes is not None and num_classes != published:
        config.num_labels = num_classes
    notes = set_drop_path(config, text, drop_path)
    if not pretrained:
        return from_config(
            config, text=text, preparation=_preparation(name, config, options, input_size, notes), notes=notes
        )
    try:
        network, info = AutoModelForImageClassification.from_pretrained(
            name,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=config.num_labels != published,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"The weights of {text} could not be opened: {first_line(error)} They must be safetensors; "
            "save them again with save_pretrained where they are older, or connect to the network once."
        ) from error
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        notes.append(f"{len(info['missing_keys'])} tensors are not in the weights and freshly initialised: {some}")
    if config.num_labels != published:
        notes.append(f"head replaced: {published} -> {num_classes} classes, freshly initialised")
    preparation = _preparation(name, config, options, input_size, notes)
    model = TransformersModel(network, text=text, notes=notes, **preparation)
    model.provenance = Provenance(licence_of(name), f"transformers: {name}", weights_hash(model), notes)
    return model


def from_config(
    config: Any, *, text: str, preparation: dict[str, Any], notes: list[str] | None = None
) -> "TransformersModel":
    """A transformers image classifier with random weights.

    Args:
        config: the library's configuration object, or the plain values of one.
        text: the name the user gave.
        preparation: `mean`, `std`, `interpolation` and `input_size`.
        notes: for the provenance.
    """
    if isinstance(config, dict):
        config = AutoConfig.for_model(**config)
    if not config.architectures:
        named = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type, ())
        config.architectures = [named if isinstance(named, str) else named[0]] if named else None
    network = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    return TransformersModel(network, text=text, notes=notes or [], **preparation)


class TransformersModel(VisionModel):
    """A transformers network behind our interface.

    Args:
        network: the bare network.
        text: the name the user gave.
        mean, std, interpolation, input_size: how images are prepared for it.
        notes: for the provenance.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        text: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: str,
        input_size: tuple[int, int],
        notes: list[str],
    ) -> None:
        super().__init__(tuple(mean), tuple(std), interpolation)
        self.network: Any = network
        self.provenance = Provenance(notes=notes, licence="none attached (random initialisation)")
        height, width = input_size
        own = _pair(getattr(network.config, "image_size", None))
        # Position embeddings are stretched inside the pass, so that the weights keep their shape.
        can_stretch = own is not None and "interpolate_pos_encoding" in _forward_arguments(self._base)
        self._extra = {"interpolate_pos_encoding": True} if can_stretch and own != (height, width) else {}
        try:
            self.facts = self._find_facts(text, (height, width))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(f"{text} cannot take images of {height}x{width} pixels: {first_line(error)}") from error
        finally:
            network.train()
        self.rebuild = {
            "library": "transformers",
            "config": json.loads(network.config.to_json_string(use_diff=False)),  # type: ignore[operator, union-attr]
            "num_classes": self.facts.num_classes,
            "input_size": [height, width],
            "mean": list(mean),
            "std": list(std),
            "interpolation": interpolation,
        }

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        """One pass over (B, 3, *input_size) inputs; only the requested maps are kept.

        Raises:
            KeyError: a requested level is not one of this network's.
        """
        for name in request.levels:
            self.facts.level(name)
        if self._pooling is None:
            if request.pooled or request.final:
                raise UserError(
                    f"{self.facts.name} does not show its pooled vector and final map; use methods on logits or levels."
                )
            whole = self.network(
                pixel_values=inputs, output_hidden_states=bool(request.levels), return_dict=True, **self._extra
            )
            return Outputs(
                whole.logits,
                maps={name: self._map(whole, name) for name in request.levels},
                class_tokens=self._class_tokens(whole, request),
                class_logits=whole.cls_logits if request.heads and self.facts.has_distillation_token else None,
                distilled_logits=whole.distillation_logits
                if request.heads and self.facts.has_distillation_token
                else None,
            )
        base = self._base(
            pixel_values=inputs, output_hidden_states=bool(request.levels), return_dict=True, **self._extra
        )
        pooled = _POOLINGS[self._pooling](base, self._prefix_tokens)
        dropout = getattr(self.network, "dropout", None)
        logits = self.network.classifier(pooled if dropout is None else dropout(pooled))
        final = None
        if request.final and self.facts.final is not None:
            final = self._as_map(base.last_hidden_state)
        return Outputs(
            logits,
            pooled if request.pooled else None,
            {name: self._map(base, name) for name in request.levels},
            final,
            self._class_tokens(base, request),
        )

    @property
    def _base(self) -> Any:
        return getattr(self.network, self.network.base_model_prefix)

    def _map(self, output: Any, name: str) -> Tensor:
        return self._as_map(_states(output)[self._indices[name]])

    def _class_tokens(self, output: Any, request: Request) -> dict[str, Tensor]:
        if not (request.class_tokens and self._has_class_token):
            return {}
        return {name: _states(output)[self._indices[name]][:, 0] for name in request.levels}

    def _as_map(self, value: Tensor) -> Tensor:
        if value.ndim == 4:
            return value
        tokens = value[:, self._prefix_tokens :]
        return tokens.transpose(1, 2).reshape(value.shape[0], -1, *self._grid)

    @torch.no_grad()
    def _find_facts(self, text: str, size: tuple[int, int]) -> ModelFacts:
        network = self.network.eval()
        inputs = torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(0))
        entered: list[Tensor] = []
        head = getattr(network, "classifier", None)
        handle = (
            head.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
            if isinstance(head, nn.Module)
            else None
        )
        try:
            whole = network(pixel_values=inputs, output_hidden_states=True, return_dict=True, **self._extra)
        finally:
            if handle is not None:
                handle.remove()
        base = self._base(pixel_values=inputs, output_hidden_states=True, return_dict=True, **self._extra)
        last = base.last_hidden_state
        self._prefix_tokens = 0
        self._grid = (0, 0)
        levels, self._indices = self._find_levels(_states(base), last, size)
        self._has_class_token = (
            bool(levels)
            and levels[0].kind == "block"
            and self._prefix_tokens > 0
            and any(name.rpartition(".")[2] in _CLASS_TOKENS for name, _ in network.named_parameters())
        )
        vector = entered[0].flatten(1) if entered and entered[0].ndim in (2, 4) else None
        self._pooling = next(
            (name for name in _POOLINGS if vector is not None and _gives(name, base, self._prefix_tokens, vector)), None
        )
        final = None
        if self._pooling is None:
            self.provenance.notes.append("the pooled vector and the final map cannot be read from this model")
        elif last.ndim == 4 or self._grid != (0, 0):
            final = _level("final", self._as_map(last), size, "stage" if last.ndim == 4 else "block")
        pooled_channels = vector.shape[1] if vector is not None else last.shape[1 if last.ndim == 4 else -1]
        # DeiT and LeViT "with teacher"; their two classifiers have no common pooled vector.
        heads = self._pooling is None and "distillation_logits" in whole
        return ModelFacts(
            text, whole.logits.shape[-1], size, levels, pooled_channels, final, has_distillation_token=heads
        )

    def _find_levels(
        self, states: tuple[Tensor, ...], last: Tensor, size: tuple[int, int]
    ) -> tuple[tuple[Level, ...], dict[str, int]]:
        if states and states[-1].ndim == 3:
            patch = _pair(getattr(self.network.config, "patch_size", None))
            grid = (size[0] // patch[0], size[1] // patch[1]) if patch else (0, 0)
            prefix = states[-1].shape[1] - grid[0] * grid[1]
            if patch is None or prefix < 0 or len({state.shape for state in states}) > 1:
                self.provenance.notes.append("no level can be read: its hidden states are not tokens of one patch grid")
                return (), {}
            self._grid, self._prefix_tokens = grid, prefix
            names = [f"blocks.{number}" for number in range(len(states) - 1)]
            levels = tuple(
                _level(name, self._as_map(state), size, "block") for name, state in zip(names, states[1:], strict=True)
            )
            return levels, {name: number + 1 for number, name in enumerate(names)}
        if last.ndim == 3:
            self._grid = (states[-1].shape[2], states[-1].shape[3])
            self._prefix_tokens = last.shape[1] - self._grid[0] * self._grid[1]
        # Swin's first state is its patch embedding, and the others follow the merging at each stage's end.
        first = 1 if last.ndim == 3 else 0
        at_stride: dict[int, int] = {}
        for number, state in enumerate(states[first:], first):
            stride = round(size[0] / state.shape[2])
            if stride >= 4:
                at_stride[stride] = number
        indices = {f"stages.{position}": number for position, number in enumerate(at_stride.values())}
        return tuple(_level(name, states[number], size, "stage") for name, number in indices.items()), indices


def class_names(name: str) -> tuple[str, ...] | None:
    """The class names in a local or already fetched configuration; None where they are only placeholders."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError):
        return None
    labels = tuple(str(config.id2label[number]) for number in sorted(config.id2label))
    return None if all(label == f"LABEL_{number}" for number, label in enumerate(labels)) else labels


def _states(output: Any) -> tuple[Tensor, ...]:
    """Hidden states as maps where the library has them so."""
    reshaped = getattr(output, "reshaped_hidden_states", None)
    return tuple(reshaped if reshaped is not None else output.hidden_states)


def _mean(state: Tensor) -> Tensor:
    return state.mean((2, 3)) if state.ndim == 4 else state.mean(1)


def _gives(name: str, output: Any, prefix: int, expected: Tensor) -> bool:
    try:
        found = _POOLINGS[name](output, prefix)
    except (AttributeError, IndexError, RuntimeError):
        return False
    return found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)


def _level(name: str, map_: Tensor, size: tuple[int, int], kind: Any) -> Level:
    _, channels, height, width = map_.shape
    return Level(name, channels, round(size[0] / height), (height, width), kind)


def _preparation(
    name: str, config: Any, options: dict[str, Any], input_size: tuple[int, int] | None, notes: list[str]
) -> dict[str, Any]:
    """Mean, std, interpolation and size from the processor's JSON file; the processor itself is not made."""
    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(name, local_files_only=options["local_files_only"])
    except (OSError, ValueError):
        values = {}
        notes.append("no preprocessor_config.json: ImageNet mean and std are assumed")
    size = values.get("crop_size") if values.get("do_center_crop") else None
    size = size or values.get("size") or getattr(config, "image_size", None) or 224
    normalised = values.get("do_normalize", True)
    return {
        "mean": tuple(values.get("image_mean") or (0.485, 0.456, 0.406)) if normalised else (0.0, 0.0, 0.0),
        "std": tuple(values.get("image_std") or (0.229, 0.224, 0.225)) if normalised else (1.0, 1.0, 1.0),
        "interpolation": "bilinear" if values.get("resample", 3) == 2 else "bicubic",
        "input_size": input_size or _pair(size) or (224, 224),
    }


def _pair(size: Any) -> tuple[int, int] | None:
    """Height and width from the several ways in which the library's files write a size."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and size:
        return int(size[0]), int(size[-1])
    if isinstance(size, dict):
        if "height" in size:
            return int(size["height"]), int(size["width"])
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    return None


def _forward_arguments(module: nn.Module) -> set[str]:

    return set(inspect.signature(module.forward).parameters)


def set_drop_path(config: Any, text: str, drop_path: float) -> list[str]:
    """Put stochastic depth into a configuration; returns a note for the user where that has no effect."""
    if hasattr(config, "drop_path_rate"):
        config.drop_path_rate = drop_path
        return []
    return [f"drop_path has no effect: {text} has no stochastic depth"] if drop_path else []


def licence_of(name: str) -> str:
    """The licence in the front matter of a model's README, where it is at hand."""

    from huggingface_hub import try_to_load_from_cache

    found = Path(name) / "README.md" if Path(name).is_dir() else try_to_load_from_cache(name, "README.md")
    if not isinstance(found, str | Path) or not Path(found).is_file():
        return "unknown"
    lines = Path(found).read_text(encoding="utf-8", errors="replace").splitlines()
    head = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    return next(
        (line.partition(":")[2].strip().strip("\"'") for line in head if line.startswith("license:")), "unknown"
    )


def first_line(error: Exception) -> str:
    """What an error of the library says, without what it adds for developers."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
