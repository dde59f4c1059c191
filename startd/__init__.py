"""Slots, claims, policy and lifetime of one pilot; owns the spawner, its starters and procd.

Runs at the pilot's uid.
"""
