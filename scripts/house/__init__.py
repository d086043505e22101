"""The tooling of the house: bases, patch stacks, builds, checks."""
