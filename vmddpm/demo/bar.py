"""A progress bar for a time budget."""

from typing import NoReturn

from tqdm import tqdm

from vmddpm.demo.plan import Budget, as_minutes


class BudgetBar:
    """One bar from the start of the command to the end of its budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.bar: tqdm[NoReturn] = tqdm(
            total=budget.seconds, bar_format="{percentage:3.0f}%|{bar}| {desc}", dynamic_ncols=True, mininterval=0.5
        )

    def __enter__(self) -> "BudgetBar":
        return self

    def __exit__(self, *failure: object) -> None:
        self.bar.close()

    def show(self, text: str) -> None:
        self.bar.set_description_str(f"{as_minutes(self.budget.left())} left, {text}", refresh=False)
        self.bar.update(min(self.budget.spent(), self.budget.seconds) - self.bar.n)
