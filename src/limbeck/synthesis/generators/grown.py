"""Generators that make a batch by a few steps of their own and add it to a pool: what CMI, Fast-DFKD and NAYER share.

Their loss (all three after the code base of Fang et al., github.com/zju-vipa/CMI):

    bn · ‖BatchNorm statistics - the running ones‖ + oh · CE(t, asked) - adv · KL(t ‖ s) · 1[argmax t = argmax s]

The teacher is shown each picture shifted by up to an eighth of its side and perhaps mirrored. Of all steps of a batch the
pictures with the lowest loss are kept.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.call_checks import require_at_least
from limbeck.errors import UserError
from limbeck.losses.precision import no_autocast
from limbeck.models.base import VisionModel
from limbeck.outputs import Request
from limbeck.synthesis.asked_classes import asked_classes
from limbeck.synthesis.base import GrownSynthesis, Made, Setting
from limbeck.synthesis.best import Best
from limbeck.synthesis.generators.blended_statistics import BlendedStatistics
from limbeck.synthesis.generators.crops import random_shifts
from limbeck.synthesis.generators.networks import ConvGenerator
from limbeck.synthesis.generators.resemblance import resemblance
from limbeck.synthesis.priors.base import Needs, Seen
from limbeck.synthesis.priors.classes import ClassLoss
from limbeck.synthesis.priors.disagreement import KLDisagreement
from limbeck.synthesis.seeing import Eyes
from limbeck.synthesis.terms import Term, term, weighed

BETAS = (0.5, 0.999)


class GrownGenerator(GrownSynthesis):
    """Networks that are kept between rounds, their optimisers, and the loss of a batch.

    Subclasses put what they keep into `networks` and `optimizers` in `begin`, and make a round's pictures in `make_round`.

    Args:
        setting: what for.
        bn: weight of the distance of BatchNorm statistics.
        oh: weight of the class loss.
        adv: weight of the disagreement with a student; 0 never looks at it.
        prior: weight of each stand-in where the teacher has no BatchNorm; see `resemblance`.
        bn_momentum: in [0, 1); see `BlendedStatistics`.
        warmup_rounds: rounds that a student which learns is not looked at.
        latent: D of what the generator begins from.
        channels: of the generator's last maps.

    Attributes:
        name: of the method.
        terms: of the loss.
        networks, optimizers: what the next round depends on.
        warming: rounds without a look at the student, of the present use: `warmup_rounds`, or 0 within `make`.

    Raises:
        UserError: a number is out of its range, or no term of the loss is left without a student.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        bn: float,
        oh: float,
        adv: float,
        prior: float,
        bn_momentum: float,
        warmup_rounds: int,
        latent: int,
        channels: int,
    ) -> None:
        super().__init__(setting)
        self.name = type(self).__name__.lower()
        require_at_least(
            self.name, 0, bn=bn, oh=oh, adv=adv, prior=prior, bn_momentum=bn_momentum, warmup_rounds=warmup_rounds
        )
        if bn_momentum >= 1:
            raise UserError(
                f"{self.name}: bn_momentum is {bn_momentum}; it must be below 1, or new pictures count nothing."
            )
        alike, notes = resemblance(setting, self.name, bn=bn, bn_momentum=bn_momentum, prior=prior)
        classes = term("ce", oh if setting.num_classes > 1 else 0, lambda: ClassLoss(setting.teacher.facts))
        if not alike and not classes:
            raise UserError(f"{self.name}: no term of the loss is left without a student. Give oh, or bn, a weight.")
        self.terms: tuple[Term, ...] = (*alike, *classes, *term("adv", adv, KLDisagreement))
        self.notes += notes
        self.reads_student = adv > 0
        self.warmup_rounds = self.warming = warmup_rounds
        self.latent, self.channels = latent, channels
        self.networks: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._log: dict[str, float | Tensor] = {}

    @abstractmethod
    def begin(self) -> None:
        """Put new networks and optimisers, which depend on the seed only, in place of those that there are."""

    @abstractmethod
    def make_round(self, student: VisionModel | None, round: int) -> Made:
        """One round's pictures, with gradients on and random numbers of the round; see `grow`.

        Args:
            student: to disagree with; None where the disagreement is left out.
            round: counted from 0.
        """

    def make(self, count: int, done: int = 0) -> Iterator[Made]:
        """As of every grown way, but from the beginning, so that it does not depend on earlier rounds; without warm-up."""
        with torch.inference_mode(False):
            self.begin()
        if self.blended is not None:
            self.blended.forget()
        # A finished student needs no time to become worth disagreeing with, and without one there is nothing to wait for.
        self.warming = 0
        try:
            yield from super().make(count, done)
        finally:
            self.warming = self.warmup_rounds

    def grow(self, student: VisionModel | None, round: int) -> Made:
        """One round; it depends on the seed, the round, the state and, from `warmup_rounds` on, on the student.

        Raises:
            UserError: the optimisation left the numbers.
        """
        looked_at = student if self.reads_student and round >= self.warming else None
        # Lightning calls between epochs in inference mode, in which nothing has a gradient.
        with torch.inference_mode(False), torch.enable_grad(), no_autocast(self.setting.teacher.mean):
            self._follow_teacher()
            with self.seeded(self.name, round):
                made = self.make_round(looked_at, round)
        if not made.images.isfinite().all():
            raise UserError(f"{self.name}: the pictures of round {round} are not finite. Give a lower lr_g.")
        return made

    def log(self) -> dict[str, float]:
        """Of the last batch: each term unweighted and the `loss`, at the last step; `agreement`, the share of finished
        pictures that the teacher reads as asked. Of a batch that is being made, the former alone.
        """
        return {name: float(value) for name, value in self._log.items()}

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers and running statistics."""
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "blended": None if self.blended is None else self.blended.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a synthesis with the same options."""
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.blended is not None:
            self.blended.load_state_dict(state["blended"])

    @property
    def blended(self) -> BlendedStatistics | None:
        """The term on BatchNorm statistics; None where the teacher has none."""
        return next((one.prior for one in self.terms if isinstance(one.prior, BlendedStatistics)), None)

    def make_generator(self) -> ConvGenerator:
        """A new one on the teacher's device, by torch's random numbers of the CPU."""
        return ConvGenerator(self.latent, self.channels, size=self.setting.size).to(self.setting.device)

    def asked(self, first: int, count: int) -> Tensor:
        """(count,) classes, in turn; see `asked_classes`."""
        row = asked_classes(range(self.setting.num_classes), first, count, self.setting.seed)
        return row.to(self.setting.device)

    def latents(self, count: int) -> Tensor:
        """(count, latent) from N(0, 1), drawn on the CPU so that every device draws the same."""
        return torch.randn(count, self.latent).to(self.setting.device)

    def descend(
        self,
        draw: Callable[[], Tensor],
        asked: Tensor,
        student: VisionModel | None,
        optimizers: Sequence[torch.optim.Optimizer],
        steps: int,
        *,
        request: Request | None = None,
        also: Callable[[Tensor, Seen], tuple[str, float, Tensor]] | None = None,
        with_gradients: Callable[[], None] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Tensor:
        """Follow the gradient of one batch's loss.

        Args:
            draw: the pictures, (B, 3, height, width) in [0, 1], as the parameters are now.
            asked: (B,) classes.
            student: to disagree with; None without.
            optimizers: of all parameters that learn.
            steps: how many.
            request: what else is read of the teacher, for `also`.
            also: name, weight and value of a further term, of the pictures and what was seen of them.
            with_gradients: called at each step when the gradients are there and the parameters have not moved yet.
            part: number of this batch among those of the round, and how many these are; for what is said meanwhile.

        Returns:
            The pictures of the step with the lowest loss, without gradient.
        """
        terms = [one for one in self.terms if student is not None or not one.reads_student]
        needs = Needs.union([*(one.prior.needs for one in terms), Needs(request or Request())])
        best = Best()
        with Eyes(self.setting.teacher, needs, student) as eyes:
            for step in range(steps):
                for one in terms:
                    one.prior.advance(step / steps)
                images = draw()
                seen = self.seen(eyes, random_shifts(images), asked)
                loss, values = weighed(terms, seen)
                if also is not None:
                    name, weight, value = also(images, seen)
                    loss = loss + weight * value
                    values |= {name: value.detach(), "loss": loss.detach()}
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.backward()
                best.offer(images, loss)
                if with_gradients is not None:
                    with_gradients()
                for optimizer in optimizers:
                    optimizer.step()
                self._log = {**values}
                self.tell(f"these {part[1] * len(asked)} pictures", part[0] * steps + step + 1, part[1] * steps)
        if self.blended is not None:
            self.blended.remember()
        assert best.images is not None
        with torch.no_grad():
            read = self.setting.teacher(best.images).logits.argmax(1)
        self._log = {**self.log(), "agreement": (read == asked).float().mean().item()}
        return best.images

    def seen(self, eyes: Eyes, shown: Tensor, asked: Tensor) -> Seen:
        """What the teacher, and the student where it is asked, make of pictures in [0, 1]."""
        prepared = self.setting.teacher.prepare(shown)
        return eyes.look(prepared, prepared, asked)

    def _follow_teacher(self) -> None:
        """To the device on which the teacher is by now: a training moves its networks when it begins."""
        device = self.setting.device
        if all(parameter.device == device for network in self.networks.values() for parameter in network.parameters()):
            return
        for network in self.networks.values():
            network.to(device)
        for optimizer in self.optimizers.values():
            optimizer.load_state_dict(optimizer.state_dict())
