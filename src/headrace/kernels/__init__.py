"""The small C++ library: operations that torch leaves slow on CPUs. A plain C interface, called through ctypes."""
