"""Rows of the results tables on a borrowed GPU: packed here, run there side by side, merged here again."""
