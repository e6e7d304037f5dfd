"""The contract between a federated method, the engines that run its client half, and the round."""

from __future__ import annotations

from atoll.contract.around import Around, Through
from atoll.contract.change import Change
from atoll.contract.gather import Gathering, outcome, weighed
from atoll.contract.messages import ClientData, Model, Plan, Population, Reply, Work, as_written
from atoll.contract.method import Evaluate, Method, Program
from atoll.contract.orders import Answer, Channel, Job, Memories, Order, Outcome, Outer, inmost, refilled
from atoll.contract.reduce import Each, Mean, Reducer, Replies, Rule, Total, chunks
from atoll.contract.screen import misshapen, screen
from atoll.contract.validation import ON_VALIDATION, OnValidation

__all__ = [
    "ON_VALIDATION",
    "Answer",
    "Around",
    "Change",
    "Channel",
    "ClientData",
    "Each",
    "Evaluate",
    "Gathering",
    "Job",
    "Mean",
    "Memories",
    "Method",
    "Model",
    "OnValidation",
    "Order",
    "Outcome",
    "Outer",
    "Plan",
    "Population",
    "Program",
    "Reducer",
    "Replies",
    "Reply",
    "Rule",
    "Through",
    "Total",
    "Work",
    "as_written",
    "chunks",
    "inmost",
    "misshapen",
    "outcome",
    "refilled",
    "screen",
    "weighed",
]
