"""A loop of one's own on any number of ranks: mpiexec -n 2 python own_loop.py (plain_loop.py: in plain PyTorch)."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import hpcvol

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
digits = [{"x": x[i], "y": y[i]} for i in range(len(x))]
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

for step in hpcvol.start(model, optimizer, data=digits, batch_size=64, unit_size=8).steps(280):
    for batch in step:
        loss = functional.cross_entropy(model(batch["x"]), batch["y"])
        step.backward(loss)

print(f"{(model(x).argmax(dim=1) == y).float().mean():.1%} of the digits are read right")
