"""Pointers: ordinary PyTorch here, the values on the workers."""

import torch
from torch import nn

import fedmpi

alice, bob, carol = fedmpi.workers()

# A tensor is sent, and a pointer to it comes back. What is done to the pointer is done there.
x = alice.send(torch.arange(6.0).reshape(2, 3))
doubled = 2 * x + 1
print("on alice:", doubled.rank == alice.rank, "shape", list(doubled.shape))
print("her values:", doubled.get().tolist())

# A pointer moves from worker to worker, straight; what belongs together has to be in one place.
moved = doubled.move(bob)
factor = bob.send(torch.tensor([1.0, 10.0, 100.0]))
print("on bob:", (moved * factor).sum(0).get().tolist())
try:
    x @ factor
except fedmpi.errors.UsageError:
    print("alice's and bob's tensors do not meet by themselves")

# Autograd works through pointers ...
w = carol.send(torch.tensor([1.0, 2.0, 3.0], requires_grad=True))
(w**2).sum().backward()
print("gradient on carol:", w.grad.get().tolist())

# ... and so do modules and optimisers: a straight line through five points.
torch.manual_seed(0)
line = carol.send(nn.Linear(1, 1))
points = carol.send(torch.linspace(-1, 1, 5).unsqueeze(1))
optimiser = torch.optim.SGD(line.parameters(), lr=0.3)
for step in range(31):
    loss = nn.functional.mse_loss(line(points), 3 * points + 2)
    if step % 10 == 0:
        print(f"step {step:2}  loss {loss.item():.4f}")
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

# The whole module comes back.
found = fedmpi.get(line)
print(f"y = {found.weight.item():.2f} x + {found.bias.item():.2f}")
