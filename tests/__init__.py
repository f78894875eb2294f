"""polyvol's tests. README.md beside this file says which layer tests what, and how to run one."""
