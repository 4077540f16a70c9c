"""The mobile vision transformer: what its design promises, in numbers."""

import pickle
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from limbeck.errors import UserError
from limbeck.models import load_model, save_model
from limbeck.models.ipe_vit import DEIT_SHRUNK, NETWORKS
from limbeck.models.ipe_vit.convolutions import InvertedResidual, depthwise
from limbeck.models.ipe_vit.embedding import KERNEL, Branch, WholeMap, branch_grid, parse_branches, resized_table
from limbeck.models.ipe_vit.fusion import PatchFusion
from limbeck.models.ipe_vit.network import IpeVit, finest_map
from limbeck.models.ipe_vit.options import CHOICES
from limbeck.outputs import Request
from limbeck.recipe import TrainRecipe
from limbeck.training.optimisers import make_optimizer

# Patches of the three branches by image size, from floor((h + 2p - k) / s) + 1 with k = 5 and p = 2.
PATCHES = {128: 21, 160: 35, 192: 46, 224: 66, 240: 81, 256: 81, 288: 107, 320: 126}

# Millions of parameters and of multiply-adds at 224 pixels and 1000 classes, from the analytic counts of the sizes' table.
SIZES = {
    "ipe_vit_75m": (0.89, 74),
    "ipe_vit_150m": (1.95, 140),
    "ipe_vit_300m": (3.67, 292),
    "ipe_vit_600m": (7.84, 572),
}


def tiny(**options: object) -> IpeVit:
    torch.manual_seed(0)
    settings = {"width": 0.25, "embed_dim": 32, "depth": 2, "num_classes": 7, "img_size": 64} | options
    return IpeVit(**settings).eval()  # type: ignore[arg-type]


def multiply_adds(network: nn.Module, size: int) -> float:
    # The fused attention of the CPU is not in the counter's list; written out, its two products are counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.rand(1, 3, size, size))
    return counter.get_total_flops() / 2e6


@pytest.mark.parametrize(("size", "count"), PATCHES.items())
def test_patches_at_eight_sizes(size: int, count: int) -> None:
    network = tiny(img_size=size)
    tokens, grids, _ = network.encode(torch.rand(1, 3, size, size))
    assert tokens.shape[1] == sum(h * w for h, w in grids) == count
    assert grids[0] == (1, 1)
    assert all(fine > coarse for coarse, fine in pairwise(grids))


def test_patches_of_the_networks_for_small_images() -> None:
    assert [h * w for h, w in tiny(img_size=32, stem_stride=4).grids] == [1, 4, 16]


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_table(name: str) -> None:
    network = timm.create_model(name).eval()
    parameters, macs = SIZES[name]
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(parameters, rel=0.02)
    assert multiply_adds(network, 224) == pytest.approx(macs, rel=0.02)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "_plus_" in name])
def test_the_improved_networks_cost_no_more_than_the_faithful_ones(name: str) -> None:
    improved, faithful = timm.create_model(name).eval(), timm.create_model(name.replace("_plus", "")).eval()
    size = faithful.img_size[0]
    assert improved.img_size[0] == size
    assert 0.85 < multiply_adds(improved, size) / multiply_adds(faithful, size) <= 1
    assert sum(p.numel() for p in improved.parameters()) < sum(p.numel() for p in faithful.parameters())


@pytest.mark.parametrize("name", DEIT_SHRUNK)
def test_the_shrunk_deit_costs_what_its_rival_costs(name: str) -> None:
    control, rival = timm.create_model(name).eval(), timm.create_model(name.replace("deit_shrunk", "ipe_vit")).eval()
    size = rival.img_size[0]
    assert 0.95 < multiply_adds(control, size) / multiply_adds(rival, size) < 1.08


def cell_gradient(branch: nn.Module, channels: int) -> Tensor:
    """How much each cell of the branch's 14x14 map matters to its patches."""
    cells = torch.rand(1, channels, 14, 14, requires_grad=True)
    patches = branch.eval()(cells)
    (patches * torch.randn_like(patches)).sum().backward()
    assert cells.grad is not None
    return cells.grad.abs().sum(1)[0]


