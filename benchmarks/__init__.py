"""What the operators and the model cost, beside their rivals and the limits of the machine."""
