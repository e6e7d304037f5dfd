"""Federations between machines: a coordinator, and nodes that keep their data.

What a node does is what a simulated client does (`atoll.engines.client`); what the coordinator does is a round
(`atoll.rounds`). This room carries orders and answers between them, and survives what happens on the way.
"""
