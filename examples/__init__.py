"""The examples, installed with the package so that `hpcvol new` can copy them. Each stands alone."""
