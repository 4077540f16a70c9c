"""Models of the user's own: `package.module:factory`, a function that returns one.

The factory may return a `VisionModel`, used as it is, or any `nn.Module` from normalised images to logits. Of such a
module the maps of its direct children are read through forward hooks (it offers nothing else), which its
provenance says. `mean`, `std` and `input_size` are read from the module's attributes where it has them. Options in the
name, as in `package.module:factory(width=8)`, are arguments of the factory.
"""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.base import Provenance, VisionModel
from limbeck.outputs import Level, ModelFacts, Outputs, Request


def create(
    name: str,
    *,
    text: str,
    num_classes: int | None = None,
    pretrained: bool = True,
    input_size: tuple[int, int] | None = None,
    drop_path: float = 0.0,
    options: dict[str, Any] | None = None,
) -> VisionModel:
    """What a user's factory makes.

    Args:
        name: `package.module:factory`; modules in the current folder are found too.
        text: the name the user gave.
        num_classes, pretrained, input_size, drop_path: given to the factory where it has a parameter of that name.
        options: further arguments of the factory, plain values.

    Raises:
        UserError: the factory cannot be found, takes no such options, lacks an argument, returns something else than a
            module, or has another number of classes.
    """
    options = options or {}
    factory = _find(name, text)
    if options and not _makes_models(factory):
        # Names stand in recipes and model.json too, and those may be a stranger's; a plain function with arguments of
        # the stranger's choice could be any (os.system, say).
        raise UserError(
            f"{text!r} gives options to a factory that does not say that it returns a model. Annotate its result "
            f"(def {name.partition(':')[2]}(...) -> torch.nn.Module), or name a class derived from torch.nn.Module."
        )
    accepted = _parameters(factory)
    wanted: dict[str, Any] = {"pretrained": pretrained}
    wanted |= {"num_classes": num_classes} if num_classes is not None else {}
    wanted |= {"input_size": input_size} if input_size is not None else {}
    wanted |= {"drop_path": drop_path} if drop_path else {}
    arguments = {key: value for key, value in wanted.items() if key in accepted} | options
    _require_callable_with(factory, arguments, text)
    made = factory(**arguments)
    if not isinstance(made, nn.Module):
        raise UserError(
            f"{text} returned {type(made).__name__}, and a model must be a torch.nn.Module or a limbeck VisionModel."
        )
    model = made if isinstance(made, VisionModel) else CustomModel(made, text=text, input_size=input_size)
    if num_classes is not None and model.facts.num_classes != num_classes:
        raise UserError(
            f"{text} made a model of {model.facts.num_classes} classes, and {num_classes} are needed. "
            "Give the factory a parameter called num_classes."
        )
    if drop_path and "drop_path" not in accepted:
        model.provenance.notes.append(f"drop_path has no effect: the factory {text} has no such parameter")
    size = model.facts.input_size
    model.rebuild = {
        "library": "factory",
        "factory": name,
        "num_classes": model.facts.num_classes,
        "input_size": list(size),
    } | ({"options": options} if options else {})
    return model


