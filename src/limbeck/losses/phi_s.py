"""PHI-S: a rotation after which all channels of a teacher's features have one variance.

Ranzinger, Heinrich, Molchanov, Catanzaro, "PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation", 2024,
arXiv:2410.01680.

Published: with the covariance U·diag(λ)·Uᵀ, the rotation H·Uᵀ with H an orthonormal Hadamard matrix, and the divisor √(mean λ).
Entries of H are all ±1/√C, so that the variance of each channel is the mean of λ. Inferred: widths for which no Hadamard matrix
is at hand, see `equalising_rotation`.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def phi_s_rotation(covariance: Float[Tensor, "C C"]) -> tuple[Float[Tensor, "C C"], Float[Tensor, ""]]:
    """The rotation R and the divisor s of PHI-S: every channel of R(x - mean)/s has variance 1.

    Args:
        covariance: (C, C) of the teacher's features, float64.

    Returns:
        R = Q·Uᵀ, orthonormal, with U the eigenvectors and Q from `equalising_rotation`; s = √(mean eigenvalue).
    """
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    # An eigenvector's sign is arbitrary; with its largest entry positive, every machine finds the same rotation.
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = torch.where(largest < 0, -vectors, vectors)
    rotation = equalising_rotation(values.cpu()).to(vectors.device)
    return rotation @ vectors.T, values.mean().sqrt().clamp_min(1e-12)


def equalising_rotation(variances: Float[Tensor, " C"]) -> Float[Tensor, "C C"]:
    """An orthonormal Q with equal numbers on the diagonal of Q·diag(variances)·Qᵀ.

    Where `hadamard` knows a matrix of this order (as for the widths of nearly all transformers) it is that one, whatever the
    variances are. Other widths are C = 2^k·m with m odd: there Q = H ⊗ (G·D), with H the Hadamard matrix of order 2^k, D the
    orthonormal Hartley matrix of order m, which spreads every direction over all channels, and G at most m - 1 plane rotations
    (Bendel and Mickey, 1978) that make the m variances, which are only nearly equal after D, exactly so. (No real orthonormal
    matrix of odd order has entries of one size.)

    Args:
        variances: (C,), not negative.
    """
    width = variances.numel()
    if (known := hadamard(width)) is not None:
        return known.to(variances.dtype)
    odd = width
    while odd % 2 == 0:
        odd //= 2
    even = hadamard(width // odd)
    assert even is not None
    spread = _hartley(odd).to(variances.dtype)
    means = variances.reshape(width // odd, odd).mean(0)
    rest = _even_out(spread @ torch.diag(means) @ spread.T)
    return torch.kron(even.to(variances.dtype), rest @ spread)


def hadamard(order: int) -> Float[Tensor, "n n"] | None:
    """An orthonormal Hadamard matrix, entries ±1/√n, float64; None for orders that the two constructions do not reach.

    Sylvester's doubling from 1 for powers of two, and from q + 1 with q a prime of the form 4j + 3 (Paley) elsewhere:
    192 = 191 + 1, 384 = 383 + 1, 576 = 8·(71 + 1), 768 = 2·384, ...
    """
    start, doublings = order, 0
    if order & (order - 1) == 0:
        start, doublings = 1, order.bit_length() - 1
    while (core := _paley(start)) is None:
        if start % 2:
            return None
        start, doublings = start // 2, doublings + 1
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    for _ in range(doublings):
        core = torch.kron(two, core)
    matrix: Tensor = core / order**0.5
    return matrix


def _paley(order: int) -> Tensor | None:
    """A Hadamard matrix with entries ±1 of order 1, or q + 1 with q a prime of the form 4j + 3."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    prime = order - 1
    if prime % 4 != 3 or any(prime % divisor == 0 for divisor in range(3, int(prime**0.5) + 1, 2)):
        return None
    squares = {number * number % prime for number in range(1, prime)}
    signs = torch.tensor(
        [0.0] + [1.0 if number in squares else -1.0 for number in range(1, prime)], dtype=torch.float64
    )
    numbers = torch.arange(prime)
    skew = torch.zeros(order, order, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = signs[(numbers.unsqueeze(1) - numbers) % prime]
    return skew + torch.eye(order, dtype=torch.float64)


def _hartley(order: int) -> Tensor:
    """cos + sin of 2πij/n, over √n: symmetric and orthonormal."""
    numbers = torch.arange(order, dtype=torch.float64)
    angles = 2 * torch.pi * torch.outer(numbers, numbers) / order
    matrix: Tensor = (angles.cos() + angles.sin()) / order**0.5
    return matrix


def _even_out(covariance: Tensor) -> Tensor:
    """An orthonormal G with equal numbers on the diagonal of G·covariance·Gᵀ, from plane rotations."""
    order = covariance.shape[0]
    turned, rotation = covariance.clone(), torch.eye(order, dtype=covariance.dtype)
    mean = covariance.diagonal().mean()
    waiting = list(range(order))
    while len(waiting) > 1:
        diagonal = turned.diagonal()[waiting]
        low, high = waiting[int(diagonal.argmin())], waiting[int(diagonal.argmax())]
        if low == high:  # all are equal
            break
        a, b, c = turned[low, low] - mean, turned[high, high] - mean, turned[low, high]
        # With t the tangent, the entry of `low` becomes mean: a + 2tc + t²b = 0; a <= 0 <= b, so that t is real.
        if float(a) == 0.0 or float(b) == 0.0:
            waiting.remove(low if float(a) == 0.0 else high)
            continue
        root = (c.square() - a * b).clamp_min(0).sqrt()
        tangent = -a / (c + root) if float(c) > 0 else (root - c) / b
        cosine = 1 / (1 + tangent.square()).sqrt()
        sine = tangent * cosine
        for matrix in (turned, rotation):
            rows = matrix[[low, high]]
            matrix[low], matrix[high] = cosine * rows[0] + sine * rows[1], cosine * rows[1] - sine * rows[0]
        columns = turned[:, [low, high]]
        turned[:, low] = cosine * columns[:, 0] + sine * columns[:, 1]
        turned[:, high] = cosine * columns[:, 1] - sine * columns[:, 0]
        waiting.remove(low)
    return rotation
