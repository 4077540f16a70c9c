"""CRD: tell an image's two embeddings, the student's and the teacher's, from those of thousands of other images.

Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699.

Published: linear embeddings of both pooled vectors, the teacher's learnt as well; a memory of both for every training image;
noise-contrastive estimation in both directions, with normalising constants from the first batch; weight 0.8 beside labels of
weight 1, with or without `kd` of weight 1. Inferred: the published code draws negatives of other classes only, and without
replacement where there are enough; no loss here is told the classes of images outside the batch, so that negatives are any
images but the image itself, some of them of its class (one in ten with ten classes), and they are drawn independently, as
noise-contrastive estimation assumes.

Memory: two banks of (training images, features) float32, 51 MB for 50 000 images and 1.3 GB for ImageNet, which are also in
every checkpoint, and (B, training images) scores for each of the two.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from limbeck.call_checks import require_at_least, require_share
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.kd import require_classifiers
from limbeck.losses.precision import no_autocast
from limbeck.outputs import ModelFacts, Outputs, Request


def crd_loss(scores: Float[Tensor, "B choices"], partition: Float[Tensor, ""], num_images: int) -> Float[Tensor, ""]:
    """Noise-contrastive estimation: which of the choices is the image itself?

    With P_k = exp(s_k) / Z, m negatives and noise that takes each of n images with probability 1/n:

        L = -mean_b[ log(P_0 / (P_0 + m/n)) + Σ_{k≥1} log((m/n) / (P_k + m/n)) ]

    which is logistic regression on s_k - log(Z·m/n). The published code adds 1e-7 to the denominators, which logarithms of
    sigmoids do not need.

    Args:
        scores: (B, 1 + m), cosines over the temperature; first the image's own, then the negatives'.
        partition: Z > 0.
        num_images: n.

    Returns:
        A scalar in the scores' format; at a perfect embedding not zero, but what is left of telling m images apart.
    """
    negatives = scores.shape[1] - 1
    odds = scores - torch.log(partition * negatives / num_images)
    return -(F.logsigmoid(odds[:, 0]) + F.logsigmoid(-odds[:, 1:]).sum(dim=1)).mean()


class CRD(DistillationLoss):
    """`crd_loss` of the student's embedding among the teacher's remembered ones, plus the same with roles exchanged.

    The second direction teaches only the teacher's embedding. In training mode the images' embeddings then move into the
    memory: bank <- unit(momentum * bank + (1 - momentum) * embedding).

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        features: D of the embeddings.
        negatives: m, other images for each image, drawn anew at every step.
        temperature: by which cosines are divided, at least 0.01.
        momentum: of the memory, in [0, 1].

    Raises:
        UserError: an option is out of range, or a model is a detector.
    """

    remembers_images: ClassVar[bool] = True

    student_bank: Tensor
    teacher_bank: Tensor
    partitions: Tensor

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        features: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__(student, teacher)
        require_classifiers("crd", student, teacher)
        require_at_least("crd", 1, features=features, negatives=negatives)
        require_at_least("crd", 0.01, temperature=temperature)  # exp(1 / temperature) must be finite
        require_share("crd", momentum=momentum)
        self.features, self.negatives = features, negatives
        self.temperature, self.momentum = temperature, momentum
        self.student_request = self.teacher_request = Request(pooled=True)
        self.student_embedding = nn.Linear(student.pooled_channels, features)
        self.teacher_embedding = nn.Linear(teacher.pooled_channels, features)
        # Buffers, so that they follow .to() and lie in checkpoints: the memory is half of what has been learnt.
        self.register_buffer("student_bank", torch.empty(0, features))
        self.register_buffer("teacher_bank", torch.empty(0, features))
        # Z of the student's and of the teacher's scores; 0 until the first batch.
        self.register_buffer("partitions", torch.zeros(2))

    @property
    def default_weight(self) -> float:
        """0.8, as published."""
        return 0.8

    def expect_images(self, count: int) -> None:
        """Make both banks, of uniform entries in ±√(3 / features), whose rows are about as long as units; forget Z.

        Args:
            count: n, of training images.

        Raises:
            UserError: there are fewer than two.
        """
        if count < 2:
            raise UserError(f"crd tells training images apart and needs at least 2; there are {count}.")
        bound = (self.features / 3) ** -0.5
        for name in ("student_bank", "teacher_bank"):
            # Drawn on the CPU, so that a seed means the same on every device.
            drawn = torch.empty(count, self.features).uniform_(-bound, bound)
            setattr(self, name, drawn.to(self.student_bank))
        self.partitions.zero_()

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """See `crd_loss`; the target is not read.

        Raises:
            UserError: `expect_images` was not called, the images' numbers are missing or are not those of the expected images.
        """
        assert student.pooled is not None
        assert teacher.pooled is not None
        numbers = self._checked(student.numbers, len(student.pooled))
        own = self.student_embedding(student.pooled.to(self.student_embedding.weight.dtype))
        other = self.teacher_embedding(teacher.pooled.detach().to(self.teacher_embedding.weight.dtype))
        with no_autocast(own):
            own, other = (F.normalize(of.to(self.student_bank.dtype), dim=1) for of in (own, other))
            choices = self._choices(numbers)
            loss = self._contrast(own, self.teacher_bank, choices, 0) + self._contrast(
                other, self.student_bank, choices, 1
            )
            if self.training:
                self._remember(self.student_bank, own, numbers)
                self._remember(self.teacher_bank, other, numbers)
            return loss

    def _checked(self, numbers: Tensor | None, batch: int) -> Tensor:
        count = len(self.student_bank)
        if count == 0:
            raise UserError(
                "crd remembers every training image and was not told how many there are. Call "
                "distiller.expect_images(number of training images) before training, and before loading a state."
            )
        if numbers is None:
            raise UserError(
                "crd must know which training images it is shown. Pass `numbers`, their places in the training set: "
                "distiller(images, target, numbers)."
            )
        if numbers.shape != (batch,):
            raise UserError(f"crd was given {tuple(numbers.shape)} numbers for {batch} images; it needs one for each.")
        # Looking at values makes a GPU wait, which costs far less than the pass before it; a compiled graph cannot look.
        if not torch.compiler.is_compiling():
            least, most = int(numbers.min()), int(numbers.max())
            if least < 0 or most >= count:
                raise UserError(
                    f"crd was shown image number {least if least < 0 else most}, and expects {count} images, numbered 0 to "
                    f"{count - 1}. Give expect_images the size of the training set, and the places in it as `numbers`."
                )
        return numbers

    def _choices(self, numbers: Int[Tensor, " B"]) -> Int[Tensor, "B choices"]:
        """Each image's own number, then those of its negatives: every other image equally likely, independently."""
        shape, count = (len(numbers), self.negatives), len(self.student_bank)
        drawn = torch.randint(count - 1, shape, device=numbers.device)
        own = numbers.unsqueeze(1)
        return torch.cat([own, drawn + (drawn >= own).long()], dim=1)

    def _contrast(
        self, embedded: Float[Tensor, "B D"], bank: Float[Tensor, "n D"], choices: Int[Tensor, "B choices"], side: int
    ) -> Tensor:
        """`crd_loss` of one model's embeddings among the other's remembered ones; `side` is its place in `partitions`.

        All n cosines are computed and the chosen ones picked, since B·n numbers are less than the B·m·D of the chosen
        rows of the bank for any n below 2 million.
        """
        # A copy, since the gradient needs the bank as it was before this batch moved into it.
        cosines = embedded @ bank.clone().T
        scores = cosines.gather(1, choices) / self.temperature
        estimate = scores.detach().exp().mean() * len(bank)
        known = self.partitions[side]
        partition = torch.where(known > 0, known, estimate)
        if self.training:
            self.partitions[side].copy_(partition)
        return crd_loss(scores, partition, len(bank))

    def _remember(self, bank: Float[Tensor, "n D"], embedded: Float[Tensor, "B D"], numbers: Int[Tensor, " B"]) -> None:
        with torch.no_grad():
            mixed = self.momentum * bank[numbers] + (1 - self.momentum) * embedded
            bank.index_copy_(0, numbers, F.normalize(mixed, dim=1))
