"""Fast-DFKD: a generator from which a few steps lead to any batch, found by meta-learning.

Fang, Mo, Wang, Song, Bei, Zhang, Song, "Up to 100x Faster Data-free Knowledge Distillation", AAAI 2022, arXiv:2112.06253.
Every round clones the generator, moves clone and latent vectors a few steps towards good pictures, and then moves the
generator itself: by the clone's gradients (FOMAML) or towards the clone (Reptile).
"""

import copy
from typing import Any, Literal

import torch
from torch import nn

from limbeck.call_checks import require_at_least, require_positive
from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.synthesis.base import Made, Setting
from limbeck.synthesis.generators.grown import BETAS, GrownGenerator
from limbeck.synthesis.generators.networks import ConvGenerator

REPTILE_SCALE = 67.0


class Fast(GrownGenerator):
    """Fast-DFKD; a round is one batch of the setting's `batch_size` pictures (published 256).

    Published for CIFAR and networks with BatchNorm. There g_steps 2, 5 and 10 go with lr_g 5e-3, 3e-3 and 2e-3 and with
    lr_z 0.015, 0.01 and 0.01; on ImageNet 50 steps with lr_g 2e-4, bn 0.1, oh 0.1 and adv from 0.01 to 1.

    Args:
        setting: any teacher.
        g_steps: steps of a batch.
        lr_g: of the clone's Adam; the generator's is g_steps times as large.
        lr_z: of the latent vectors.
        bn: weight of the distance of BatchNorm statistics. Where that distance stays large (see `log`), as for a teacher of
            MNIST, the published weight drowns the class loss, and 1 serves better.
        oh: weight of the class loss; published 0.4 to 0.5.
        adv: weight of the disagreement with a student; published 1.0 to 1.33.
        prior: weight of each stand-in where the teacher has no BatchNorm (ours).
        meta: fomaml or reptile; published the first on CIFAR, the second on ImageNet.
        bn_momentum: of the running statistics of synthetic pictures with which a batch's are blended.
        reset_round: round before which the generator's first layer starts anew; None is never.
        warmup_rounds: rounds before a student learns.
        latent, channels: of the generator.

    Raises:
        UserError: an option is out of range.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        g_steps: int = 10,
        lr_g: float = 2e-3,
        lr_z: float = 0.01,
        bn: float = 10.0,
        oh: float = 0.5,
        adv: float = 1.33,
        prior: float = 1.0,
        meta: Literal["fomaml", "reptile"] = "fomaml",
        bn_momentum: float = 0.9,
        reset_round: int | None = 120,
        warmup_rounds: int = 20,
        latent: int = 256,
        channels: int = 64,
    ) -> None:
        super().__init__(
            setting,
            bn=bn,
            oh=oh,
            adv=adv,
            prior=prior,
            bn_momentum=bn_momentum,
            warmup_rounds=warmup_rounds,
            latent=latent,
            channels=channels,
        )
        require_at_least("fast", 1, g_steps=g_steps)
        require_positive("fast", lr_g=lr_g, lr_z=lr_z)
        if meta not in ("fomaml", "reptile"):
            raise UserError(f"fast: meta is {meta!r}; it must be 'fomaml' or 'reptile'.")
        self.g_steps, self.lr_g, self.lr_z = g_steps, lr_g, lr_z
        self.meta, self.reset_round = meta, reset_round
        self.begin()

    def begin(self) -> None:
        """A new generator and its Adam."""
        with self.seeded("fast", "generator"):
            generator = self.make_generator()
        self.networks = {"generator": generator}
        self.optimizers = {"meta": torch.optim.Adam(generator.parameters(), self.lr_g * self.g_steps, BETAS)}

    def make_round(self, student: VisionModel | None, round: int) -> Made:
        """A batch by a clone of the generator, and a step of the generator itself."""
        generator, optimizer = self.networks["generator"], self.optimizers["meta"]
        assert isinstance(generator, ConvGenerator)
        if round == self.reset_round:
            generator.project.reset_parameters()
        batch = self.setting.batch_size
        asked, z = self.asked(round * batch, batch), self.latents(batch).requires_grad_()
        clone = copy.deepcopy(generator)
        groups: list[dict[str, Any]] = [{"params": clone.parameters()}, {"params": [z], "lr": self.lr_z}]
        learning = torch.optim.Adam(groups, self.lr_g, BETAS)
        optimizer.zero_grad()
        fomaml = self.meta == "fomaml"
        images = self.descend(
            lambda: clone(z),
            asked,
            student,
            [learning],
            self.g_steps,
            with_gradients=(lambda: add_gradients(generator, clone)) if fomaml else None,
        )
        if not fomaml:
            pull_towards(generator, clone)
        optimizer.step()
        return Made(images, asked)


def add_gradients(generator: nn.Module, clone: nn.Module) -> None:
    """Add the clone's gradients to the generator's: first-order MAML, summed over the clone's steps."""
    for own, moved in zip(generator.parameters(), clone.parameters(), strict=True):
        assert moved.grad is not None
        own.grad = moved.grad.clone() if own.grad is None else own.grad + moved.grad


def pull_towards(generator: nn.Module, clone: nn.Module) -> None:
    """Give the generator the gradient 67 · (its parameters - the clone's): Reptile, scaled as published.

    Adam divides the scale away, but for the small constant in its denominator.
    """
    for own, moved in zip(generator.parameters(), clone.parameters(), strict=True):
        own.grad = REPTILE_SCALE * (own.detach() - moved.detach())