class CustomModel(VisionModel):
    """Any module from images to logits behind our interface, its maps read through hooks.

    Args:
        network: maps (B, 3, H, W) normalised images to (B, K) logits.
        text: the name the user gave.
        input_size: (height, width) to resize to; None is the network's attribute `input_size`, or 224.
    """

    def __init__(self, network: nn.Module, *, text: str, input_size: tuple[int, int] | None) -> None:
        mean, std = getattr(network, "mean", None), getattr(network, "std", None)
        assumed = mean is None or std is None
        super().__init__(
            _values(mean) if mean is not None and not assumed else (0.485, 0.456, 0.406),
            _values(std) if std is not None and not assumed else (0.229, 0.224, 0.225),
        )
        self.network = network
        notes = ["its maps are read through forward hooks on its direct children"]
        if assumed:
            notes.append("it has no attributes mean and std: ImageNet's are assumed")
        given = getattr(network, "input_size", None)
        size = input_size or _size(given) or (224, 224)
        if input_size is None and given is None:
            notes.append("it has no attribute input_size: 224x224 is assumed")
        self.provenance = Provenance(source=f"factory {text}", notes=notes)
        try:
            self.facts = self._find_facts(text, size)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"{text} made a model that fails on images of {size[0]}x{size[1]} pixels: {error}"
            ) from error

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        """One pass over (B, 3, *input_size) inputs, with hooks for what is requested.

        Raises:
            KeyError: a requested level is not one of this network's.
        """
        for name in request.levels:
            self.facts.level(name)
        wanted = {self._children_of[name] for name in request.levels}
        if (request.final or request.pooled) and self._children_of:
            wanted.add(self._last_child)
        seen: dict[str, Tensor] = {}
        # Hooks live for one pass only: kept ones would follow copies of the model back to the original.
        with contextlib.ExitStack() as stack:
            for child in wanted:
                module = self.network.get_submodule(child)
                stack.callback(module.register_forward_hook(_keep_output(seen, child)).remove)
            if request.pooled and self._linear is not None:
                linear = self.network.get_submodule(self._linear)
                stack.callback(linear.register_forward_pre_hook(_keep_input(seen, "pooled")).remove)
            logits = self.network(inputs)
        pooled = None
        if request.pooled:
            pooled = seen["pooled"] if self._linear is not None else seen[self._last_child].mean((2, 3))
        final = seen[self._last_child] if request.final and self.facts.final is not None else None
        return Outputs(logits, pooled, {name: seen[self._children_of[name]] for name in request.levels}, final)

    @torch.no_grad()
    def _find_facts(self, text: str, size: tuple[int, int]) -> ModelFacts:
        shapes: dict[str, Tensor] = {}
        linears: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack:
            for name, child in self.network.named_children():
                stack.callback(child.register_forward_hook(_keep_output(shapes, name)).remove)
            for name, module in self.network.named_modules():
                if isinstance(module, nn.Linear):
                    stack.callback(module.register_forward_pre_hook(_keep_input(linears, name)).remove)
            training = self.network.training
            logits = self.network.eval()(torch.zeros(1, 3, *size))
            self.network.train(training)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise UserError(
                f"{text} made a model that does not return (B, K) logits. Wrap it, or return a limbeck VisionModel."
            )
        # Of several children on one grid the last is the stage's end; a 1x1 map is a pooled vector.
        last_on_grid = {
            tuple(v.shape[2:]): name for name, v in shapes.items() if v.ndim == 4 and v.shape[2] * v.shape[3] > 1
        }
        self._children_of = {f"stages.{number}": name for number, name in enumerate(last_on_grid.values())}
        self._last_child = next(reversed(last_on_grid.values()), "")
        self._linear = next((n for n in reversed(linears) if _is_last(self.network, n, logits.shape[1])), None)
        levels = tuple(_level(name, shapes[child], size) for name, child in self._children_of.items())
        final = _level("final", shapes[self._last_child], size) if levels else None
        if self._linear is None and not levels:
            raise UserError(
                f"{text} made a model with neither a final nn.Linear nor maps among its children; return a VisionModel."
            )
        pooled = linears[self._linear].shape[-1] if self._linear is not None else shapes[self._last_child].shape[1]
        return ModelFacts(text, logits.shape[1], size, levels, pooled, final)


def _find(name: str, text: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"{text} names a factory in the Python module {module_name}, which is not installed and not in {folder}. "
            "Known prefixes of model names are timm:, torchvision:, hf: and limbeck:."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(
                f"The module {module_name} ({getattr(found, '__file__', 'built in')}) has no {attribute!r}."
            )
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{text} is not callable; a factory is a function or class that returns a model.")
    return found  # type: ignore[no-any-return]


def _parameters(factory: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        return set()


def _makes_models(factory: Callable[..., Any]) -> bool:
    """Whether it is a class of networks, or a function annotated to return one."""
    made: Any = factory
    if not inspect.isclass(factory):
        try:
            made = get_type_hints(factory).get("return")
        except (NameError, TypeError):  # imported for the type checker only, or nothing that is annotated
            return False
    return inspect.isclass(made) and issubclass(made, nn.Module)


def _require_callable_with(factory: Callable[..., Any], arguments: dict[str, Any], text: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"The factory of {text} cannot be called: {error}. It is called {signature}; options are given as "
            "package.module:factory(option=value)."
        ) from None


def _keep_output(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen[name] = output

    return hook


def _keep_input(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any], None]:
    def hook(_: nn.Module, inputs: Any) -> None:
        seen.pop(name, None)
        seen[name] = inputs[0]

    return hook


def _is_last(network: nn.Module, name: str, num_classes: int) -> bool:
    module = network.get_submodule(name)
    return isinstance(module, nn.Linear) and module.out_features == num_classes


def _level(name: str, map_: Tensor, size: tuple[int, int]) -> Level:
    _, channels, height, width = map_.shape
    return Level(name, channels, round(size[0] / height), (height, width))


def _values(given: Any) -> tuple[float, ...]:
    flat = given.flatten().tolist() if isinstance(given, Tensor) else list(given)
    return tuple(float(value) for value in flat)


def _size(given: Any) -> tuple[int, int] | None:
    if given is None:
        return None
    return (given, given) if isinstance(given, int) else (int(given[-2]), int(given[-1]))
