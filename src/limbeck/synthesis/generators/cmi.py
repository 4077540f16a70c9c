"""CMI: each batch by a generator of its own, which is told to make what no earlier batch was.

Fang, Song, Wang, Shen, Wang, Song, "Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI 2021,
arXiv:2105.08584.
"""

from typing import Any

import torch
from torch import Tensor

from limbeck.call_checks import require_at_least, require_positive
from limbeck.models.base import VisionModel
from limbeck.outputs import Request
from limbeck.synthesis.base import Made, Setting
from limbeck.synthesis.generators.contrast import (
    FeatureBank,
    ProjectionHead,
    channel_means,
    contrast_levels,
    info_nce,
)
from limbeck.synthesis.generators.crops import random_resized_crops
from limbeck.synthesis.generators.grown import BETAS, GrownGenerator
from limbeck.synthesis.priors.base import Needs, Seen
from limbeck.synthesis.seeing import Eyes


class CMI(GrownGenerator):
    """Contrastive model inversion; a round is one batch of the setting's `batch_size` pictures (published 256).

    The contrast is that of a picture's local view (a part of it, enlarged) with its own shifted view, among those of the
    other pictures and of earlier ones, in the projected means of the channels of up to four of the teacher's levels. The
    published bank keeps the features of shifted views; here they are those of the finished pictures as they are.

    Published for CIFAR and networks with BatchNorm.

    Args:
        setting: any teacher.
        g_steps: steps of a batch; published 200, or 500.
        lr_g: of the Adam of generator, latent vectors and projection.
        bn: weight of the distance of BatchNorm statistics.
        oh: weight of the class loss; published 1, or 0.5.
        adv: weight of the disagreement with a student.
        cr: weight of the contrast; 0 leaves it out.
        prior: weight of each stand-in where the teacher has no BatchNorm (ours).
        temperature: of the contrast; published 0.1, and 0.2 for some pairs.
        head: width of the projection.
        bank_size: earlier pictures whose features are kept; in checkpoints too.
        negatives: of them, drawn at each step.
        warmup_rounds: rounds before a student learns; none published, but a set of pictures inverted beforehand.
        latent, channels: of the generator.

    Raises:
        UserError: an option is out of range.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        g_steps: int = 200,
        lr_g: float = 1e-3,
        bn: float = 1.0,
        oh: float = 1.0,
        adv: float = 0.5,
        cr: float = 0.8,
        prior: float = 1.0,
        temperature: float = 0.1,
        head: int = 256,
        bank_size: int = 40_960,
        negatives: int = 4096,
        warmup_rounds: int = 0,
        latent: int = 256,
        channels: int = 64,
    ) -> None:
        super().__init__(
            setting,
            bn=bn,
            oh=oh,
            adv=adv,
            prior=prior,
            bn_momentum=0.0,
            warmup_rounds=warmup_rounds,
            latent=latent,
            channels=channels,
        )
        require_at_least("cmi", 1, g_steps=g_steps, head=head, bank_size=bank_size)
        require_at_least("cmi", 0, cr=cr, negatives=negatives)
        require_positive("cmi", lr_g=lr_g, temperature=temperature)
        self.g_steps, self.lr_g = g_steps, lr_g
        if cr and not setting.teacher.facts.levels:
            self.notes.append(
                f"{setting.teacher.facts.name} has no feature maps to contrast; the contrast is left out."
            )
            cr = 0.0
        self.cr, self.temperature, self.head = cr, temperature, head
        self.bank_size, self.negatives = bank_size, negatives
        facts = setting.teacher.facts
        self.levels = contrast_levels(facts) if cr else ()
        self.request = Request(levels=self.levels)
        self.begin()

    def begin(self) -> None:
        """A new projection, its Adam, and an empty bank."""
        facts = self.setting.teacher.facts
        width = sum(facts.level(name).channels for name in self.levels)
        self.bank = FeatureBank(self.bank_size, width)
        if not self.cr:
            return
        with self.seeded("cmi", "head"):
            projection = ProjectionHead(width, self.head).to(self.setting.device)
        self.networks = {"head": projection}
        self.optimizers = {"head": torch.optim.Adam(projection.parameters(), self.lr_g)}

    def make_round(self, student: VisionModel | None, round: int) -> Made:
        """A batch by a fresh generator; what the teacher sees of it goes into the bank."""
        batch = self.setting.batch_size
        asked, z = self.asked(round * batch, batch), self.latents(batch).requires_grad_()
        generator = self.make_generator()
        learning = torch.optim.Adam([*generator.parameters(), z], self.lr_g, BETAS)
        images = self.descend(
            lambda: generator(z),
            asked,
            student,
            [learning, *self.optimizers.values()],
            self.g_steps,
            request=self.request,
            also=self._contrast if self.cr else None,
        )
        if self.cr:
            with torch.no_grad():
                self.bank.add(self._features(images))
        return Made(images, asked)

    def state_dict(self) -> dict[str, Any]:
        """Also the bank."""
        return {**super().state_dict(), "bank": self.bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a synthesis with the same options."""
        super().load_state_dict(state)
        self.bank.load_state_dict(state["bank"])

    def _contrast(self, images: Tensor, seen: Seen) -> tuple[str, float, Tensor]:
        head = self.networks["head"]
        shifted = channel_means(seen.outputs, self.levels)
        local = self._features(random_resized_crops(images))
        earlier = self.bank.draw(self.negatives).to(local.device)
        anchors, positives, negatives = head(torch.cat([local, shifted, earlier])).split(
            [len(local), len(shifted), len(earlier)]
        )
        return "contrast", self.cr, info_nce(anchors, positives, negatives, self.temperature)

    def _features(self, images: Tensor) -> Tensor:
        prepared = self.setting.teacher.prepare(images)
        eyes = Eyes(self.setting.teacher, Needs(self.request))
        return channel_means(eyes.look(prepared, prepared).outputs, self.levels)