@pytest.mark.parametrize("block", ["ir_se", "ir", "plain", "separable"])
@pytest.mark.parametrize("reduction", ["full", "pool"])
@pytest.mark.parametrize("name", ["fine", "mid", "global"])
def test_every_cell_and_every_pixel_has_a_gradient_in_every_branch(name: str, block: str, reduction: str) -> None:
    torch.manual_seed(0)
    branch = Branch(name, 8, 16, (14, 14), block=block, reduction=reduction)  # type: ignore[arg-type]
    assert (cell_gradient(branch, 8) > 0).all()
    images = torch.rand(1, 3, 224, 224, requires_grad=True)
    branch(nn.Conv2d(3, 8, 16, 16)(images)).square().sum().backward()
    assert images.grad is not None
    assert (images.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(("stride", "kernel"), [(14, 3), (4, 3), (4, 1)])
def test_a_kernel_that_skips_cells_would_be_noticed(stride: int, kernel: int) -> None:
    branch = Branch("mid", 8, 16, (14, 14))
    spatial = next(i for i, m in enumerate(branch.body.body) if isinstance(m, nn.Conv2d))
    assert branch.body.body[spatial].kernel_size == (KERNEL, KERNEL)
    branch.body.body[spatial] = nn.Conv2d(32, 32, kernel, stride, kernel // 2, groups=32, bias=False)
    assert (cell_gradient(branch, 8) == 0).any()


FUSIONS = [
    {"reading": reading, "squash": squash, "renormalise": renormalise}
    for reading in ("token", "token_se", "pooled")
    for squash in ("sigmoid", "softmax")
    for renormalise in (False, True)
]


@pytest.mark.parametrize("options", [*FUSIONS, {"use_global": False}, {"use_adaptive": False}])
def test_fusion_starts_as_the_average(options: dict[str, object]) -> None:
    fusion = PatchFusion(16, [(1, 1), (2, 2), (4, 4)], **options)  # type: ignore[arg-type]
    fusion.init_weights()
    tokens = torch.randn(3, 21, 16)
    torch.testing.assert_close(fusion(tokens, [(1, 1), (2, 2), (4, 4)]), tokens.mean(1))


def test_fusion_starts_as_the_average_at_other_sizes() -> None:
    fusion = PatchFusion(16, [(1, 1), (2, 2), (4, 4)])
    fusion.init_weights()
    tokens = torch.randn(3, 46, 16)
    torch.testing.assert_close(fusion(tokens, [(1, 1), (3, 3), (6, 6)]), tokens.mean(1))


@pytest.mark.parametrize("reading", ["token", "token_se", "pooled"])
@pytest.mark.parametrize("squash", ["sigmoid", "softmax"])
@pytest.mark.parametrize("renormalise", [False, True])
def test_fusion_is_the_weighted_sum_of_its_definition(reading: str, squash: str, renormalise: bool) -> None:
    torch.manual_seed(0)
    grids = [(1, 1), (2, 3)]
    fusion = PatchFusion(8, grids, reading=reading, squash=squash, renormalise=renormalise)  # type: ignore[arg-type]
    for parameter in fusion.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(2, 7, 8)
    first, _, last = fusion.adaptive
    shared = torch.cat([table.flatten() for table in fusion.global_weights])

    def mlp(vector: Tensor) -> Tensor:
        return last.weight @ nn.functional.gelu(first.weight @ vector + first.bias) + last.bias

    expected = torch.zeros(2, 8)
    for image in range(2):
        x = tokens[image]
        if reading == "token":
            scores = torch.cat([mlp(x[patch]) for patch in range(7)])
        else:
            scores = mlp(x.mean(1) if reading == "token_se" else x.mean(0))
        weights = shared * (2 * torch.sigmoid(scores) if squash == "sigmoid" else 7 * scores.exp() / scores.exp().sum())
        weights = weights / weights.sum() if renormalise else weights
        for patch in range(7):
            expected[image] += weights[patch] * x[patch]
    torch.testing.assert_close(fusion(tokens, grids), expected, rtol=1e-4, atol=1e-4)


def test_a_whole_network_starts_with_average_pooling() -> None:
    fused, averaged = tiny(), tiny(pooling="gap")
    averaged.load_state_dict(fused.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(fused(images), averaged(images))


def test_the_whole_map_kernel_keeps_the_average_on_other_grids() -> None:
    kernel = WholeMap(5, (4, 4))
    nn.init.constant_(kernel.weight, 1 / 16)
    map_ = torch.rand(2, 5, 7, 9)
    torch.testing.assert_close(kernel(map_), map_.mean((2, 3), keepdim=True))
    own = torch.rand(2, 5, 4, 4)
    torch.testing.assert_close(kernel(own), nn.functional.conv2d(own, kernel.weight.transpose(0, 1), groups=5))


def test_a_table_resized_to_its_own_grid_is_itself() -> None:
    table = torch.randn(1, 6, 7, 7)
    torch.testing.assert_close(resized_table(table, (7, 7), always=True), table, rtol=0, atol=1e-6)
    torch.testing.assert_close(resized_table(table.new_ones(1, 6, 7, 7), (9, 5)), torch.ones(1, 6, 9, 5))


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (128, 160)])
@pytest.mark.parametrize("options", [{}, {"pooling": "cls", "positions": "sincos"}, {"distilled": True}])
def test_any_size_and_the_graph_for_unknown_sizes_agree(size: tuple[int, int], options: dict[str, object]) -> None:
    network = tiny(**options)
    images = torch.rand(2, 3, *size)
    usual = network(images)
    network.dynamic_size = True
    assert usual.shape == (2, 7)
    torch.testing.assert_close(network(images), usual)


@pytest.mark.parametrize(
    "imports",
    [
        "import limbeck, timm",
        "import timm, limbeck",
        "import limbeck.models.ipe_vit.network, timm",
        "import limbeck.models.ipe_vit.fusion, timm",
        "from timm.models import create_model; import limbeck, timm",
    ],
)
def test_timm_knows_the_networks_whichever_is_imported_first(imports: str) -> None:
    ask = "assert timm.is_model('ipe_vit_300m') and timm.is_model('deit_shrunk_75m_32')"
    subprocess.run([sys.executable, "-W", "error::UserWarning:timm", "-c", f"{imports}; {ask}"], check=True)


def test_a_pickled_network_opens_in_a_fresh_process(tmp_path: Path) -> None:
    (tmp_path / "network.pkl").write_bytes(pickle.dumps(timm.create_model("ipe_vit_75m_32", embed_dim=32, depth=1)))
    ask = f"import pickle; pickle.load(open({str(tmp_path / 'network.pkl')!r}, 'rb'))"
    subprocess.run([sys.executable, "-c", ask], check=True)


def test_importing_limbeck_imports_neither_timm_nor_torch() -> None:
    ask = "import limbeck, sys; assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", ask], check=True)


