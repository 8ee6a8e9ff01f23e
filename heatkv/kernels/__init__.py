"""Attention of every head over its own kept tokens in the pool: several forms of one function, with equal results.

`plain` is torch anywhere, and what the others are tested against; `ragged` is a Triton kernel that reads the pool in
place, of large maps after `dense`, cuDNN's attention to the current scale; `varlen` packs keys for torch's
variable-length attention; `grouped` is the CPU's.
"""
