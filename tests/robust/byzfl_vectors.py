"""Writes byzfl.json: what ByzFL makes of a few updates, for rules that it and Atoll both define.

    pip download byzfl==0.0.11 --no-deps && unzip -q byzfl-*.whl && PYTHONPATH=. python tests/robust/byzfl_vectors.py

Only its aggregators are imported, which need torch and numpy: the package as a whole wants torchvision and more.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path

import numpy as np

FOUND = Path(__file__).with_name("byzfl.json")


def aggregators() -> tuple[types.ModuleType, types.ModuleType]:
    root = next(
        Path(each) / "byzfl" for each in sys.path if (Path(each or ".") / "byzfl/aggregators").is_dir()
    )
    for name, place in {
        "byzfl": root,
        "byzfl.aggregators": root / "aggregators",
        "byzfl.utils": root / "utils",
    }.items():
        sys.modules[name] = module = types.ModuleType(name)
        module.__path__ = [str(place)]
    names = ("byzfl.aggregators.aggregators", "byzfl.aggregators.preaggregators")
    first, second = (importlib.import_module(name) for name in names)
    return first, second


def main() -> None:
    rules, before = aggregators()
    rng = np.random.default_rng(0)
    cases = []
    for count, liars in ((11, 2), (14, 3), (12, 1)):
        x = rng.normal(size=(count, 9)) + 1.0
        x[:liars] += 20 * rng.normal(size=9)
        f = liars
        found = {
            "mean": rules.Average()(x),
            "median": rules.Median()(x),
            f"trimmed:{f}": rules.TrMean(f)(x),
            f"meamed:{f}": rules.Meamed(f)(x),
            f"mda:{f}": rules.MDA(f)(x),
            "rfa:3,0.1": rules.GeometricMedian(nu=0.1, T=3)(x),
            "rfa:200,1e-06": rules.GeometricMedian(nu=1e-6, T=200)(x),
            "cclip:2.5": rules.CenteredClipping(L=1, tau=2.5)(x),
            "cclip:1.5,4": rules.CenteredClipping(L=4, tau=1.5)(x),
            # its Krum looks at n - f - 1 neighbours, where the paper has n - f - 2
            f"krum:{f}": rules.Krum(f + 1)(x),
            f"nnm:{f} + mean": before.NNM(f)(x).mean(0),
            f"nnm:{f} + trimmed:{f}": rules.TrMean(f)(before.NNM(f)(x)),
            f"nnm:{f} + median": rules.Median()(before.NNM(f)(x)),
            "clip:2 + mean": before.Clipping(2.0)(x.copy()).mean(0),
            f"arc:{f} + mean": before.ARC(f)(x.copy()).mean(0),
            f"arc:{f} + median": rules.Median()(before.ARC(f)(x.copy())),
        }
        cases.append({"rows": x.tolist(), "found": {text: value.tolist() for text, value in found.items()}})
    FOUND.write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
