"""What assisted decoding brings, in the cells of the original's published table and some more."""
