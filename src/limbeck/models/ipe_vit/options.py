"""What the network's options may be, checked before anything is made of them."""

from typing import Any

from limbeck.errors import UserError

POOLINGS = ("cls", "gap", "global", "adaptive", "apf")
CHOICES = {
    "stem": ("mobilenetv3", "separable", "residual", "patchify"),
    "branch_block": ("ir_se", "ir", "plain", "separable"),
    "branch_map": ("stem", "halved"),
    "global_reduction": ("full", "pool"),
    "positions": ("none", "learned", "sincos"),
    "pooling": POOLINGS,
    "fusion": ("token", "token_se", "pooled"),
    "fusion_squash": ("sigmoid", "softmax"),
}
"""The options that name one of several ways."""


def check_options(options: dict[str, Any]) -> None:
    """Refuse what would be ignored or half understood; the parts refuse what they alone know."""
    for name, choices in CHOICES.items():
        if options[name] not in choices:
            raise UserError(f"{name} is {options[name]!r}; it must be one of {', '.join(choices)}.")
    for name in ("token_norm", "fusion_renormalise", "distilled", "dynamic_size"):
        if not isinstance(options[name], bool):
            raise UserError(f"{name} is {options[name]!r}; it must be True or False.")
    embed_dim, head_dim, depth = options["embed_dim"], options["head_dim"], options["depth"]
    if embed_dim < 1 or head_dim < 1 or embed_dim % head_dim:
        raise UserError(f"embed_dim is {embed_dim}; it must be a multiple of head_dim, which is {head_dim}.")
    if depth < 1:
        raise UserError(f"depth is {depth}; the trunk needs at least 1 block.")
    if not options["mlp_ratio"] * embed_dim >= 1:
        raise UserError(f"mlp_ratio is {options['mlp_ratio']}; it is the MLP's hidden width over embed_dim.")
    if not options["branch_expansion"] >= 1:
        raise UserError(f"branch_expansion is {options['branch_expansion']}; it must be at least 1.")
    if options["distilled"] and options["pooling"] in ("cls", "gap"):
        raise UserError(
            f"distilled=True needs a fusion for each classifier; pooling={options['pooling']!r} has none. Use 'apf'."
        )
