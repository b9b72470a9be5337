"""`phisense doctor`: this machine, whether a recipe's parts and data exist, and what each step
needs.

findings.py      versions, device, parts, data
devices.py       the device of a plan: the local one, a named GPU, an amount of memory
shapes.py        widths and counts, from the parts' configurations; known/ has those of parts that
                 are not on this disk
activations.py   what autograd saves, layer by layer
memory.py        the phases of each step and their peak
lengths.py       how long the rows of the data are
duration.py      floating point operations and seconds
advice.py        the cheapest single change that makes a stage fit
plan.py          all of it for one recipe on one device
"""

from .devices import Device, find_devices
from .findings import Finding, examine
from .plan import DoctorReport, Plan, make_plan

__all__ = ["Device", "DoctorReport", "Finding", "Plan", "examine", "find_devices", "make_plan"]
