"""Methods for clients without labels: domain adaptation that needs sums of clients' features, or nothing at all."""
