"""The problems that libraries are compared on, and each library's way to solve them."""
