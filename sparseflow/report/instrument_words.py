"""What instruments measured of the tickets, in words and as a table."""

from sparseflow.report.result import Instruments
from sparseflow.report.tables import Table
from sparseflow.report.words import percent, times


def erasure_table(measured: Instruments) -> Table:
    """A row a layer: how much of its start its kept weights still know; means over seeds."""
    rows = [
        [name, f"{one.correlation:.2f}", percent(one.flips), times(one.change)] for name, one in measured.erased.items()
    ]
    return Table(["layer", "correlation with the start", "signs flipped", "change / start"], rows)


def shared_in_words(measured: Instruments) -> str:
    """What the seeds' masks share beside chance; empty for one seed."""
    one = measured.shared
    if one is None:
        return ""
    beyond = (
        f"{one.shared / one.layered:.2f} times what chance would share within" if one.layered else "by chance none of"
    )
    return (
        f"All seeds' masks share {percent(one.of_kept)} of a ticket: {beyond} the same layer densities. Seeds begin "
        "with other weights, so that what they share beyond chance comes from the data."
    )
