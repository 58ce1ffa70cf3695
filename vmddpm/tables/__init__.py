"""The paper's tables: every system trained, sampled and evaluated in the same way, beside the printed figures."""
