"""Tokenizers that Headway ships, one directory each, and the program that made them (`train`).

headway-8k   byte-level BPE of 8,192 tokens with a Llama-3-like chat template: what the emulated fleet speaks
"""
