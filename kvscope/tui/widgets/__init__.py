"""Parts of screens. Each file but canvas.py is a painter: a pure function from a View to lines of text."""
