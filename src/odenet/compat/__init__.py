"""Interfaces of other libraries, implemented on this one."""
