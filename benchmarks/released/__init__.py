"""What the published implementations do, written anew to be measured beside argen.

A module per system with a network in the system's own parameter names, so that argen's importer
carries its weights over, and in its own operations: what is slow there is slow here. Tests hold
each to argen's loss on the same weights and draws.
"""