def test_timm_and_limbeck_give_the_same_network() -> None:
    ours = load_model("limbeck:ipe_vit_75m_32", num_classes=5).eval()
    theirs = load_model("timm:ipe_vit_75m_32", num_classes=5, pretrained=False).eval()
    theirs.network.load_state_dict(ours.network.state_dict())
    images = torch.rand(2, 3, 32, 32)
    own = ours(images, Request(tuple(level.name for level in ours.facts.levels), pooled=True, final=True))
    other = theirs(images, Request(tuple(level.name for level in theirs.facts.levels), pooled=True, final=True))
    torch.testing.assert_close(own.logits, other.logits)
    torch.testing.assert_close(own.pooled, other.pooled)
    torch.testing.assert_close(own.final, other.final)
    for level, twin in zip(ours.facts.levels, theirs.facts.levels, strict=True):
        assert (level.channels, level.stride, level.grid) == (twin.channels, twin.stride, twin.grid)
        torch.testing.assert_close(own.maps[level.name], other.maps[twin.name])


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, None) for name in NETWORKS),
        ("ipe_vit_75m(stem=patchify)", None),
        ("ipe_vit_75m(branches=uniform)", None),
        ("ipe_vit_75m(branch_map=halved)", (100, 130)),
        ("ipe_vit_75m_32", (33, 47)),
        ("ipe_vit_plus_75m_32(stem_stride=2)", (40, 32)),
    ],
)
def test_maps_are_what_the_facts_say(name: str, size: tuple[int, int] | None) -> None:
    model = load_model(f"limbeck:{name}", num_classes=3, input_size=size).eval()
    request = Request(tuple(level.name for level in model.facts.levels), pooled=True, final=True)
    with torch.no_grad():
        outputs = model(torch.rand(1, 3, 40, 40), request)
    assert outputs.pooled.shape == (1, model.facts.pooled_channels)
    final = (model.facts.final, outputs.final)
    for level, map_ in [*((level, outputs.maps[level.name]) for level in model.facts.levels), final]:
        assert map_.shape == (1, level.channels, *level.grid)
        assert level.stride * level.grid[0] == pytest.approx(model.facts.input_size[0], rel=0.25)


