"""Methods of adapters, a file each: what is averaged of the factors of low rank that clients train."""
