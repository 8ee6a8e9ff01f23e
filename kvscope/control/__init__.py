"""Control of a running run: a Unix socket beside it, by which viewers pause, step and end it. Losing it loses nothing.

The only part of kvscope that knows sockets. Arrays never travel here; they go through the trace.
"""
