"""Names of tensors in files of torchvision's detectors, some of which are older than the names of their modules."""

import re

from limbeck.models.weights import State

_RENAMED = (
    (re.compile(r"\b(inner_blocks|layer_blocks)\.(\d+)\.(weight|bias)$"), r"\1.\2.0.\3"),
    (re.compile(r"\brpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
)
_MASK_CONVOLUTION = re.compile(r"\bmask_head\.mask_fcn(\d+)\.(weight|bias)$")
_RETINA_CONVOLUTION = re.compile(r"\b(classification_head|regression_head)\.conv\.(\d+)\.(weight|bias)$")


def todays_names(state: State) -> State:
    """The tensors under the names that torchvision's own loading would give them."""
    # FCOS has norms between its convolutions, at the odd places; RetinaNet had ReLUs there.
    retina = not any("bbox_ctrness" in name for name in state)
    return {_today(name, retina): tensor for name, tensor in state.items()}


def _today(name: str, retina: bool) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    name = _MASK_CONVOLUTION.sub(lambda found: f"mask_head.{int(found[1]) - 1}.0.{found[2]}", name)
    if retina:
        name = _RETINA_CONVOLUTION.sub(lambda found: f"{found[1]}.conv.{int(found[2]) // 2}.0.{found[3]}", name)
    return name
