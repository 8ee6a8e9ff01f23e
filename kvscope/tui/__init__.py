"""The terminal viewer. Only files below here import textual; none imports torch or h5py at module level."""
