"""The paper's tables: all systems trained, sampled and evaluated in the same way, with the printed figures."""
