"""What the operators and the model cost, beside their baselines and the limits of the machine."""
