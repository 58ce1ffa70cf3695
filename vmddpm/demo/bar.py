"""One bar for everything that a budget is spent on."""

from tqdm import tqdm

from vmddpm.demo.plan import Budget, as_minutes


class BudgetBar:
    """One bar from the start of the command to the end of its budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.bar = tqdm(total=budget.seconds, bar_format="{percentage:3.0f}%|{bar}| {postfix[0]}", postfix=[""],
                        dynamic_ncols=True, mininterval=0.5)  # fmt: skip

    def __enter__(self) -> "BudgetBar":
        return self

    def __exit__(self, *failure: object) -> None:
        self.bar.close()

    def show(self, text: str) -> None:
        self.bar.postfix[0] = f"{as_minutes(self.budget.left())} left, {text}"
        self.bar.update(min(self.budget.spent(), self.budget.seconds) - self.bar.n)
