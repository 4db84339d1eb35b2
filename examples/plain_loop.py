"""A loop of one's own in plain PyTorch: one process. own_loop.py is the same on any number of ranks."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
digits = [{"x": x[i], "y": y[i]} for i in range(len(x))]
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

for _ in range(10):
    for batch in DataLoader(digits, batch_size=64, shuffle=True):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(batch["x"]), batch["y"])
        loss.backward()
        optimizer.step()

print(f"{(model(x).argmax(dim=1) == y).float().mean():.1%} of the digits are read right")
