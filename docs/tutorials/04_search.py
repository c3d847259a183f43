"""Search: rows that one does not have are found by their tags, used where they are, or refused."""

import torch

import fedmpi

workers = fedmpi.workers()
alice, bob, carol = workers

# Tags say what a tensor is. Whoever loaded a shard has its tensors under these.
for tag in ("#x", "#y"):
    found = [worker.search("#mnist5k", "#train", tag) for worker in workers]
    print(tag, "found on", sum(map(bool, found)), "workers,", sum(len(p) for [p] in found), "rows")
for described in alice.objects():
    print(" ", " ".join(described.tags), described.shape, "-", described.description)

# Own tensors get tags in the same way; as long as there is a pointer, they are found.
note = bob.send(torch.ones(3), tags=["#note"], description="three ones")
print("#note:", [len(worker.search("#note")) for worker in workers])

# A study without taking the rows: each worker sums the images of each digit, the sums travel.
counts, sums = torch.zeros(10), torch.zeros(10, 784)
for worker in workers:
    [x], [y] = worker.search("#mnist5k", "#x"), worker.search("#mnist5k", "#y")
    digits = (y.unsqueeze(1) == worker.send(torch.arange(10))).float()
    counts += digits.sum(0).get()
    sums += (digits.T @ x.flatten(1)).get()
means = sums / counts.unsqueeze(1)
print("rows of each digit:", counts.int().tolist())

# The mean images classify: a digit is the one whose mean is nearest. Blank ones tell nothing.
for name, centres in (("blank images", torch.zeros(10, 784)), ("mean images", means)):
    right = 0
    for worker in workers:
        [x], [y] = worker.search("#mnist5k", "#x"), worker.search("#mnist5k", "#y")
        there = worker.send(centres)
        score = x.flatten(1) @ there.T - (there**2).sum(1) / 2
        right += (score.argmax(1) == y).sum().item()
    print(f"nearest of ten {name}: accuracy {right / counts.sum().item():.1%}")

# What is private is found too, and computed with, but neither it nor a result leaves the worker.
secret = carol.send(torch.tensor([60.0, 72.0]), tags=["#weight"], private=True)
[weights] = carol.search("#weight")
print("private:", list(weights.shape), "rows found")
for name, pointer in (("values", weights), ("mean", weights.mean())):
    try:
        pointer.get()
    except fedmpi.errors.FedMPIError:
        print(f"its {name}: refused")

# A shard can be made private as well: `exec --private`, or here and now.
[x] = alice.search("#mnist5k", "#x")
x.make_private()
try:
    x[:1].get()
except fedmpi.errors.FedMPIError:
    print("alice's rows: refused from now on")
