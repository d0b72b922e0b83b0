"""Learned TTFT as data: rows, models, their figures. Shared by who trains and who serves."""
