"""What happens to updates on their way between clients and server."""
