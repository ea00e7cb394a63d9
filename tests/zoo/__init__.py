"""Small models, losses and batches as people have them, with float64 twins; `MEMBERS` is the table."""

from zoo.member import Member, Parts
from zoo.table import MEMBERS

__all__ = ["MEMBERS", "Member", "Parts"]