def test_the_fine_map_holds_the_patches_of_the_fine_branch() -> None:
    network = tiny(depth=1, positions="none", token_norm=False)
    nn.init.zeros_(network.blocks[0].attn.proj.weight)
    nn.init.zeros_(network.blocks[0].mlp.fc2.weight)
    images = torch.rand(2, 3, 64, 64)
    _, _, maps = network.encode(images, ["blocks.0"])
    torch.testing.assert_close(maps["blocks.0"], network.branches[-1](network.stem(images)[-1]))


def test_distilled_averages_two_heads_and_trains_them_apart() -> None:
    network = tiny(distilled=True)
    images = torch.rand(2, 3, 64, 64)
    tokens = network.forward_features(images)
    one, two = network.fusions[0](tokens, network.grids), network.fusions[1](tokens, network.grids)
    torch.testing.assert_close(network(images), (network.head(one) + network.head_dist(two)) / 2)
    network.set_distilled_training()
    network.train()
    assert [tuple(logits.shape) for logits in network(images)] == [(2, 7), (2, 7)]


@pytest.mark.parametrize("pooling", CHOICES["pooling"])
def test_the_pooling_is_what_it_says(pooling: str) -> None:
    network = tiny(pooling=pooling)
    for parameter in network.fusions.parameters():
        nn.init.normal_(parameter)
    count = network.num_prefix_tokens + network.grids[-1][0] * network.grids[-1][1]
    tokens = torch.randn(2, count, 32)
    (vector,) = network.fuse(tokens, network.grids)
    if pooling == "cls":
        expected = tokens[:, 0]
    elif pooling == "gap":
        expected = tokens.mean(1)
    else:
        fusion = network.fusions[0]
        assert (fusion.global_weights is None) == (pooling == "adaptive")
        assert (fusion.adaptive is None) == (pooling == "global")
        weights = fusion.weights(tokens, network.grids)
        if pooling == "global":
            assert torch.equal(weights[0], torch.cat([table.flatten() for table in fusion.global_weights]))
        expected = (weights.unsqueeze(2) * tokens).sum(1)
    torch.testing.assert_close(vector, expected)


