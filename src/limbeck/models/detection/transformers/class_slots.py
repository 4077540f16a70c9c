"""Which of a network's label slots are classes, and a network with other classes that keeps what it knows of them.

Many published detectors have 91 slots for COCO's 80 classes; the eleven between are called "N/A". Such slots are no
classes: they are left out of every answer, and no label ever names them.
"""

import copy
import re
from typing import Any

import torch
from torch import nn

from limbeck.detection import name_pairs
from limbeck.errors import UserError
from limbeck.models.weights import State

_EMPTY = frozenset(("", "n/a", "none", "background", "__background__", "no object", "no-object"))
_PLACEHOLDER = re.compile(r"LABEL_\d+")
_CLASS_ROWS = re.compile(
    r"(^|\.)(class_labels_classifier(\.layers\.2)?|class_embed(\.\d+)?|enc_score_head|denoising_class_embed"
    r"|enc_out_class_embed\.\d+|class_predictor)\.(weight|bias)$"
)
"""The tensors of every family whose rows are one class each, "no object" or padding last."""


def class_slots(config: Any) -> dict[str, int]:
    """The slot of each class by its name, in label order.

    Args:
        config: a transformers configuration with `id2label`.

    Raises:
        UserError: two slots have the same name.
    """
    names = {slot: str(config.id2label[slot]) for slot in sorted(config.id2label)}
    real = {slot: name for slot, name in names.items() if name.strip().lower() not in _EMPTY}
    # Placeholders beside true names are gaps; where all are placeholders, they are all the names there are.
    named = {slot: name for slot, name in real.items() if not _PLACEHOLDER.fullmatch(name)} or real
    slots = {name: slot for slot, name in named.items()}
    if len(slots) < len(named):
        twice = next(name for name in slots if list(named.values()).count(name) > 1)
        raise UserError(f"The model's configuration has two classes named {twice!r}; give each a name of its own.")
    return slots


def name_classes(config: Any, names: tuple[str, ...]) -> None:
    """Make `names` the labels of a configuration, one slot each."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: slot for slot, name in enumerate(names)}


def with_classes(network: Any, names: tuple[str, ...]) -> tuple[nn.Module, list[str]]:
    """The same network for other classes: rows of classes that both have are copied, the others freshly initialised.

    Args:
        network: a transformers detector.
        names: the new classes.

    Returns:
        The new network, and a sentence for `Provenance.notes`.
    """
    config = copy.deepcopy(network.config)
    name_classes(config, names)
    made: nn.Module = type(network)(config)
    made.load_state_dict(carried(network.state_dict(), None, config=network.config, network=made))
    old = tuple(class_slots(network.config))
    kept = len(name_pairs(names, old))
    note = f"class head replaced: {len(old)} -> {len(names)} classes, the rows of {kept} kept by name"
    return made.train(network.training), [note]


def carried(state: State, theirs: object, *, config: Any, network: Any) -> State:
    """A network's tensors with what fits of another's: everything but class rows, and the rows of classes both have.

    Args:
        state: the other network's tensors.
        theirs: its class names, which its configuration knows better.
        config: its configuration.
        network: the one with the new classes.
    """
    old, new = class_slots(config), class_slots(network.config)
    pairs = name_pairs(tuple(new), tuple(old))
    to_rows = torch.tensor([list(new.values())[place] for place in pairs], dtype=torch.long)
    from_rows = torch.tensor([list(old.values())[place] for place in pairs.values()], dtype=torch.long)
    result: State = network.state_dict()
    for key, value in state.items():
        if _CLASS_ROWS.search(key):
            result[key] = result[key].clone()
            result[key][to_rows] = value[from_rows]
            result[key][network.config.num_labels :] = value[config.num_labels :]
        elif key not in result or result[key].shape == value.shape:
            # Names that the network does not have are left for whoever loads this to complain about.
            result[key] = value
    return result
