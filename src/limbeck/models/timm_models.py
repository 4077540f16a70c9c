"""Any classifier of timm, read in one pass with `forward_intermediates`: no hooks, and it compiles whole.

Levels are found by a dry run when the model is made. A model whose maps all have one grid and width (ViTs, CaiT,
EVA, DINOv2/v3, mixers) has levels of kind `block`; the others (ResNets, ConvNeXt, Swin, ...) have `stage`s, a stem
without stages of its own left out. Maps are taken before the final norm; prefix tokens are stripped. CaiT's maps are
those of its self-attention blocks: its class-attention blocks change the class token only.

Of networks with a distillation head (DeiT's distilled ones, LeViT, EfficientFormer) the two heads can be read apart; the
logits are their mean, as in timm.

`final` is the map that timm's own `forward_features` ends with: after the final norm where the model has one
before its pooling, the last map itself where it norms after pooling (ConvNeXt, EVA with `fc_norm`) or not at all.
"""

import difflib
import inspect
import re
import sys
from typing import Any, Literal

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from timm.models import get_arch_name
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.base import Provenance, VisionModel
from limbeck.models.timm_heads import head_input, two_heads
from limbeck.models.timm_options import OPTION_ERRORS, bad_options, check_options, unexpected_argument
from limbeck.models.weights import State, is_unreachable, load_weights, weights_hash
from limbeck.outputs import Level, LevelKind, ModelFacts, Outputs, Request

Layout = Literal["nchw", "nhwc", "tokens"]

_STEM = re.compile(r"(features\.)?(stem|conv_stem|conv1|bn1|act1|norm0)(\.|$)")


def create(
    name: str,
    *,
    text: str,
    num_classes: int | None = None,
    pretrained: bool = True,
    input_size: tuple[int, int] | None = None,
    drop_path: float = 0.0,
    options: dict[str, Any] | None = None,
) -> "TimmModel":
    """A timm classifier.

    Args:
        name: timm's name, with or without a tag.
        text: the name the user gave, for facts and messages.
        num_classes: another number of classes than the weights', for a fresh head.
        pretrained: with timm's weights for this name.
        input_size: (height, width); given to the network where it is built for one size.
        drop_path: stochastic depth of the deepest block.
        options: further arguments of the network, such as {"depth": 6}; plain values.

    Raises:
        UserError: unknown name or tag, no weights, no network to fetch them over, an impossible input size, or an
            option that is unknown, belongs elsewhere, or with which the network or its weights cannot be.
    """
    options = options or {}
    check_options(options, text)
    cfg = _published_cfg(name)
    overlay = _local_weights(cfg, text) if pretrained else None
    settings: dict[str, Any] = {}
    if num_classes is not None:
        settings["num_classes"] = num_classes
    if drop_path:
        settings["drop_path_rate"] = drop_path
    if input_size is not None and (cfg is None or tuple(cfg.input_size[-2:]) != input_size):
        settings["img_size"] = input_size
    network, notes = make_network(name, text, settings, options, pretrained=pretrained and not options, overlay=overlay)
    if pretrained and options:
        notes += _load_published(network, name, text, num_classes, overlay)
    elif pretrained and num_classes is not None:
        default_classes = network.pretrained_cfg.get("num_classes")
        if default_classes and num_classes != default_classes:
            notes.append(f"head replaced: {default_classes} -> {num_classes} classes, freshly initialised")
    try:
        return TimmModel(
            network, name, text=text, input_size=input_size, pretrained=pretrained, notes=notes, options=options
        )
    except UserError:
        raise
    except OPTION_ERRORS as error:
        if not options:
            raise
        raise bad_options(name, text, options, error) from error