@pytest.mark.parametrize("positions", ["none", "learned", "sincos"])
def test_the_trunk_reads_normalised_patches_with_their_positions(positions: str) -> None:
    network = tiny(positions=positions)
    seen: list[Tensor] = []
    network.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 64, 64)
    tokens, grids, maps = network.encode(images, ["blocks.1"])
    patches = [branch(network.stem(images)[-1]).flatten(2) for branch in network.branches]
    expected = network.token_norm(torch.cat(patches, 2).transpose(1, 2))
    if positions == "learned":
        expected = expected + torch.cat([table.flatten(2) for table in network.positions.pos_embed], 2).transpose(1, 2)
    if positions == "sincos":
        table = network.positions(grids)
        assert len({tuple(row) for row in table[0, 2:].tolist()}) == 4  # the fine branch's cells differ
        torch.testing.assert_close(table.square().sum(2), torch.full((1, 6), 16.0))  # sin² + cos² of 16 frequencies
        expected = expected + table
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(
        finest_map(tokens, grids[-1]), network.norm(maps["blocks.1"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    )
    normed = network.forward_intermediates(images, norm=True, intermediates_only=True)[-1]
    torch.testing.assert_close(normed, finest_map(tokens, grids[-1]))


def test_sizes_and_rates_reach_the_trunk() -> None:
    network = tiny(embed_dim=48, head_dim=16, depth=3, drop_path_rate=0.2, drop_rate=0.5)
    assert [block.attn.num_heads for block in network.blocks] == [3, 3, 3]
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in network.blocks] == pytest.approx([0, 0.1, 0.2])
    vectors = [torch.ones(1, 48)]
    network.train()
    assert not torch.equal(network.classify(vectors), network.classify(vectors))


def test_an_inverted_residual_adds_its_input() -> None:
    unit = InvertedResidual(
        8, 8, expansion=2, spatial=lambda hidden: depthwise(hidden, 3), keeps_grid=True, squeeze=True
    ).eval()
    nn.init.zeros_(unit.body[-1][1].weight)
    inputs = torch.rand(2, 8, 5, 5)
    torch.testing.assert_close(unit(inputs), inputs)


def test_the_stems_activations_and_gates() -> None:
    stem = tiny().stem
    kinds = [
        {type(m) for m in stage.modules() if isinstance(m, nn.ReLU | nn.Hardswish | nn.Hardsigmoid)}
        for stage in stem.stages
    ]
    # ReLU also stands inside every squeeze-and-excitation.
    assert kinds == [
        {nn.ReLU},
        {nn.ReLU},
        {nn.Hardswish, nn.ReLU, nn.Hardsigmoid},
        {nn.Hardswish, nn.ReLU, nn.Hardsigmoid},
    ]


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    network = tiny(depth=2, pooling="gap").train()
    images = torch.rand(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        network.set_grad_checkpointing(enable)
        network.zero_grad()
        network(images).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", ["limbeck:ipe_vit_75m_32", "timm:ipe_vit_75m_32", "limbeck:ipe_vit_plus_75m_32"])
@pytest.mark.parametrize("size", [(64, 64), (40, 48)])
def test_saved_weights_open_at_another_size(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    model = load_model(f"{name}(embed_dim=32)", num_classes=4, pretrained=False).eval()
    for table in model.network.fusions[0].global_weights:
        nn.init.uniform_(table)
    save_model(model, tmp_path)
    larger = load_model(str(tmp_path), input_size=size).eval()
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        resized = model.network((images - model.mean) / model.std)
        torch.testing.assert_close(larger(images).logits, resized)


def test_weight_decay_spares_positions_and_shares() -> None:
    network = tiny(pooling="apf")
    recipe = TrainRecipe(model="x", data="digits", lr=1e-3, weight_decay=0.05, decay_norms=False)
    spared = make_optimizer(network.named_parameters(), recipe).param_groups[1]["params"]
    spared_ids = {id(p) for p in spared}
    assert network.no_weight_decay()
    for name, parameter in network.named_parameters():
        expected = parameter.ndim <= 1 or name in network.no_weight_decay()
        assert (id(parameter) in spared_ids) == expected, name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"branches": "fine+coarse"}, "'coarse' is no branch"),
        ({"branches": "fine+fine"}, "named twice"),
        ({"branch_block": "mlp"}, "branch_block is 'mlp'"),
        ({"stem": "resnet"}, "stem is 'resnet'"),
        ({"stem_stride": 5}, "stem_stride is 5"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"positions": "rope"}, "positions is 'rope'"),
        ({"fusion": "map"}, "fusion is 'map'"),
        ({"fusion_squash": "tanh"}, "fusion_squash is 'tanh'"),
        ({"global_reduction": "max"}, "global_reduction is 'max'"),
        ({"embed_dim": 40}, "multiple of head_dim"),
        ({"depth": 0}, "at least 1 block"),
        ({"width": 0}, "width is 0"),
        ({"distilled": True, "pooling": "gap"}, "needs a fusion"),
        ({"img_size": 16}, "too small"),
        ({"branch_expansion": 0}, "branch_expansion is 0"),
        ({"mlp_ratio": 0.001}, "mlp_ratio is 0.001"),
        ({"distilled": 2}, "distilled is 2"),
        ({"token_norm": "no"}, "token_norm is 'no'"),
        ({"pooling": "gap", "fusion": "nonsense"}, "fusion is 'nonsense'"),
        ({"branch_map": "halved", "branches": "uniform"}, "nothing for the branch 'uniform'"),
        ({"branch_map": "third"}, "branch_map is 'third'"),
        ({"drop_path_rate": 1.0}, "drop_path is 1.0"),
    ],
)
def test_impossible_options_are_explained(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny(**options)


def test_every_option_that_names_one_of_several_ways_is_checked() -> None:
    hints = get_type_hints(IpeVit.__init__)
    assert {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal} == CHOICES


@pytest.mark.parametrize(
    ("name", "drop_path", "said"),
    [
        ("limbeck:ipe_vit_75m_32(branch=2)", 0.0, r"no option 'branch'.*Did you mean 'branches'"),
        ("limbeck:ipe_vit_75m_32(embed_dim='wide')", 0.0, "with embed_dim='wide' it fails"),
        ("limbeck:ipe_vit_75m_32", -0.1, "drop_path is -0.1"),
    ],
)
def test_impossible_names_are_explained(name: str, drop_path: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_model(name, num_classes=3, drop_path=drop_path)


def test_a_fusion_that_knows_its_patches_refuses_others() -> None:
    with pytest.raises(UserError, match="made for 6 patches"):
        tiny(fusion="pooled")(torch.rand(1, 3, 96, 96))


def test_a_batch_of_one_in_training_is_explained() -> None:
    with pytest.raises(UserError, match="at least 2 of them"):
        tiny().train()(torch.rand(1, 3, 64, 64))
    assert tiny(branches="fine", img_size=96).train()(torch.rand(1, 3, 96, 96)).shape == (1, 7)


@pytest.mark.parametrize(("pooling", "own"), [("apf", 6), ("cls", 7)])
def test_tokens_of_another_size_are_refused_where_their_grids_are_unknown(pooling: str, own: int) -> None:
    network = tiny(pooling=pooling)
    with pytest.raises(UserError, match=f"give {own}\\."):
        network.forward_head(network.forward_features(torch.rand(1, 3, 96, 96)))


def test_distilled_training_is_for_loops_of_ones_own() -> None:
    model = load_model("limbeck:ipe_vit_75m_32(distilled=True, embed_dim=32)", num_classes=3).train()
    model.network.set_distilled_training()
    assert model(torch.rand(2, 3, 32, 32)).logits.shape == (2, 3)


def test_the_halved_map_gives_the_same_patches() -> None:
    assert tiny(img_size=224, branch_map="halved").grids == tiny(img_size=224).grids == [(1, 1), (4, 4), (7, 7)]


def test_branches_of_the_other_scales() -> None:
    assert branch_grid("uniform", (14, 14)) == (14, 14)
    assert branch_grid("square", (14, 14)) == (8, 8)
    assert parse_branches("fine + global+mid") == ("global", "mid", "fine")
    patches = Branch("square", 8, 16, (14, 14))(torch.rand(2, 8, 14, 14))
    assert patches.shape == (2, 16, 8, 8)
