"""Peers in processes of their own, without a server (`docs/peer.md`)."""
