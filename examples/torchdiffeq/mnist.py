"""An ODE-Net that classifies digits: MNIST's IDX files if --data-dir names their folder, else scikit-learn's digits.

python examples/torchdiffeq/mnist.py --data-dir ~/mnist --iterations 2000
"""

import argparse
import gzip
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import torchdiffeq
from torch import Tensor, nn


def read_idx(folder: Path, name: str) -> Tensor:
    """Bytes of an IDX file, gzipped or not, in the shape that its header says."""
    zipped = folder / f"{name}.gz"
    raw = bytearray(gzip.decompress(zipped.read_bytes()) if zipped.exists() else (folder / name).read_bytes())
    axes = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    return torch.frombuffer(raw, dtype=torch.uint8, offset=4 + 4 * axes).reshape(shape)


def mnist(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) in [0, 1] and labels (N,)."""
    images, labels = read_idx(folder, f"{part}-images-idx3-ubyte"), read_idx(folder, f"{part}-labels-idx1-ubyte")
    return images[:, None].float() / 255, labels.long()


def digits() -> tuple[Tensor, Tensor]:
    """The 1797 digits of 8 by 8 pixels, enlarged to the size of MNIST's, in an order of chance."""
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    order = torch.randperm(len(images))
    enlarged = F.interpolate(images[order], size=(28, 28), mode="bilinear", align_corners=False)
    return enlarged, torch.tensor(target, dtype=torch.int64)[order]


class ConcatConv(nn.Module):
    """A convolution that sees the time as a further channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.conv(torch.cat([torch.ones_like(x[:, :1]) * t, x], 1))


class Field(nn.Module):
    """Two convolutions between normalizations."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(channels // 4, channels) for _ in range(3))
        self.conv1, self.conv2 = ConcatConv(channels), ConcatConv(channels)
        self.nfe = 0

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.nfe += 1
        x = self.conv1(t, F.relu(self.norm1(x)))
        x = self.conv2(t, F.relu(self.norm2(x)))
        return self.norm3(x)


class ODEBlock(nn.Module):
    """The field's flow from time 0 to 1."""

    def __init__(self, field: Field, adjoint: bool, method: str, tol: float) -> None:
        super().__init__()
        self.field, self.adjoint, self.method, self.tol = field, adjoint, method, tol
        self.register_buffer("span", torch.tensor([0.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        solve = torchdiffeq.odeint_adjoint if self.adjoint else torchdiffeq.odeint
        return solve(self.field, x, self.span, rtol=self.tol, atol=self.tol, method=self.method)[1]


def network(block: ODEBlock, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, stride=2),
        nn.GroupNorm(channels // 4, channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 4, stride=2, padding=1),
        block,
        nn.GroupNorm(channels // 4, channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * channels, 10),
    )


@torch.no_grad()
def evaluate(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean loss and the fraction classified rightly."""
    out = torch.cat([net(batch) for batch in images.split(360)])
    return F.cross_entropy(out, labels).item(), (out.argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder of MNIST's four IDX files, gzipped or not")
    parser.add_argument("--adjoint", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--method", default="dopri5")
    parser.add_argument("--tol", type=float, default=1e-3)
    parser.add_argument("--channels", type=int, default=16, help="a multiple of 4")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    if args.data_dir is None:
        images, labels = digits()
        train, test = (images[360:], labels[360:]), (images[:360], labels[:360])
    else:
        train, test = mnist(args.data_dir, "train"), mnist(args.data_dir, "t10k")
    field = Field(args.channels)
    net = network(ODEBlock(field, args.adjoint, args.method, args.tol), args.channels)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)

    before, _ = evaluate(net, *test)
    field.nfe = 0
    start = time.perf_counter()
    loss_of_batch = math.nan
    for iteration in range(1, args.iterations + 1):
        chosen = torch.randint(len(train[1]), (args.batch,))
        optimizer.zero_grad()
        loss = F.cross_entropy(net(train[0][chosen]), train[1][chosen])
        loss.backward()
        optimizer.step()
        loss_of_batch = loss.item()
        if iteration % 20 == 0:
            print(f"iteration {iteration}: batch loss {loss_of_batch:.4f}, {field.nfe} evaluations")
    seconds, nfe = time.perf_counter() - start, field.nfe

    after, accuracy = evaluate(net, *test)
    print(f"test loss {before:.4f} before, {after:.4f} after; accuracy {accuracy:.4f}")
    result = {"loss_before": before, "loss": after, "accuracy": accuracy}
    print("RESULT", json.dumps({**result, "nfe": nfe, "seconds": seconds}))


if __name__ == "__main__":
    main()
