"""What the network's options may be, checked before anything is made of them."""

from typing import Any, Literal, get_args

from limbeck.errors import UserError

StemKind = Literal["mobilenetv3", "separable", "residual"]
StemOption = Literal[StemKind, "patchify"]
BranchBlock = Literal["ir_se", "ir", "plain", "separable"]
BranchMap = Literal["stem", "halved"]
GlobalReduction = Literal["full", "pool"]
PositionKind = Literal["none", "learned", "sincos"]
Pooling = Literal["cls", "gap", "global", "adaptive", "apf"]
Reading = Literal["token", "token_se", "pooled"]
Squash = Literal["sigmoid", "softmax"]

CHOICES: dict[str, tuple[str, ...]] = {
    "stem": get_args(StemOption),
    "branch_block": get_args(BranchBlock),
    "branch_map": get_args(BranchMap),
    "global_reduction": get_args(GlobalReduction),
    "positions": get_args(PositionKind),
    "pooling": get_args(Pooling),
    "fusion": get_args(Reading),
    "fusion_squash": get_args(Squash),
}
"""The options that name one of several ways. Refused here if unknown, so that the parts need not ask again."""


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
