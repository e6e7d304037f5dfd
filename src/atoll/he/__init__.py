"""Ciphers whose ciphertexts can be added (`docs/vertical.md`)."""
