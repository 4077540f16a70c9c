"""Distillation in a plain PyTorch loop: a teacher and two students on the digits inside scikit-learn.

python examples/own_loop.py [--epochs 8]
"""

import argparse

import torch
from sklearn.datasets import load_digits

import limbeck


def load() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1).expand(-1, 3, -1, -1)
    labels = torch.tensor(digits.target)
    held_out = torch.arange(len(labels)) % 5 == 0
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def train(distiller: limbeck.Distiller, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    optimizer = torch.optim.SGD(
        [p for _, p in distiller.trained_parameters()], lr=0.05, momentum=0.9, weight_decay=5e-4
    )
    for epoch in range(epochs):
        distiller.train()
        distiller.set_epoch(epoch)
        for batch in torch.randperm(len(images)).split(64):
            terms = distiller(images[batch], labels[batch])
            optimizer.zero_grad()
            terms["total"].backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    return float((model(images).logits.argmax(1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)
    train_images, train_labels, test_images, test_labels = load()

    teacher = limbeck.load_model("limbeck:resnet20", num_classes=10, input_size=(8, 8))
    train(limbeck.Distiller(None, teacher, "none"), train_images, train_labels, epochs)
    print(f"teacher                  {accuracy(teacher, test_images, test_labels):.4f}")

    for method in ("none", "kd+reviewkd"):
        torch.manual_seed(1)
        student = limbeck.load_model("limbeck:resnet8", num_classes=10, input_size=(8, 8))
        train(limbeck.Distiller(teacher, student, method), train_images, train_labels, epochs)
        print(f"student, {method:<15} {accuracy(student, test_images, test_labels):.4f}")


if __name__ == "__main__":
    main()
