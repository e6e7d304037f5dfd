"""Workers that do not meet in collectives: a parameter server, and memory that all of them write."""
