"""The image classifiers of the Neural ODE paper's Table 1 (Chen et al. 2018).

All have the same down-sampling and head; between them lie six residual blocks (ResNet) or one ODE block (RK-Net,
ODE-Net).
"""

from __future__ import annotations

from typing import Literal, Unpack, final

from torch import Tensor, nn

from ..api.option_types import SolveOptions
from ..core.validate import integer, one_of
from ..gradients import Adjoint, Backprop
from ..gradients.gradient import Stats
from .fields import ConvField, group_norm
from .layer import NeuralODE

ClassifierKind = Literal["resnet", "rknet", "odenet"]
KINDS: dict[str, str] = {"resnet": "ResNet", "rknet": "RK-Net", "odenet": "ODE-Net"}
_MAX_SMALL_SIZE = 16  # images up to this size are down-sampled once, larger ones twice


@final
class ResidualBlock(nn.Module):
    """h + conv(act(norm(conv(act(norm(h)))))): an Euler step of an ODE block, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f = nn.Sequential(
            group_norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            group_norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.f(h)


@final
class Classifier(nn.Module):
    """Image classifier: head(block(down(images))), (B, in_channels, H, W) -> logits (B, classes).

    down: images to `channels` feature maps. block: an ODE block or residual blocks. head: pooling and a linear layer.
    """

    def __init__(self, down: nn.Module, block: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.down, self.block, self.head = down, block, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.block(self.down(images)))

    @property
    def stats(self) -> Stats | None:
        """Counts of the block's last solve; None for a residual block."""
        return getattr(self.block, "stats", None)


def classifier(
    kind: ClassifierKind,
    in_channels: int = 1,
    image_size: int = 28,
    classes: int = 10,
    channels: int = 64,
    depth: int = 6,
    **solve_options: Unpack[SolveOptions],
) -> Classifier:
    """A network of Table 1 of the Neural ODE paper.

    kind: "resnet" (`depth` residual blocks), "rknet" (gradient="backprop") or "odenet" (gradient="adjoint").
    With 64 channels the down-sampling maps 28x28 images to 64 feature maps of 6x6. solve_options: of `odenet.solve`.

    Raises TypeError or ValueError for a wrong argument.
    """
    one_of("kind", kind, KINDS)
    sizes = {
        "in_channels": in_channels,
        "image_size": image_size,
        "classes": classes,
        "channels": channels,
        "depth": depth,
    }
    for name, size in sizes.items():
        integer(name, size, 2 if name == "image_size" else 1)  # images of one pixel cannot be scaled down
    block: nn.Module
    if kind == "resnet":
        block = nn.Sequential(*(ResidualBlock(channels) for _ in range(depth)))
    else:
        # as in the paper's code, the backward solve has the same absolute tolerance
        gradient = Backprop() if kind == "rknet" else Adjoint(atol=solve_options.get("atol"))
        options: SolveOptions = {"gradient": gradient, **solve_options}
        block = NeuralODE(ConvField(channels), **options)
    head = nn.Sequential(
        group_norm(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )
    return Classifier(_down(in_channels, image_size, channels), block, head)


def _down(in_channels: int, image_size: int, channels: int) -> nn.Sequential:
    small = image_size <= _MAX_SMALL_SIZE
    layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1 if small else 0)]
    for _ in range(1 if small else 2):
        layers += [group_norm(channels), nn.ReLU(), nn.Conv2d(channels, channels, 4, stride=2, padding=1)]
    return nn.Sequential(*layers)
