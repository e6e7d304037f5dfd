"""Work on columns before a model learns of them: bins, WOE and IV, scales, selection, correlation."""

from __future__ import annotations

from atoll.vertical.features.binning import Binned, ManualBins, QuantileBins, binned
from atoll.vertical.features.correlation import Correlations, Crypto, correlate, deal, vif
from atoll.vertical.features.selection import Selection, select_answer, select_ask, taken
from atoll.vertical.features.transform import Impute, OneHot, Standardise, Transform
from atoll.vertical.features.woe import Woe, encoded, evidence, woe_answer, woe_ask, woe_own

__all__ = [
    "Binned", "Correlations", "Crypto", "Impute", "ManualBins", "OneHot", "QuantileBins", "Selection", "Standardise",
    "Transform", "Woe", "binned", "correlate", "deal", "encoded", "evidence", "select_answer", "select_ask",
    "taken", "vif", "woe_answer", "woe_ask", "woe_own",
]  # fmt: skip
