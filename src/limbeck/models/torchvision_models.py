"""Any classifier of torchvision.models, read through a graph that torch.fx traces once: no hooks at run time.

The graph's code runs on the network itself, so its tensors keep torchvision's names. Levels are found by a dry run:
the last module's output at each stride from 4 on (`stage`), or the encoder layers of a vision transformer (`block`).
"""

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings
from torchvision.ops import StochasticDepth

from limbeck.errors import UserError
from limbeck.models.base import Provenance, VisionModel
from limbeck.models.weights import State, is_unreachable, load_weights, weights_hash
from limbeck.outputs import Level, ModelFacts, Outputs, Request

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_NO_MAPS = (
    "avgpool",
    "classifier",
    "head",
    "heads",
    "fc",
    "dropout",
    "flatten",
    "permute",
    "aux1",
    "aux2",
    "AuxLogits",
)
_LEAVES = (ShiftedWindowAttention, ShiftedWindowAttentionV2)
"""Modules that the graph calls as they are, so that their attention can be read."""
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


def create(
    name: str,
    *,
    text: str,
    num_classes: int | None = None,
    pretrained: bool = True,
    input_size: tuple[int, int] | None = None,
    drop_path: float = 0.0,
) -> "TorchvisionModel":
    """A torchvision classifier; arguments and errors as for `timm_models.create`."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"Did you mean {' or '.join(f'torchvision:{other}' for other in close)}? " if close else ""
        raise UserError(
            f"torchvision {torchvision.__version__} has no classifier {name!r}. {hint}It has {', '.join(known)}."
        )
    weights: Any = torchvision.models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    crop = int(transforms.crop_size[0])
    size = input_size or (crop, crop)
    published = len(weights.meta["categories"])
    network = _make(name, num_classes or published, size)
    notes = _set_drop_path(network, name, drop_path)
    model = TorchvisionModel(
        network,
        name,
        text=text,
        input_size=size,
        search_size=size if isinstance(network, VisionTransformer) else (crop, crop),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation="bilinear" if transforms.interpolation.value == "bilinear" else "bicubic",
        notes=notes,
    )
    if pretrained:
        state = fetch_weights(weights, text)
        notes += load_weights(network, weights.url, state=state, new_head=num_classes, convert=model.convert)
        model.provenance.licence = weights.meta.get(
            "license", "BSD-3-Clause (torchvision); the training data's terms may apply"
        )
        model.provenance.source = f"torchvision: {weights}"
        model.provenance.weights_sha256 = weights_hash(model)
    return model


class TorchvisionModel(VisionModel):
    """A torchvision network behind our interface.

    Args:
        network: the bare network.
        name: torchvision's name of it.
        text: the name the user gave.
        input_size: (height, width) to resize to.
        search_size: (height, width) at which levels are told apart by their strides.
        mean, std, interpolation: of its published weights.
        notes: for the provenance.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        *,
        text: str,
        input_size: tuple[int, int],
        search_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: str,
        notes: list[str],
    ) -> None:
        super().__init__(mean, std, interpolation)
        self.network = network
        self.provenance = Provenance(notes=notes, licence="none attached (random initialisation)")
        self._is_vit = isinstance(network, VisionTransformer)
        self._patch_size = network.patch_size if isinstance(network, VisionTransformer) else 1
        self._channels_last = isinstance(network, torchvision.models.SwinTransformer)
        network.eval()
        try:
            modules, final = self._find_modules(search_size)
            self._graph, self._has_pooled = _trace(network, [*modules, final])
            self._modules_of = dict(zip((f"{self._kind}s.{i}" for i in range(len(modules))), modules, strict=True))
            self._final_module = final
            self.facts = self._find_facts(text, input_size)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"{text} cannot take images of {input_size[0]}x{input_size[1]} pixels ({str(error).splitlines()[0]}). "
                "Leave the input size to the model."
            ) from error
        finally:
            network.train()
        self.rebuild = {
            "library": "torchvision",
            "name": name,
            "num_classes": self.facts.num_classes,
            "input_size": list(input_size),
        }

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        """One pass over (B, 3, *input_size) inputs; only the requested maps are kept.

        Raises:
            KeyError: a requested level is not one of this network's.
        """
        for name in request.levels:
            self.facts.level(name)
        values = self._graph(self.network, inputs)
        maps = {name: self._as_map(values[self._modules_of[name]], inputs) for name in request.levels}
        final = self._as_map(values[self._final_module], inputs) if request.final else None
        class_tokens = {}
        if request.class_tokens and self._is_vit:
            class_tokens = {name: values[self._modules_of[name]][:, 0] for name in request.levels}
        pooled = self._pooled(values, inputs) if request.pooled else None
        return Outputs(values["logits"], pooled, maps, final, class_tokens)

    def convert(self, state: State) -> State:
        """Bring published weights to today's names, to a network without auxiliary heads and to another token grid."""
        state = {
            _OLD_DENSENET.sub(r"\1\2", k): v
            for k, v in state.items()
            if not k.startswith(("aux1.", "aux2.", "AuxLogits."))
        }
        if isinstance(self.network, VisionTransformer):
            return dict(interpolate_embeddings(self.network.image_size, self.network.patch_size, state))
        return state

    @property
    def _kind(self) -> Any:
        return "block" if self._is_vit else "stage"

    def _as_map(self, value: Tensor, inputs: Tensor) -> Tensor:
        if self._is_vit:
            patch = self._patch_size
            grid = (inputs.shape[-2] // patch, inputs.shape[-1] // patch)
            return value[:, 1:].transpose(1, 2).reshape(value.shape[0], -1, *grid)
        return value.permute(0, 3, 1, 2) if self._channels_last else value

    def _pooled(self, values: dict[str, Tensor], inputs: Tensor) -> Tensor:
        # SqueezeNet classifies by a convolution; what it pools afterwards are already its logits.
        return values["pooled"] if self._has_pooled else self._as_map(values[self._final_module], inputs).mean((2, 3))

    @torch.no_grad()
    def _find_modules(self, size: tuple[int, int]) -> tuple[list[str], str]:
        """Names of the levels' modules, shallow to deep, and of the final map's."""
        if self._is_vit:
            layers = self.network.encoder.layers  # type: ignore[union-attr]
            return [f"encoder.layers.{name}" for name, _ in layers.named_children()], "encoder.ln"  # type: ignore[union-attr]
        seen = _shapes_of_modules(self.network, torch.zeros(1, 3, *size))
        last: dict[int, str] = {}
        deepest = ""
        for name, shape in seen:
            height = shape[1] if self._channels_last else shape[2]
            stride = 2 ** round(torch.tensor(size[0] / height).log2().item())
            if height == 1 or stride < 4:
                continue
            deepest = name
            # Swin ends with a norm, which belongs to the final map and not to the last stage.
            if name != "norm":
                last[stride] = name
        return [last[stride] for stride in sorted(last)], deepest

    @torch.no_grad()
    def _find_facts(self, text: str, size: tuple[int, int]) -> ModelFacts:
        inputs = torch.zeros(1, 3, *size)
        values = self._graph(self.network, inputs)
        levels = tuple(
            self._level(name, self._as_map(values[module], inputs), size) for name, module in self._modules_of.items()
        )
        final = self._level("final", self._as_map(values[self._final_module], inputs), size)
        pooled = self._pooled(values, inputs)
        return ModelFacts(text, values["logits"].shape[-1], size, levels, pooled.shape[-1], final)

    def _level(self, name: str, map_: Tensor, size: tuple[int, int]) -> Level:
        _, channels, height, width = map_.shape
        return Level(name, channels, round(size[0] / height), (height, width), self._kind)


def _trace(network: nn.Module, modules: list[str]) -> tuple[Callable[[nn.Module, Tensor], dict[str, Tensor]], bool]:
    """The network's code as one function that also returns the outputs of `modules`, the pooled vector, the logits."""
    # A fresh dictionary for each call: torchvision adds its own leaves to the one that it is given.
    last_node = get_graph_node_names(network, tracer_kwargs={"leaf_modules": [*_LEAVES]})[1][-1]
    extractor = create_feature_extractor(
        network,
        return_nodes=dict.fromkeys(modules) | {last_node: "logits"} | {m: m for m in modules},
        tracer_kwargs={"leaf_modules": [*_LEAVES]},
    )
    graph: fx.Graph = extractor.eval().graph
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    values = dict(output.args[0])
    linears = [
        n for n in graph.nodes if n.op == "call_module" and isinstance(network.get_submodule(str(n.target)), nn.Linear)
    ]
    has_pooled = bool(linears) and linears[-1] is values["logits"]
    if has_pooled:
        values["pooled"] = linears[-1].args[0]
    output.args = (values,)
    for node in graph.nodes:
        # Constants that tracing made live on the traced copy; the network that the code runs on needs them too.
        if node.op == "get_attr" and not _has_attribute(network, str(node.target)):
            network.register_buffer(
                str(node.target).replace(".", "_"), getattr(extractor, str(node.target)), persistent=False
            )
    traced = fx.GraphModule(extractor, graph)
    return type(traced).forward, has_pooled


def _has_attribute(network: nn.Module, path: str) -> bool:
    found: Any = network
    for part in path.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def _shapes_of_modules(network: nn.Module, inputs: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """Names and output shapes of the modules at most two deep that return maps, in the order in which they run."""
    seen: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                seen.append((name, tuple(output.shape)))

        return hook

    wanted = [(name, child) for name, child in network.named_children() if name not in _NO_MAPS]
    # Only what a Sequential runs one after the other is a stage; other modules' insides may be branches.
    wanted += [
        (f"{name}.{inner}", grandchild)
        for name, child in wanted
        if isinstance(child, nn.Sequential | nn.ModuleList)
        for inner, grandchild in child.named_children()
    ]
    handles = [module.register_forward_hook(note(name)) for name, module in wanted]
    try:
        network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _make(name: str, num_classes: int, size: tuple[int, int]) -> nn.Module:
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        if size[0] != size[1]:
            raise UserError(f"torchvision:{name} takes square images only, and {size[0]}x{size[1]} was asked for.")
        options["image_size"] = size[0]
    if name in ("googlenet", "inception_v3"):
        # The published weights expect this; auxiliary heads serve another training loss than ours.
        options |= {"aux_logits": False, "transform_input": True, "init_weights": True}
    try:
        made: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    except RuntimeError as error:
        raise UserError(
            f"torchvision could not make {name} for images of {size[0]}x{size[1]} pixels: {error}"
        ) from error
    return made


def _set_drop_path(network: nn.Module, name: str, drop_path: float) -> list[str]:
    blocks = [module for module in network.modules() if isinstance(module, StochasticDepth)]
    for number, module in enumerate(blocks):
        module.p = drop_path * number / max(1, len(blocks) - 1)
    return [f"drop_path has no effect: {name} has no stochastic depth"] if drop_path and not blocks else []


def fetch_weights(weights: Any, text: str) -> State:
    """The tensors of published weights, from torchvision's local cache or its server.

    Args:
        weights: a member of one of torchvision's weights enums.
        text: the name the user gave.

    Raises:
        UserError: they are not in the cache and cannot be fetched.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    reason = "download.pytorch.org cannot be reached and its local cache does not have them"
    if cached.is_file() or not is_unreachable("download.pytorch.org"):
        try:
            return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
    raise UserError(
        f"The weights of {text} could not be fetched: {reason}. Connect to the network once, give a local file as "
        f"{text}@weights.safetensors, or start from random weights (pretrained false)."
    )
