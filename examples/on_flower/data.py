"""Writes the files of three nodes: handwritten digits, unevenly divided."""

import numpy as np

import atoll

NAMES = ("north", "south", "east")

if __name__ == "__main__":
    data = atoll.data.load("digits").partition("dirichlet:0.5", clients=len(NAMES), seed=0, test=None)
    for number, name in enumerate(NAMES):
        samples = data.samples(number)
        assert samples is not None
        np.savez(f"{name}.npz", x=samples.inputs.numpy(), y=samples.targets.numpy())
        print(f"{name}.npz: {samples.count} samples")
