"""What is promised about data, and what it costs: differential privacy of records."""