def make_network(
    name: str,
    text: str,
    settings: dict[str, Any],
    options: dict[str, Any],
    *,
    pretrained: bool = False,
    overlay: dict[str, Any] | None = None,
) -> tuple[Any, list[str]]:
    """A bare network of timm's, without our interface.

    Args:
        name: timm's name, with or without a tag.
        text: the name the user gave, for messages.
        settings: Limbeck's own, under timm's names; an `img_size` or `drop_path_rate` that the network does not know is
            taken out.
        options: those of the model's name.
        pretrained: with timm's weights for this name.
        overlay: of timm's `pretrained_cfg`.

    Returns:
        The network, and notes on what has no effect on it.

    Raises:
        UserError: an option, the network or its weights cannot be.
    """
    notes: list[str] = []
    while True:
        try:
            made = timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **settings, **options)
            return made, notes
        except UserError:
            raise
        except (OSError, *OPTION_ERRORS) as error:
            unknown = unexpected_argument(error)
            if unknown in ("img_size", "drop_path_rate") and unknown in settings:
                del settings[unknown]
                if unknown == "drop_path_rate":
                    notes.append(f"drop_path has no effect: {name} has no stochastic depth")
                continue
            if pretrained and isinstance(error, OSError | RuntimeError):
                raise _not_fetched(text, str(error).splitlines()[0]) from error
            if options:
                raise bad_options(name, text, options, error) from error
            if isinstance(error, OSError | RuntimeError):
                raise UserError(f"timm could not make {text}: {str(error).splitlines()[0]}") from error
            raise


