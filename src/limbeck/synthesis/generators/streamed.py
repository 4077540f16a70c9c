"""A generator that is trained step by step beside a student: what DAFL, ZSKT, DFAD and ours have in common.

The student's and the teacher's tensors are never written: gradients are taken with respect to the generator's
parameters alone, both networks are asked in evaluation mode, and the student's modes come back. Everything is float32,
also where the student's own step runs in half precision, since a generator's gradient has passed through two networks.
The learning rate is constant; the original code of ZSKT lowers it along with the student's, that of DFAD may.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.call_checks import require_positive
from limbeck.errors import UserError
from limbeck.losses.precision import no_autocast
from limbeck.models.base import VisionModel
from limbeck.models.detection.base import evaluating
from limbeck.synthesis.base import Made, Setting, StreamedSynthesis
from limbeck.synthesis.generators.networks import ConvGenerator


class GeneratorMethod(StreamedSynthesis):
    """A generator, its Adam, and the terms of its loss, which subclasses give.

    Its state is the generator's parameters and the optimiser's moments and steps: the networks of
    `limbeck.synthesis.generators.networks` have no buffers and no modes, so drawing leaves no trace.

    Args:
        setting: what for; `batch_size` pictures are made in each update.
        weights: of the terms; a term of weight 0 is not asked for.
        latent: D of the latent vectors.
        channels: of the generator's last maps.
        lr: of Adam.
        betas: of Adam.
        student_steps: steps of the student for each call of `learn`.
        updates: of the generator in each call of `learn`.
        generator_steps: updates before pictures are drawn by `make`.

    Attributes:
        weights: those that are not 0.
        of_softmax: names of terms that a teacher with a single class, whose softmax is 1 whatever the picture, leaves
            without any gradient.
        needs_student: with its present options it has nothing to do without a student.
        network: the generator.
        optimizer: its Adam.

    Raises:
        UserError: a number is out of its range, or no term is left that could teach the generator anything.
    """

    of_softmax: ClassVar[frozenset[str]] = frozenset({"one_hot", "balance", "disagreement"})

    def __init__(
        self,
        setting: Setting,
        weights: Mapping[str, float],
        *,
        latent: int,
        channels: int,
        lr: float,
        betas: tuple[float, float],
        student_steps: int,
        updates: int,
        generator_steps: int,
    ) -> None:
        super().__init__(setting)
        name = type(self).__name__
        require_positive(name, lr=lr)
        for option, steps, least in (
            ("student_steps", student_steps, 1),
            ("updates", updates, 1),
            ("generator_steps", generator_steps, 0),
        ):
            if steps < least:
                raise UserError(f"{name}: {option} is {steps}; it must be at least {least}.")
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"{name}: betas are {betas}; each must be at least 0 and below 1.")
        self.weights = {term: weight for term, weight in weights.items() if weight}
        if not self.weights:
            raise UserError(f"{name}: all weights are 0 ({', '.join(weights)}); at least one must not be.")
        if setting.num_classes == 1:
            self._leave_out_softmax()
        self.latent, self.channels = latent, channels
        self.lr, self.betas = lr, betas
        self.student_steps, self.updates, self.generator_steps = student_steps, updates, generator_steps
        self.needs_student: bool = self.needs_learning_student
        self._log: dict[str, Tensor] = {}
        self._begin()

    @abstractmethod
    def terms(self, images: Tensor, student: VisionModel | None) -> dict[str, Tensor]:
        """The unweighted terms of the generator's loss, those that are in `weights` at least.

        Args:
            images: (B, 3, height, width) in [0, 1], with gradient.
            student: in evaluation mode; None where there is none.
        """

    def make_network(self) -> nn.Module:
        """A generator with new parameters, from (B, latent) to pictures."""
        return ConvGenerator(self.latent, self.channels, size=self.setting.size)

    def learn(self, student: VisionModel | None) -> None:
        """`updates` updates of the generator.

        Raises:
            UserError: the method has nothing to do without a student, and there is none.
        """
        self._require_student(student)
        self._follow_teacher()
        for _ in range(self.updates):
            self._update(student)

    @torch.no_grad()
    def draw(self, count: int) -> Tensor:
        """(count, 3, height, width) in [0, 1], float32; BatchNorm by the pictures drawn together."""
        self._follow_teacher()
        with no_autocast(self.setting.teacher.mean):
            images: Tensor = self.network(self._latents(count))
            return images

    def make(self, count: int, done: int = 0) -> Iterator[Made]:
        """Train a new generator for `generator_steps` updates, with the setting's student if it has one, then draw.

        What `learn` has done before is lost. A run that goes on (`done`) trains the generator again, to the same
        parameters.

        Raises:
            UserError: the method has nothing to do without a student, and there is none.
        """
        # Here and not in the iterator, whose first line runs no sooner than its first picture is asked for.
        self._require_student(self.setting.student)
        return self._made(count, done)

    def _made(self, count: int, done: int) -> Iterator[Made]:
        self._begin()
        for step in range(self.generator_steps):
            with self.seeded("generator", step):
                self._update(self.setting.student)
            self.tell("the generator's training", step + 1, self.generator_steps)
        size = self.setting.batch_size
        for index in range(done // size, -(-count // size)):
            # A whole batch also where fewer are left, since BatchNorm makes a picture depend on the others.
            with self.seeded("draw", index):
                images = self.draw(size)
            yield Made(images[max(done - index * size, 0) : count - index * size])

    def log(self) -> dict[str, float]:
        """The unweighted terms of the last update, and `loss`, their weighted sum."""
        return {name: value.item() for name, value in self._log.items()}

    def state_dict(self) -> dict[str, Any]:
        """Generator and optimiser."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state of a generator of the same size."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _leave_out_softmax(self) -> None:
        empty = [term for term in self.weights if term in self.of_softmax]
        self.weights = {term: weight for term, weight in self.weights.items() if term not in empty}
        teacher, name = self.setting.teacher.facts.name, type(self).__name__
        if not self.weights:
            raise UserError(
                f"{teacher} has one class only, whose probability is 1 whatever the picture, and {name} reads nothing "
                "else. Use dfad, which compares logits, or invert, which reads what the teacher computes on the way."
            )
        if empty:
            self.notes.append(f"{teacher} has one class only, which says nothing about pictures: no {', '.join(empty)}")

    def _begin(self) -> None:
        """New parameters, which depend on the seed only, and a new optimiser."""
        with self.seeded("parameters"):
            network = self.make_network()
        self.network = network.to(self.setting.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.lr, self.betas)

    def _follow_teacher(self) -> None:
        """To the device on which the teacher is by now: a training moves its networks when it begins."""
        device = self.setting.device
        if next(self.network.parameters()).device != device:
            self.network.to(device)
            self.optimizer.load_state_dict(self.optimizer.state_dict())

    def _latents(self, count: int) -> Tensor:
        return torch.randn(count, self.latent, device=self.setting.device)

    def _update(self, student: VisionModel | None) -> None:
        parameters = list(self.network.parameters())
        still = nullcontext() if student is None else evaluating(student)
        with torch.enable_grad(), no_autocast(self.setting.teacher.mean), still:
            terms = self.terms(self.network(self._latents(self.setting.batch_size)), student)
            loss = torch.stack([weight * terms[name] for name, weight in self.weights.items() if name in terms]).sum()
            gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._log = {name: term.detach() for name, term in terms.items()} | {"loss": loss.detach()}

    def _require_student(self, student: VisionModel | None) -> None:
        if self.needs_student and student is None:
            raise UserError(
                f"{type(self).__name__} seeks pictures on which a student disagrees with the teacher, and no student was "
                "given. Use it while a student learns: limbeck distill --data none --synthesis ..."
            )
