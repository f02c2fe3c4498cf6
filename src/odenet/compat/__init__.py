"""The interfaces of other libraries, on top of this one."""
