"""Faults on purpose: commands that are killed, starved or robbed at random moments, and what is left then"""
