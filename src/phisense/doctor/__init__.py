"""`phisense doctor`: what this machine has, whether a recipe's parts and data are there, and what each step will need.

findings.py      versions, device, parts, data
devices.py       what is planned for: the device here, a named GPU, an amount of memory
shapes.py        widths and counts, from the parts' configurations; known/ has those of parts that are not on this disk
activations.py   what autograd keeps, layer by layer
memory.py        the moments of each step and the largest of them
lengths.py       how long the rows of the data are
duration.py      operations and seconds
advice.py        the cheapest single change that makes a stage fit
plan.py          all of it for one recipe on one device
"""

from .devices import Device, devices
from .findings import Finding, examine
from .plan import Plan, plan

__all__ = ["Device", "Finding", "Plan", "devices", "examine", "plan"]
