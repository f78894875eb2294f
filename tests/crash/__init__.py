"""Power cuts, failing calls and kills: what the real daemon leaves on its files, and whether it is enough."""