class TimmModel(VisionModel):
    """A timm network behind our interface.

    Args:
        network: the bare network.
        name: timm's name of it.
        text: the name the user gave.
        input_size: (height, width) to resize to; None is the network's own.
        pretrained: whether its weights are those that timm publishes under its name.
        notes: for the provenance.
        options: those that the network was made with beside Limbeck's own.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        *,
        text: str,
        input_size: tuple[int, int] | None,
        pretrained: bool,
        notes: list[str],
        options: dict[str, Any] | None = None,
    ) -> None:
        cfg: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}
        interpolation = cfg.get("interpolation")
        super().__init__(
            tuple(cfg.get("mean") or (0.485, 0.456, 0.406)),
            tuple(cfg.get("std") or (0.229, 0.224, 0.225)),
            interpolation if interpolation in ("bilinear", "bicubic") else "bicubic",
        )
        self.network: Any = network
        height, width = input_size or tuple(cfg.get("input_size", (3, 224, 224))[-2:])
        self.provenance = Provenance(notes=notes, licence="none attached (random initialisation)")
        self.facts = self._find_facts(text, (height, width), options or {})
        if pretrained:
            self.provenance.licence = cfg.get("license") or "unknown"
            self.provenance.source = f"timm: {cfg.get('hf_hub_id') or cfg.get('url') or name}"
            self.provenance.weights_sha256 = weights_hash(self)
        self.rebuild = {
            "library": "timm",
            "name": name,
            "num_classes": self.facts.num_classes,
            "input_size": [height, width],
        } | ({"options": options} if options else {})

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        """One pass over (B, 3, *input_size) inputs; only the requested maps are kept.

        Raises:
            KeyError: a requested level is not one of this network's.
        """
        maps: dict[str, Tensor] = {}
        class_tokens: dict[str, Tensor] = {}
        if request.levels:
            indices = sorted(self._index(name) for name in request.levels)
            places = {name: indices.index(self._index(name)) for name in request.levels}
            options = {"return_prefix_tokens": True} if request.class_tokens and self._has_class_token else {}
            features, found = self.network.forward_intermediates(
                inputs, indices=indices, norm=False, output_fmt="NCHW", **options
            )
            if options:
                class_tokens = {name: found[place][1][:, 0] for name, place in places.items()}
                found = [map_ for map_, _ in found]
            maps = {name: found[place] for name, place in places.items()}
        else:
            features = self.network.forward_features(inputs)
        pooled = self.network.forward_head(features, pre_logits=True) if request.pooled else None
        class_logits = distilled_logits = None
        if request.heads and self._head_input is not None:
            class_logits, distilled_logits = two_heads(self.network, features, self._head_input)
            logits = (class_logits + distilled_logits) / 2
        elif pooled is not None and self._pooled_is_classified:
            logits = self.network.get_classifier()(pooled)
        else:
            logits = self.network.forward_head(features)
        final = self._final_map(features) if request.final else None
        return Outputs(
            logits, pooled, maps, final, class_tokens, class_logits=class_logits, distilled_logits=distilled_logits
        )

    def convert(self, state: State) -> State:
        """Bring older or differently sized weights of this architecture to its names and shapes, as timm does."""
        return _convert(self.network, state)

    def _index(self, name: str) -> int:
        if name not in self._indices:
            self.facts.level(name)
        return self._indices[name]

    def _final_map(self, features: Tensor) -> Tensor | None:
        final = self.facts.final
        if final is None:
            return None
        if self._final_layout == "tokens":
            tokens = features[:, self._prefix_tokens :]
            return tokens.transpose(1, 2).reshape(tokens.shape[0], final.channels, *final.grid)
        return features.permute(0, 3, 1, 2) if self._final_layout == "nhwc" else features

    @torch.no_grad()
    def _find_facts(self, text: str, input_size: tuple[int, int], options: dict[str, Any]) -> ModelFacts:
        """Sizes of everything, by one pass over noise; no global random state is touched."""
        network = self.network.eval()
        inputs = torch.rand((1, 3, *input_size), generator=torch.Generator().manual_seed(0))
        try:
            features, maps = self._dry_run(inputs)
            pooled = network.forward_head(features, pre_logits=True)
            logits = network.forward_head(features)
        except (RuntimeError, AssertionError, ValueError) as error:
            also = f" Or it is one of its options: {', '.join(options)}." if options else ""
            raise UserError(
                f"{text} cannot take images of {input_size[0]}x{input_size[1]} pixels ({str(error).splitlines()[0]}). "
                f"Leave the input size to the model, or choose a multiple of its patches or windows.{also}"
            ) from error
        finally:
            network.train()
        if logits.ndim != 2:
            raise UserError(
                f"{text} returns {tuple(logits.shape[1:])} numbers for an image, and a classifier returns one for each "
                "class. Leave its pooling to the model."
            )
        levels, self._indices = _levels(network, maps, input_size)
        self._has_class_token = _has_class_token(network)
        final = self._find_final(features, maps, input_size)
        # With two heads, auxiliary heads or dropout between, the head runs separately: logits stay the library's.
        classifier = network.get_classifier()
        self._pooled_is_classified = (
            isinstance(classifier, nn.Module)
            and not isinstance(classifier, nn.ModuleList)
            and not getattr(network, "drop_rate", 0.0)
            # Normalising classifiers (RepViT's) need more than one image unless they are in evaluation mode.
            and classifier.eval()(pooled).shape == logits.shape
            and torch.allclose(classifier(pooled), logits, atol=1e-6)
        )
        classifier.train() if isinstance(classifier, nn.Module) else None
        self._head_input = head_input(network, features, pooled)
        return ModelFacts(
            text,
            logits.shape[-1],
            input_size,
            levels,
            pooled.shape[-1],
            final,
            has_distillation_token=self._head_input is not None,
        )

    def _dry_run(self, inputs: Tensor) -> tuple[Any, list[Tensor]]:
        if not hasattr(self.network, "forward_intermediates"):
            self.provenance.notes.append("no level can be read: timm offers no forward_intermediates for this model")
            return self.network.forward_features(inputs), []
        return self.network.forward_intermediates(inputs, norm=False, output_fmt="NCHW")  # type: ignore[no-any-return]

    def _find_final(self, features: Any, maps: list[Tensor], input_size: tuple[int, int]) -> Level | None:
        self._final_layout: Layout = "nchw"
        self._prefix_tokens = 0
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            return None
        if features.ndim == 4:
            if getattr(self.network, "output_fmt", "NCHW") == "NHWC":
                self._final_layout = "nhwc"
                features = features.permute(0, 3, 1, 2)
            return _level("final", features, input_size, "stage")
        if not maps or features.shape[1] < maps[-1].shape[-2] * maps[-1].shape[-1]:
            return None
        self._final_layout = "tokens"
        height, width = maps[-1].shape[-2:]
        self._prefix_tokens = features.shape[1] - height * width
        shaped = features[:, self._prefix_tokens :].transpose(1, 2).reshape(1, -1, height, width)
        return _level("final", shaped, input_size, "block" if _isotropic(maps) else "stage")


def _load_published(
    network: Any, name: str, text: str, num_classes: int | None, overlay: dict[str, Any] | None
) -> list[str]:
    """Put timm's weights into a network made with options; notes on what was done.

    timm itself forgives tensors that are missing or left over as soon as the head is replaced, so that a deeper network
    would start half random without a word.
    """
    published, _ = make_network(name, text, {}, {}, pretrained=True, overlay=overlay)
    try:
        return load_weights(
            network,
            f"timm:{name}",
            state=published.state_dict(),
            new_head=num_classes,
            convert=lambda state: _convert(network, state),
        )
    except UserError as error:
        raise UserError(
            f"The published weights belong to {name} as it is, and the options of {text} make it another network. Start it "
            f"from random weights (pretrained false, or the name without a tag), or leave the options out. {error}"
        ) from error


def _convert(network: Any, state: State) -> State:
    converter = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    return dict(converter(state, network)) if converter is not None else state


def _levels(network: Any, maps: list[Tensor], size: tuple[int, int]) -> tuple[tuple[Level, ...], dict[str, int]]:
    kind: LevelKind = "block" if _isotropic(maps) else "stage"
    info = getattr(network, "feature_info", None)
    first = str(info[0].get("module", "")) if isinstance(info, list) and info else ""
    skipped = 1 if kind == "stage" and len(maps) > 1 and _STEM.match(first) else 0
    names = [f"{kind}s.{number}" for number in range(len(maps) - skipped)]
    levels = tuple(_level(name, map_, size, kind) for name, map_ in zip(names, maps[skipped:], strict=True))
    return levels, {name: number + skipped for number, name in enumerate(names)}


def _has_class_token(network: Any) -> bool:
    """Whether a class token stands first in every block, and timm hands it out."""
    if getattr(network, "cls_token", None) is None or not hasattr(network, "forward_intermediates"):
        return False
    return "return_prefix_tokens" in inspect.signature(network.forward_intermediates).parameters


def _isotropic(maps: list[Tensor]) -> bool:
    return len(maps) > 1 and len({tuple(map_.shape) for map_ in maps}) == 1


def _level(name: str, map_: Tensor, size: tuple[int, int], kind: LevelKind) -> Level:
    _, channels, height, width = map_.shape
    return Level(name, channels, round(size[0] / height), (height, width), kind)


def _published_cfg(name: str) -> Any:
    """What timm publishes about a name, or None for an architecture without anything."""
    if timm.is_model(name):
        try:
            return timm.get_pretrained_cfg(name, allow_unregistered=True)
        except RuntimeError as error:
            tags = timm.list_models(f"{get_arch_name(name)}.*", pretrained=True)
            raise UserError(
                f"timm has no weights {name!r}. It has {', '.join(tags) or 'none of this model'}."
            ) from error
    close = difflib.get_close_matches(get_arch_name(name), timm.list_models(), n=3)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise UserError(
        f"timm {timm.__version__} has no model {name!r}. {hint}timm.list_models() lists all; "
        "models elsewhere are torchvision:NAME, hf:NAME-OR-FOLDER, limbeck:NAME, a run's folder "
        "or package.module:factory."
    )


def _local_weights(cfg: Any, text: str) -> dict[str, Any] | None:
    """Where the hub cannot be reached: the weights from its local cache, at once rather than after many retries."""
    if cfg is None or not cfg.hf_hub_id or not is_unreachable("huggingface.co"):
        return None
    for file in filter(None, (cfg.hf_hub_filename, "model.safetensors", "pytorch_model.bin")):
        cached = try_to_load_from_cache(cfg.hf_hub_id, file)
        if isinstance(cached, str):
            return {"file": cached}
    raise _not_fetched(text, "huggingface.co cannot be reached and its local cache does not have them")


def _not_fetched(text: str, reason: str) -> UserError:
    return UserError(
        f"The weights of {text} could not be fetched: {reason}. Connect to the network once, give a local file as "
        f"{text}@weights.safetensors, or start from random weights (pretrained false)."
    )
