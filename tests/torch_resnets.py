"""Two ResNet-18 as PyTorch programs write them, narrow where a test wants them so, and their plain training."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn


class Block(nn.Module):
    """Two 3 x 3 convolutions around which the input goes."""

    def __init__(self, channels, features, stride, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.side = shortcut
        if stride != 1 or channels != features:
            layers = nn.Sequential(nn.Conv2d(channels, features, 1, stride, bias=False), nn.BatchNorm2d(features))
            setattr(self, shortcut, layers)

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + getattr(self, self.side, nn.Identity())(x))


class ResNet18(nn.Module):
    """The usual ResNet-18 of CIFAR programs: 3 x 3 stem, entries called shortcut and linear."""

    shortcut, head, blocks = "shortcut", "linear", (2, 2, 2, 2)

    def __init__(self, width=64, num_classes=10):
        super().__init__()
        self.conv1, self.bn1 = self.stem(width), nn.BatchNorm2d(width)
        channels = width
        for stage in range(4):
            features, blocks = width * 2**stage, []
            for number in range(self.blocks[stage]):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(Block(channels, features, stride, self.shortcut))
                channels = features
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        setattr(self, self.head, nn.Linear(channels, num_classes))

    def stem(self, width):
        return nn.Conv2d(3, width, 3, 1, 1, bias=False)

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return getattr(self, self.head)(x.mean((2, 3)))

    def pool(self, x):
        return x


class TorchvisionResNet18(ResNet18):
    """torchvision's: 7 x 7 stem and max-pool, entries called downsample and fc."""

    shortcut, head = "downsample", "fc"

    def stem(self, width):
        return nn.Conv2d(3, width, 7, 2, 3, bias=False)

    def pool(self, x):
        return nn.functional.max_pool2d(x, 3, 2, 1)


class TorchvisionResNet34(TorchvisionResNet18):
    """The same with more blocks."""

    blocks = (3, 4, 6, 3)


def tensors(images, mean, std):
    """uint8 NHWC to what a network is trained on."""
    scaled = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def train(network, images, labels, epochs, batch_size=64, rate=0.05):
    """A plain loop of SGD with momentum."""
    torch.manual_seed(0)
    labels = torch.from_numpy(labels).long()
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * (len(labels) // batch_size))
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(labels))
        for start in range(0, len(labels) - batch_size + 1, batch_size):
            batch = order[start : start + batch_size]
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def answers(network, images):
    """The classes that a network gives to images that are tensors."""
    with torch.no_grad():
        return network.eval()(images).argmax(1).numpy()
